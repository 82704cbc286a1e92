"""Makes launchers: from a template's name or value, or from a run or handle alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from launchers.config import load_config
from launchers.launcher import RunLauncher
from launchers.registry import launcher_class, template_model
from launchers.settings import Config
from launchers.templates import Loaded, load_template
from launchers.workspace import Workspace
from programs.args import LauncherTemplate
from stacks.backend import Backend
from stacks.errors import DamagedFileError, RunNotFoundError
from stacks.handle import WorkerHandle


def make_workspace(
    config: Config | None = None, progress: Callable[[str], None] | None = None, owner: str = ""
) -> Workspace:
    """The backend and engine of a configuration, by default the one that holds here; makes nothing on disk.

    `owner` is whose runs are launched and reconciled; nobody's in particular where it is empty.
    """
    config = config or load_config()
    backend = Backend.at(config.home, config.backend_url, config.backend.passphrase_file)
    return Workspace(
        backend,
        kind=config.engine.kind,
        cli=config.engine.cli,
        launch_timeout=config.launch.timeout,
        engine_timeout=config.engine.timeout,
        records_keep=config.records.keep,
        owner=owner,
        orphan_age=config.reconcile.orphan_age,
        shared_keep=config.shared.keep,
        shared_wait=config.shared.wait,
        progress=progress or _silent,
    )


def load_launcher(
    template: str | LauncherTemplate | Loaded | None = None,
    *,
    config: Config | None = None,
    workspace: Workspace | None = None,
) -> RunLauncher[Any]:
    """The launcher of a template: its name, its path, its value, or what was read of it; by default the configured one.

    Raises TemplateError or ConfigurationError; makes nothing on disk.
    """
    config = config or load_config()
    workspace = workspace or make_workspace(config)
    if isinstance(template, LauncherTemplate):
        return _launcher(workspace, template, template.target)
    loaded = (
        template
        if isinstance(template, Loaded)
        else load_template(template or config.templates.default, config.templates.folders)
    )
    return _launcher(workspace, loaded.template, loaded.name)


def launcher_for(
    run: WorkerHandle | str, *, config: Config | None = None, workspace: Workspace | None = None
) -> RunLauncher[Any]:
    """The launcher that watches and ends a run: from its handle alone, or from its id at this backend.

    Its template is the one that the run was launched with, as it was then. Raises RunNotFoundError for an unknown id.
    """
    workspace = workspace or make_workspace(config)
    origin = run if isinstance(run, WorkerHandle) else workspace.records.read(run)
    if origin is None:
        message = f"no run {run!r} is known at {workspace.backend.location}"
        raise RunNotFoundError(message)
    kept = workspace.records.template(origin.digest)
    try:
        template = template_model(origin.target).model_validate(kept or {"target": origin.target})
    except ValidationError as error:
        path = f"templates/{origin.digest}.json"
        raise DamagedFileError(path) from error
    return _launcher(workspace, template, origin.template)


def _launcher(workspace: Workspace, template: LauncherTemplate, name: str) -> RunLauncher[Any]:
    launcher: RunLauncher[Any] = launcher_class(template.target)(workspace, template, name)
    return launcher


def _silent(_: str) -> None:
    """Progress that nobody asked for."""
