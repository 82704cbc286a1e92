"""What a launch would work with: every value that holds, and where it comes from; of variables the names alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from launchers.commands.output import command_line
from launchers.templates import DEFAULT
from launchers.validation import places
from launchers.yaml_nodes import dotted

if TYPE_CHECKING:
    from pydantic import JsonValue

    from launchers.commands.launching import Wanted
    from launchers.config import Setting
    from launchers.launcher import RunLauncher
    from launchers.templates import Loaded
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


def effective(
    launcher: RunLauncher[Any], loaded: Loaded, run: Run, wanted: Wanted, settings: Iterable[Setting]
) -> list[Value]:
    """Every value of a launch, in the order in which a person would ask: run, template, environment, settings."""
    given = {setting.key: setting for setting in settings}
    chosen = given.pop("templates.default").origin
    return [
        *_of_run(launcher, loaded, run, wanted),
        Value("template", loaded.name, chosen),
        Value("template.file", loaded.origin, chosen),
        Value("template.digest", loaded.template.digest(), "template"),
        *_of_template(loaded),
        *_environment(launcher, loaded, run, wanted),
        *(Value(key, setting.value, setting.origin) for key, setting in given.items() if key != "templates.default"),
    ]


def _of_run(launcher: RunLauncher[Any], loaded: Loaded, run: Run, wanted: Wanted) -> Iterator[Value]:
    yield Value("run.id", run.id, "made up" if wanted.run_id is None else "flag --run-id")
    yield Value("run.attempt", run.attempt, "flag --attempt" if wanted.attempt else DEFAULT)
    yield Value("run.command", list(run.command), "command line")
    for name, value in run.tags.items():
        yield Value(f"run.tags.{name}", value, "flag --tag")
    backend_id = launcher.workspace.backend.identity() or ""
    context = launcher.args(run, backend_id).context
    if not getattr(loaded.template, "cwd", None):
        yield Value("run.cwd", context.cwd, CALLER)
    yield Value("run.place", context.place, f"target {launcher.target}")


def _of_template(loaded: Loaded) -> Iterator[Value]:
    data = loaded.template.model_dump(mode="json")
    for location in places(type(loaded.template), leaves=True):
        names = tuple(map(str, location))
        if names[0] not in _LAYERS:
            value = _at(data, names)
            if names[0] in loaded.template.SHARED_ONLY and isinstance(value, dict):
                value = [*sorted(value)]  # names tell enough
            yield Value(f"template.{dotted(location)}", value, loaded.origin_of(*names))


def _environment(launcher: RunLauncher[Any], loaded: Loaded, run: Run, wanted: Wanted) -> Iterator[Value]:
    """Each variable once, with the layer that wins: the caller's, the template's, the run's own, the secrets."""
    data = loaded.template.model_dump(mode="json")
    found = {name: Value(f"env.{name}", _HIDDEN, CALLER) for name in launcher.inherited()}
    for name in data.get("env") or {}:
        found[name] = Value(f"env.{name}", _HIDDEN, loaded.origin_of("env", name))
    flagged = {word.partition("=")[0] for word in wanted.env}
    for name in run.env:
        found[name] = Value(f"env.{name}", _HIDDEN, "flag --env" if name in flagged else "flag --env-file")
    for name, reference in (data.get("secrets") or {}).items():
        found[name] = Value(f"env.{name}", reference, loaded.origin_of("secrets", name))
    yield from (found[name] for name in sorted(found))


def _at(data: Mapping[str, Any], names: tuple[str, ...]) -> JsonValue:
    value: Any = data
    for name in names:
        value = value[name]
    return value  # type: ignore[no-any-return] # what pydantic dumps as JSON


def shown(value: Value) -> str:
    """The value as a table has it."""
    if value.value is None or value.value in ("", [], {}):
        return "-"
    if value.key == "run.command" and isinstance(value.value, list):
        return command_line(map(str, value.value))
    return value.value if isinstance(value.value, str) else json.dumps(value.value)
