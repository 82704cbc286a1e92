"""Connections: the places that a configuration names, as typed values of their targets.

What a connection holds is declared by its target alone, in a model that loads no SDK. It is checked when the
configuration is read, as far as the target is installed, and made when a template names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue, ValidationError

from launchers.near_miss import suggestion
from launchers.registry import connection_model
from launchers.validation import problems
from launchers.yaml_nodes import Problem, dotted
from launchers.yaml_source import Source
from programs.args import Connection, LauncherTemplate
from stacks.errors import ConfigurationError, TemplateError

if TYPE_CHECKING:
    from launchers.settings import ConnectionSettings


@dataclass(frozen=True)
class NamedConnection:
    """A connection as it was written; `origin` is where."""

    name: str
    target: str
    values: Mapping[str, JsonValue] = field(hash=False)
    origin: str

    def read(self) -> Connection:
        """The typed value; raises ConfigurationError where its target is not installed, or does not know it so."""
        try:
            model = connection_model(self.target)
        except ConfigurationError as error:
            message = f"{self.origin}: connection {self.name!r}: {error}"
            raise ConfigurationError(message) from error
        if model is None:
            message = f"{self.origin}: connection {self.name!r}: {_without(self.target)}"
            raise ConfigurationError(message)
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where = dotted(("connections", self.name, *problem["loc"]))
            message = f"{self.origin}: {where}: {problem['msg']}"
            raise ConfigurationError(message) from error


@dataclass(frozen=True)
class Connections:
    """All connections of a configuration."""

    each: tuple[NamedConnection, ...] = ()

    def of(self, template: LauncherTemplate, where: str) -> Connection | None:
        """The connection that a template names, None where it names none.

        Raises TemplateError, which begins with `where`, for one that is not there or not of the template's target.
        """
        if not template.connection:
            return None
        if connection_model(template.target) is None:
            message = f"{where}: {_without(template.target)}: leave `connection` out"
            raise TemplateError(message)
        named = {each.name: each for each in self.each}
        found = named.get(template.connection)
        if found is None:
            known = suggestion(template.connection, named, "connections") or "; the configuration names none"
            message = f"{where}: unknown connection {template.connection!r}{known}"
            raise TemplateError(message)
        if found.target != template.target:
            other = f"({found.origin}) is one of the target {found.target}"
            message = f"{where}: the connection {found.name!r} {other}, and this template's is {template.target}"
            raise TemplateError(message)
        return found.read()


def read_connections(named: Mapping[str, ConnectionSettings], origin_of: Callable[..., str]) -> Connections:
    """The connections of a configuration; `origin_of` tells where the value at a place comes from."""
    return Connections(
        tuple(
            NamedConnection(name, each.target, each.model_extra or {}, origin_of("connections", name))
            for name, each in named.items()
        )
    )


def connection_problems(source: Source) -> Iterator[Problem]:
    """What the targets refuse of a file's connections, with lines; a target that is not installed refuses nothing."""
    named = source.data.get("connections")
    for name, values in named.items() if isinstance(named, dict) else ():
        if isinstance(values, dict) and isinstance(values.get("target"), str):
            yield from _problems(source, ("connections", name), values)


def anchored_connection(settings: ConnectionSettings, absolute: Callable[[Path], Path]) -> dict[str, JsonValue]:
    """A connection that its target does not refuse, as it was written, but with its paths made absolute."""
    data: dict[str, JsonValue] = settings.model_dump()
    model = _installed(settings.target)
    read = None if model is None else model.model_validate(settings.model_extra or {})
    for name in () if read is None else read.model_fields_set:
        value = getattr(read, name)
        if isinstance(value, Path):
            data[name] = str(absolute(value))
    return data


def _problems(source: Source, place: tuple[str, str], values: dict[str, object]) -> Iterator[Problem]:
    target = str(values["target"])
    try:
        model = connection_model(target)
    except ConfigurationError:
        return
    if model is None:
        yield Problem(source.mark((*place, "target")).line, f"{dotted(place)}: {_without(target)}")
        return
    marks = {location[2:]: mark for location, mark in source.marks.items() if location[:2] == place}
    refused = frozenset(location[2:] for location in source.refused if location[:2] == place)
    own = Source({key: value for key, value in values.items() if key != "target"}, marks, refused=refused)
    yield from (Problem(each.line, f"{dotted(place)}: {each.text}") for each in problems(own, model))


def _installed(target: str) -> type[Connection] | None:
    try:
        return connection_model(target)
    except ConfigurationError:
        return None


def _without(target: str) -> str:
    return f"the {target} target has no connections"
