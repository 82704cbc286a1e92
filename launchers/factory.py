"""Makes launchers: from a template's name or value, or from a run or handle alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from launchers.caps import read_caps
from launchers.config import load_config
from launchers.connections import read_connections
from launchers.disconnected import DisconnectedLauncher
from launchers.launcher import RunLauncher
from launchers.registry import launcher_class, template_model
from launchers.settings import Config
from launchers.templates import Library, Loaded
from launchers.templates.choosing import choose
from launchers.templates.keeping import SEPARATOR, kept, load_kept
from launchers.templates.rules import Rules
from launchers.workspace import Workspace
from programs.args import Connection, LauncherTemplate
from stacks.backend import Backend
from stacks.errors import ConfigurationError, RunNotFoundError, TemplateError
from stacks.handle import WorkerHandle
from stacks.records import Record


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
        templates=Library(config.templates.folders),
        shared_keep=config.shared.keep,
        shared_wait=config.shared.wait,
        progress=progress or _silent,
        limits=read_caps(config.limits, config.origin_of),
        connections=read_connections(config.connections, config.origin_of),
    )


def load_launcher(
    template: str | LauncherTemplate | Loaded | None = None,
    *,
    tags: Mapping[str, str] | None = None,
    config: Config | None = None,
    workspace: Workspace | None = None,
) -> RunLauncher[Any]:
    """The launcher of a template: its name, its path, NAME@DIGEST, its value, or what was read of it.

    Without one, the configuration's routes choose by the run's tags, then its default. A launcher of a file launches
    what the file says at each launch. A template's value has no owner but the caller: without `overrides` of its own it
    does not limit the run's variables. Raises TemplateError or ConfigurationError; makes nothing on disk.
    """
    config = config or load_config()
    workspace = workspace or make_workspace(config)
    if isinstance(template, LauncherTemplate):
        if template.extends is not None:
            message = f"extends: {template.extends}: only the file of a template extends another one"
            raise TemplateError(message)
        connection = workspace.connections.of(template, f"template {template.target}")
        launcher = _launcher(workspace, template, template.target, connection)
        if template.GOVERNANCE & template.model_fields_set:
            launcher.rules = Rules(launcher.name, template, origin="the caller's own template")
        return launcher
    if isinstance(template, Loaded):
        return _of(workspace, template)
    name = template or choose(config, tags or {}).template
    return _named(workspace, name)


def _named(workspace: Workspace, name: str) -> RunLauncher[Any]:
    """The launcher of a name, which looks at each launch whether its file has changed."""
    stem, is_kept, digest = name.partition(SEPARATOR)
    if is_kept and "/" not in name:
        past = load_kept(workspace.records, stem, digest)
        launcher = _of(workspace, past)
        with suppress(TemplateError):  # a template that is gone, or broken, has no say in who may choose it
            launcher.rules = replace(past.rules(), now=workspace.templates.load(stem).rules())
        return launcher
    loaded = workspace.templates.load(name)
    current = _of(workspace, loaded)

    def renewed() -> RunLauncher[Any]:
        return current if workspace.templates.load(name) is loaded else _named(workspace, name)

    current.renew = renewed
    return current


def _of(workspace: Workspace, loaded: Loaded) -> RunLauncher[Any]:
    connection = workspace.connections.of(loaded.template, loaded.places.get(("connection",), loaded.origin))
    launcher = _launcher(workspace, loaded.template, loaded.name, connection)
    launcher.rules = loaded.rules()
    return launcher


def launcher_for(
    run: WorkerHandle | Record | str, *, config: Config | None = None, workspace: Workspace | None = None
) -> RunLauncher[Any]:
    """The launcher that watches and ends a run: from its handle alone, or from its id at this backend.

    Its template is the one that the run was launched with, as it was then, and its connection the one of that name, as
    it is now: where it leads to another place, or is gone, the worker is UNKNOWN. Raises RunNotFoundError for an
    unknown id.
    """
    workspace = workspace or make_workspace(config)
    origin = workspace.records.read(run) if isinstance(run, str) else run
    if origin is None:
        message = f"no run {run!r} is known at {workspace.backend.location}"
        raise RunNotFoundError(message)
    template = kept(workspace.records, origin.digest, origin.target)
    try:
        return _of(workspace, Loaded(origin.template, template, f"that of run {origin.run_id}"))
    except TemplateError:
        return DisconnectedLauncher(workspace, template, origin.template)


def launchers_of(target: str, workspace: Workspace) -> Iterator[RunLauncher[Any]]:
    """A launcher for each place that the target is known to lead to: without a connection, and with each of its own.

    They can look and remove, and launch nothing.
    """
    names = [each.name for each in workspace.connections.each if each.target == target]
    try:
        model = template_model(target)
        for name in ("", *names):
            template = model.model_construct(target=target, connection=name)  # it launches nothing
            yield _launcher(workspace, template, target, workspace.connections.of(template, target))
    except ConfigurationError:
        return  # what the target needs is not installed: nothing of it was launched from here


def _launcher(
    workspace: Workspace, template: LauncherTemplate, name: str, connection: Connection | None
) -> RunLauncher[Any]:
    launcher: RunLauncher[Any] = launcher_class(template.target)(workspace, template, name, connection)
    return launcher


def _silent(_: str) -> None:
    """Progress that nobody asked for."""
