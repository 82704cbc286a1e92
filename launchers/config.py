"""The configuration: what may be set, where it comes from, and which source wins.

A flag comes before the environment, the environment before `run-launcher.yaml` in the working folder, that before
`run-launcher.yaml` in the user's configuration folder, and the defaults come last. A file that is named, by
`--config-file` or RUN_LAUNCHER_CONFIG_FILE, stands for both of these. A list in one source replaces the list of
another; what has names of the user's own (limits, connections) is merged by name. The environment's name of
`engine.kind` is RUN_LAUNCHER_ENGINE__KIND; lists are separated like PATH; an empty variable counts as absent. PULUMI_*
variables are never read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from launchers.backend_url import absolute_url
from launchers.connections import anchored_connection, connection_problems
from launchers.near_miss import near_miss
from launchers.settings import Config, ConnectionSettings
from launchers.templates.fields import value_at
from launchers.validation import places, problems
from launchers.yaml_nodes import Problem, SourceError, Step, dotted
from launchers.yaml_source import Source, parse, read_bytes, report, shown
from stacks.errors import ConfigurationError
from stacks.user_folders import user_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import JsonValue

    from launchers.yaml_nodes import Location

__all__ = ["Config", "ConfigWithOrigins", "Setting", "load_config", "load_config_with_origins"]

FILE: Final = "run-launcher.yaml"
PREFIX: Final = "RUN_LAUNCHER_"
FILE_VARIABLE: Final = "RUN_LAUNCHER_CONFIG_FILE"
DEFAULT: Final = "default"
# Variables of the process rather than of the configuration, and those that a worker finds in its environment.
OTHER_VARIABLES: Final = frozenset(
    PREFIX + name
    for name in (
        "CONFIG_FILE",
        "TOOLS",
        "SCRATCH",
        "RUN_ID",
        "ATTEMPT",
        "FOLDER",
        "TARGET",
        "TEMPLATE",
        "DIGEST",
        "BACKEND",
        "WORKER",
        "FILES",
        "SHARED_FOLDER",
    )
)
# What the command line calls a setting; the others have no flag of their own.
FLAGS: Final = {
    "home": "--home",
    "backend.url": "--backend",
    "templates.default": "--template",
    "engine.kind": "--engine",
    "launch.timeout": "--timeout",
}


@dataclass(frozen=True)
class Setting:
    """One value as JSON, with where it comes from: "default", a flag, a variable, or a file and line."""

    key: str
    value: JsonValue
    origin: str


@dataclass(frozen=True)
class ConfigWithOrigins:
    """A configuration and the origin of each of its values, in the order of the model."""

    config: Config
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class _Given:
    """A value that some source sets, paths made absolute; of a list, also where each item stands."""

    value: object
    origin: str
    items: tuple[str, ...] = ()


def load_config(
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    file: Path | None = None,
) -> Config:
    """The configuration that holds here; see load_config_with_origins."""
    return load_config_with_origins(flags, env, cwd, file).config


def load_config_with_origins(
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    file: Path | None = None,
) -> ConfigWithOrigins:
    """The configuration that holds here, with the origin of each value. It makes and changes nothing.

    `flags` maps dotted keys to values, None where the flag is absent; `env` is the process's environment unless given,
    `cwd` its working folder; `file` is the only file that is read, and must be there. Relative paths are relative to
    the file that says them, else to `cwd`. Raises ConfigurationError with every problem of every source, one to a
    line, whether or not another source wins over it.
    """
    cwd = _working_folder() if cwd is None else cwd.absolute()
    env = os.environ if env is None else env
    refused: list[str] = []
    files = [_named(file or Path(env[FILE_VARIABLE]), cwd)] if file or env.get(FILE_VARIABLE) else _files(cwd, refused)
    given: dict[Location, _Given] = {}
    folders = tuple(path.parent / "templates" for path in reversed(files) if (path.parent / "templates").is_dir())
    given["templates", "folders"] = _Given(tuple(dict.fromkeys(folders)), DEFAULT)
    for path in files:
        given |= _from_file(path, refused)
    given |= _from_environment(env, cwd, refused)
    given |= _from_flags(flags or {}, cwd, refused)
    if refused:
        raise ConfigurationError("\n".join(refused))
    values = _nested({location: each.value for location, each in given.items()})
    origins = {location: each.origin for location, each in given.items() if each.origin != DEFAULT}
    origins |= {(*location, at): item for location, each in given.items() for at, item in enumerate(each.items)}
    config = Config.model_validate(values, context=origins)
    return ConfigWithOrigins(config, tuple(_settings(config, given)))


def _named(file: Path, cwd: Path) -> Path:
    """The file that was named; raises ConfigurationError where it is not there."""
    path = _path(file, cwd)
    if not path.exists():
        message = f"{shown(path)}: there is no such configuration file"
        raise ConfigurationError(message)
    return path


def _files(cwd: Path, refused: list[str]) -> list[Path]:
    """The files that are found, the one that wins last."""
    own = user_folder("config")
    folders = [*([] if own is None else [own]), cwd]
    refused += [
        f"{shown(path)}: rename it {FILE}: this name is not read"
        for path in (folder / "run-launcher.yml" for folder in reversed(folders))
        if path.exists()
    ]
    return [path for path in (folder / FILE for folder in folders) if path.exists() or path.is_symlink()]


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        message = "the working folder was removed: change to one that is there (cd)"
        raise ConfigurationError(message) from error


def _from_file(path: Path, refused: list[str]) -> dict[Location, _Given]:
    try:
        source = parse(read_bytes(path))
    except SourceError as error:
        refused.append(report(shown(path), [error.problem]))
        return {}
    if found := [*problems(source, Config), *connection_problems(source)]:
        refused.append(report(shown(path), found))
        return {}

    def line(*location: Step) -> str:
        return f"{shown(path)}:{source.mark(location).key_line}"

    return {
        location: _Given(
            value,
            line(*location),
            tuple(line(*location, index) for index in range(len(value))) if isinstance(value, tuple) else (),
        )
        for location, value in _anchored(source.data, path.parent, shown(path), refused)
    }


def _from_environment(env: Mapping[str, str], cwd: Path, refused: list[str]) -> dict[Location, _Given]:
    known = {PREFIX + "__".join(map(str, location)).upper(): location for location in places(Config, leaves=True)}
    given: dict[Location, _Given] = {}
    for name in sorted(name for name in env if name.startswith(PREFIX) and name not in OTHER_VARIABLES):
        origin = f"environment {name}"
        if name not in known:
            refused.append(f"{origin}: unknown variable{_meant(name, known)}")
        elif env[name]:
            location = known[name]
            listed = location == ("templates", "folders")
            value = [part for part in env[name].split(os.pathsep) if part] if listed else env[name]
            given |= _one(location, value, origin, cwd, refused)
    return given


def _meant(name: str, known: Iterable[str]) -> str:
    """What an unknown variable was probably meant to be; the prefix, which all have in common, is not compared."""
    near = near_miss(name.removeprefix(PREFIX), [other.removeprefix(PREFIX) for other in known])
    return f"; did you mean {PREFIX + near!r}?" if near else f"; known variables: {', '.join(sorted(known))}"


def _from_flags(flags: Mapping[str, object], cwd: Path, refused: list[str]) -> dict[Location, _Given]:
    given: dict[Location, _Given] = {}
    for key, value in flags.items():
        if value is not None:
            origin = f"flag {FLAGS.get(key, '--' + key.replace('.', '-').replace('_', '-'))}"
            given |= _one(tuple(key.split(".")), value, origin, cwd, refused)
    return given


def _one(location: Location, value: object, origin: str, cwd: Path, refused: list[str]) -> dict[Location, _Given]:
    """The value of one variable or flag, if it is a value of that setting."""
    data = _nested({location: value})
    found = problems(Source(data), Config)
    if found:
        refused.append(report(origin, [Problem(0, problem.text) for problem in found]))
        return {}
    return {place: _Given(each, origin) for place, each in _anchored(data, cwd, origin, refused)}


def _anchored(
    data: dict[str, object], base: Path, origin: str, refused: list[str]
) -> Iterator[tuple[Location, object]]:
    """The values that valid data sets, `~` and paths relative to `base` made absolute."""
    for location, value in _set_values(Config.model_validate(data)):
        try:
            yield location, _absolute(location, value, base)
        except RuntimeError as error:  # pathlib's word for a home folder that it cannot find
            refused.append(f"{origin}: {dotted(location)}: {error}")


def _absolute(location: Location, value: object, base: Path) -> object:
    if isinstance(value, Path):
        return _path(value, base)
    if location == ("templates", "folders") and isinstance(value, tuple):
        return tuple(_path(path, base) for path in value)
    if isinstance(value, ConnectionSettings):
        return anchored_connection(value, lambda path: _path(path, base))
    if location == ("backend", "url") and isinstance(value, str):
        return absolute_url(value, base) if value.startswith("file:") else value
    if location == ("templates", "default") and isinstance(value, str):
        is_path = "/" in value or value.endswith((".yaml", ".yml"))
        return str(_path(Path(value), base)) if is_path else value
    return value


def _path(path: Path, base: Path) -> Path:
    return Path(os.path.normpath(base / path.expanduser()))


def _set_values(model: BaseModel, around: Location = ()) -> Iterator[tuple[Location, object]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if name not in model.model_fields_set:
            continue
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from _of(inner, (*around, name, key))
        else:
            yield from _of(value, (*around, name))


def _of(value: object, location: Location) -> Iterator[tuple[Location, object]]:
    """A connection is one value: keys of two sources are never mixed."""
    if isinstance(value, BaseModel) and not isinstance(value, ConnectionSettings):
        yield from _set_values(value, location)
    else:
        yield location, value


def _nested(values: Mapping[Location, object]) -> dict[str, object]:
    root: dict[str, object] = {}
    for location, value in values.items():
        inner = root
        for step in location[:-1]:
            below = inner.setdefault(str(step), {})
            assert isinstance(below, dict)  # noqa: S101 - for the type checker: no leaf's place leads through another
            inner = below
        inner[str(location[-1])] = value
    return root


def _settings(config: Config, given: Mapping[Location, _Given]) -> Iterator[Setting]:
    dumped = config.model_dump(mode="json")
    for location in _leaves(dumped, given):
        value: JsonValue = value_at(dumped, tuple(map(str, location)))
        if location == ("backend", "url"):
            value = config.backend_shown
        origin = given[location].origin if location in given else DEFAULT
        yield Setting(dotted(location), value, origin)


def _leaves(dumped: dict[str, JsonValue], given: Mapping[Location, _Given]) -> Iterator[Location]:
    """The place of every value in the order of the model; of a mapping by name, of every one that is given."""
    for location in places(Config, leaves=True):
        if isinstance(value_at(dumped, tuple(map(str, location))), dict):
            yield from (each for each in given if each[: len(location)] == location)
        else:
            yield location
