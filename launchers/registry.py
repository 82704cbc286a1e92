"""Which targets there are, and where their launcher and template are: a dict one can read, then entry points.

A package of somebody else's adds a target with an entry point of the group `run_launcher.targets`, whose name is the
target's and whose value is "module:NAME" of a `Target`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from launchers.near_miss import suggestion
from programs.args import Connection, LauncherTemplate
from stacks.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP: Final = "run_launcher.targets"
DISTRIBUTION: Final = "run-launcher"


@dataclass(frozen=True)
class Target:
    """Where a target's launcher and template model are ("module:Class"), and the extra that installs its SDK.

    `connection` is where the model of its connections is, a programs.args.Connection; None for a target without. Like
    the template's it stands in a module that loads no SDK, since reading a configuration loads it.
    """

    launcher: str
    template: str
    extra: str | None = None
    connection: str | None = None


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "process": Target("launchers.process:ProcessLauncher", "programs.process.template:ProcessTemplate"),
        "docker": Target(
            "launchers.docker:DockerLauncher",
            "programs.docker.template:DockerTemplate",
            extra="docker",
            connection="programs.docker.template:DockerConnection",
        ),
    }
)


def target_names() -> list[str]:
    """The names of all targets, sorted; ConfigurationError where two packages claim one name."""
    found = _entry_points()
    for name in found:
        _only(name, found)
    return sorted({*TARGETS, *found})


def template_model(target: str) -> type[LauncherTemplate]:
    """The model of the target's templates; ConfigurationError for an unknown target or one that is not installed."""
    found, package = _find(target)
    model = _load(found.template, target, package, found.extra)
    if not (isinstance(model, type) and issubclass(model, LauncherTemplate)):
        message = f"target {target!r} of the package {package!r}: {found.template} is no LauncherTemplate"
        raise ConfigurationError(message)
    return model


def connection_model(target: str) -> type[Connection] | None:
    """The model of the target's connections, None where it has none; ConfigurationError as in template_model."""
    found, package = _find(target)
    if found.connection is None:
        return None
    model = _load(found.connection, target, package, found.extra)
    if not (isinstance(model, type) and issubclass(model, Connection)):
        message = f"target {target!r} of the package {package!r}: {found.connection} is no Connection"
        raise ConfigurationError(message)
    return model


def launcher_class(target: str) -> type[Any]:
    """The launcher of the target; ConfigurationError for an unknown target or one that is not installed."""
    found, package = _find(target)
    launcher = _load(found.launcher, target, package, found.extra)
    if not isinstance(launcher, type):
        message = f"target {target!r} of the package {package!r}: {found.launcher} is no class"
        raise ConfigurationError(message)
    return launcher


def _find(target: str) -> tuple[Target, str]:
    """The target and the package that brings it; the dict comes first, so that a built-in target costs no search."""
    if target in TARGETS:
        return TARGETS[target], DISTRIBUTION
    found = _entry_points()
    if target not in found:
        message = f"unknown target {target!r}{suggestion(target, {*TARGETS, *found}, 'known targets')}"
        raise ConfigurationError(message)
    entry = _only(target, found)
    package = _package(entry)
    loaded = _load(entry.value, target, package, None)
    if not isinstance(loaded, Target):
        message = f"target {target!r} of the package {package!r}: {entry.value} is no launchers.registry.Target"
        raise ConfigurationError(message)
    return loaded, package


def _entry_points() -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, list[metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def _only(name: str, found: Mapping[str, list[metadata.EntryPoint]]) -> metadata.EntryPoint:
    packages = [DISTRIBUTION] if name in TARGETS else []
    packages += sorted(_package(entry) for entry in found[name])
    if len(packages) > 1:
        message = f"target {name!r} is claimed by {' and '.join(packages)}: uninstall one of these packages"
        raise ConfigurationError(message)
    return found[name][0]


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "(unknown)"


def _load(where: str, target: str, package: str, extra: str | None) -> object:
    """The object at "module:NAME"; an import that fails for want of another package says how to install it."""
    module, _, name = where.partition(":")
    try:
        loaded: object = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"launchers", "programs", "stacks"}:
            raise
        wanted = f"{package}[{extra}]" if extra else package
        message = f'target {target!r} cannot be loaded: {error}. Install what it needs: pip install "{wanted}"'
        raise ConfigurationError(message) from error
    except AttributeError as error:
        message = f"target {target!r} of the package {package!r}: {module} has no {name}"
        raise ConfigurationError(message) from error
    return loaded
