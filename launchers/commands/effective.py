"""What a launch would work with: every value that holds, and where it comes from; of variables the names alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from launchers.commands.output import cell, command_line
from launchers.templates import DEFAULT
from launchers.templates.fields import parse_path, value_at
from launchers.validation import places
from launchers.yaml_nodes import dotted

if TYPE_CHECKING:
    from pydantic import JsonValue

    from launchers.commands.launching import AskedLaunch, Wanted
    from launchers.config import Setting
    from launchers.launcher import RunLauncher
    from programs.args import Run

CALLER: Final = "caller"
_HIDDEN: Final = "(not shown)"
_LAYERS: Final = frozenset({"env", "secrets"})
"""Fields of a template that make the worker's environment: shown by variable, without their values."""


@dataclass(frozen=True)
class Value:
    """One value as JSON, and its origin: a flag, a variable, a file and line, the caller, or "default"."""

    key: str
    value: JsonValue
    origin: str


def effective(launch: AskedLaunch, wanted: Wanted, settings: Iterable[Setting]) -> list[Value]:
    """Every value of a launch, in the order in which a person would ask: run, template, environment, settings."""
    launcher, run = launch.launcher, launch.run
    given = {setting.key: setting for setting in settings}
    default = given.pop("templates.default").origin
    chosen = default if launch.chosen.why == "templates.default" else launch.chosen.why
    origins = Origins(launcher, wanted)
    return [
        *_of_run(launcher, run, wanted),
        Value("template", launcher.name, chosen),
        Value("template.file", origins.file, chosen),
        Value("template.digest", launcher.template.digest(), "template"),
        *_of_template(launcher, origins),
        *_environment(launcher, origins, run, wanted),
        *(Value(key, setting.value, setting.origin) for key, setting in given.items()),
    ]


class Origins:
    """Where the values of a launcher's template come from: file and line, a flag, or "default"."""

    def __init__(self, launcher: RunLauncher[Any], wanted: Wanted) -> None:
        self._rules = launcher.rules
        fields = (word.partition("=")[0] for word in wanted.changes)
        self._changed = tuple(parse_path(field) for field in fields)

    @property
    def file(self) -> str:
        """What the template was read from."""
        return self._rules.origin if self._rules is not None else ""

    def of(self, *path: str) -> str:
        """Where the value at the end of a way comes from."""
        if any(path[: len(each)] == each for each in self._changed):
            return "flag --set"
        places = {} if self._rules is None else self._rules.places
        return places.get(path, DEFAULT)


def _of_run(launcher: RunLauncher[Any], run: Run, wanted: Wanted) -> Iterator[Value]:
    yield Value("run.id", run.id, "made up" if wanted.run_id is None else "flag --run-id")
    yield Value("run.attempt", run.attempt, "flag --attempt" if wanted.attempt else DEFAULT)
    yield Value("run.command", list(run.command), "command line")
    for name, value in run.tags.items():
        yield Value(f"run.tags.{name}", value, "flag --tag")
    backend_id = launcher.workspace.backend.identity() or ""
    context = launcher.args(run, backend_id).context
    if not getattr(launcher.template, "cwd", None):
        yield Value("run.cwd", context.cwd, CALLER)
    yield Value("run.place", context.place, f"target {launcher.target}")


def _of_template(launcher: RunLauncher[Any], origins: Origins) -> Iterator[Value]:
    data = launcher.template.model_dump(mode="json")
    for location in places(type(launcher.template), leaves=True):
        names = tuple(map(str, location))
        if names[0] in _LAYERS | launcher.template.GOVERNANCE:
            continue
        value = value_at(data, names)
        if names[0] in launcher.template.SHARED_ONLY and isinstance(value, dict):
            value = [*sorted(value)]  # names tell enough
        yield Value(f"template.{dotted(location)}", value, origins.of(*names))


def _environment(launcher: RunLauncher[Any], origins: Origins, run: Run, wanted: Wanted) -> Iterator[Value]:
    """Each variable once, with the layer that wins: the caller's, the template's, the run's own, the secrets."""
    data = launcher.template.model_dump(mode="json")
    found = {name: Value(f"env.{name}", _HIDDEN, CALLER) for name in launcher.inherited()}
    for name in data.get("env") or {}:
        found[name] = Value(f"env.{name}", _HIDDEN, origins.of("env", name))
    flagged = {word.partition("=")[0] for word in wanted.env}
    for name in run.env:
        found[name] = Value(f"env.{name}", _HIDDEN, "flag --env" if name in flagged else "flag --env-file")
    for name, reference in (data.get("secrets") or {}).items():
        found[name] = Value(f"env.{name}", reference, origins.of("secrets", name))
    yield from (found[name] for name in sorted(found))


def shown(value: Value) -> str:
    """The value as a table has it."""
    if value.key == "run.command" and isinstance(value.value, list):
        return command_line(map(str, value.value))
    return cell(value.value)
