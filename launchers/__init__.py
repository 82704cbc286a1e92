"""run-launcher: launches the worker of a run, watches it, and ends it without leaving anything behind.

    from launchers import Run, load_launcher

    launched = load_launcher("process").launch(Run.new(["python", "etl.py"]))

Importing this package loads neither Pulumi nor any target's SDK; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launchers.factory import launcher_for, load_launcher
    from launchers.launcher import RunLauncher
    from launchers.settings import Config
    from launchers.values import Ejected, Explanation, Found, Launched, Terminated
    from programs.args import LauncherTemplate, Run
    from programs.docker.template import DockerTemplate
    from programs.process.template import ProcessTemplate
    from stacks.errors import RunLauncherError
    from stacks.handle import WorkerHandle, WorkerState, WorkerStatus

__all__ = [
    "Config",
    "DockerTemplate",
    "Ejected",
    "Explanation",
    "Found",
    "Launched",
    "LauncherTemplate",
    "ProcessTemplate",
    "Run",
    "RunLauncher",
    "RunLauncherError",
    "Terminated",
    "WorkerHandle",
    "WorkerState",
    "WorkerStatus",
    "launcher_for",
    "load_launcher",
]

_HOMES = {
    "Config": "launchers.settings",
    "DockerTemplate": "programs.docker.template",
    "Ejected": "launchers.values",
    "Explanation": "launchers.values",
    "Found": "launchers.values",
    "Launched": "launchers.values",
    "LauncherTemplate": "programs.args",
    "ProcessTemplate": "programs.process.template",
    "Run": "programs.args",
    "RunLauncher": "launchers.launcher",
    "RunLauncherError": "stacks.errors",
    "Terminated": "launchers.values",
    "WorkerHandle": "stacks.handle",
    "WorkerState": "stacks.handle",
    "WorkerStatus": "stacks.handle",
    "launcher_for": "launchers.factory",
    "load_launcher": "launchers.factory",
}


def _refuse_strangers() -> None:
    """Raise ImportError where a folder of the user's with the name of one of our packages would be imported."""
    own = Path(__file__).parent.parent
    for name in ("programs", "stacks"):
        spec = find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).parent.parent != own:
            there = "nowhere" if spec is None else next(iter(spec.submodule_search_locations or [str(spec.origin)]))
            message = (
                f"run-launcher's package {name!r} is hidden by {there}: rename that folder, or start from another one"
            )
            raise ImportError(message)


_refuse_strangers()


def __getattr__(name: str) -> object:
    """Load a public name at its first use."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
