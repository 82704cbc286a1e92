"""`run-launcher dagster check`: what would fail under a dagster.yaml, and what to write instead.

It opens no storage and makes nothing; the previous launcher alone is made, since only so it can be known whether that
can be done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml
from dagster import DagsterInvalidConfigError, DagsterInvalidDefinitionError, __version__
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import RunLauncher
from dagster._serdes import ConfigurableClassData
from packaging.version import Version

from launchers.commands.examining import hidden_packages, keeping
from launchers.config import load_config
from launchers.dagster.check_container import check_container, settings_of
from launchers.dagster.code_host import is_here
from launchers.dagster.docker_steps import CLASS as DOCKER
from launchers.dagster.schema import CONFIG, Settings
from launchers.factory import load_launcher, make_workspace
from launchers.findings import Finding, Level, asked
from launchers.launcher import RunLauncher as Launcher
from launchers.settings import Config
from stacks.engines import choose_engine
from stacks.errors import ConfigurationError
from stacks.setup import tools_folder

MODULE: Final = "launchers.dagster"
CLASS: Final = "PulumiRunLauncher"
OLDEST: Final = "1.10"
"""The oldest Dagster that the tests pass with."""
_EPHEMERAL: Final = ("InMemoryRunStorage", "InMemoryEventLogStorage")


def check(file: Path, workspace: Path | None) -> Iterator[Finding]:
    """What is found of a dagster.yaml and, where there is one, a workspace.yaml."""
    old = Version(__version__) < Version(OLDEST)
    text = f"{__version__}: older than {OLDEST}, which is the oldest that is tested: upgrade it" if old else __version__
    yield Finding("dagster", text, Level.BROKEN if old else Level.OK)
    found: list[InstanceRef] = []
    yield asked("file", lambda: _read(file, found))
    for reference in found:
        settings: list[Settings] = []
        yield from _launcher(reference, settings)
        yield from _surroundings(file, reference)
        for each in settings:
            launcher: list[Launcher[Any]] = []
            yield from _configured(each, launcher)
            yield from _instance(reference, each, launcher)
            for made in launcher:
                yield from check_container(reference, each, made)
            yield from _code(workspace, each, launcher)


def _read(file: Path, found: list[InstanceRef]) -> str:
    if not file.is_file():
        message = f"{file}: there is no such file: name it, or set DAGSTER_HOME to its folder"
        raise ConfigurationError(message)
    try:
        found.append(InstanceRef.from_dir(str(file.parent.absolute()), config_filename=file.name))
    except (DagsterInvalidConfigError, yaml.YAMLError) as error:
        message = f"{file}: {error}"
        raise ConfigurationError(message) from error
    return str(file)


def _launcher(reference: InstanceRef, settings: list[Settings]) -> Iterator[Finding]:
    """Whether the launcher is ours, and its config one that it takes."""
    data = reference.run_launcher_data
    if data is None or (data.module_name, data.class_name) != (MODULE, CLASS):
        yield Finding("run_launcher", _instead(data), Level.BROKEN)
        if data is not None and data.class_name == DOCKER:
            yield settings_of(data)
        return
    told = process_config(resolve_to_config_type(CONFIG), dict(data.config_dict))
    if not told.success:
        for error in told.errors or ():
            yield Finding("config", error.message, Level.BROKEN)
        return
    try:
        settings.append(Settings.of(told.value or {}))
    except DagsterInvalidDefinitionError as error:
        yield Finding("config", str(error), Level.BROKEN)
        return
    yield Finding("run_launcher", f"{MODULE}.{CLASS}")


def _instead(data: ConfigurableClassData | None) -> str:
    """What to write in place of another launcher, which goes on to own what it launched; its config is not repeated."""
    previous = data or ConfigurableClassData("dagster", "DefaultRunLauncher", "{}")
    there: dict[str, Any] = {"module": previous.module_name, "class": previous.class_name}
    if previous.config_dict:
        there["config"] = "(what stands there now)"
    template = "docker" if previous.class_name == DOCKER else "process"
    config = {"template": template, "previous": there}
    block = {"run_launcher": {"module": MODULE, "class": CLASS, "config": config}}
    written = yaml.safe_dump(block, sort_keys=False).rstrip()
    return f"it is {previous.class_name}; to launch with run-launcher, write:\n{written}"


def _surroundings(file: Path, reference: InstanceRef) -> Iterator[Finding]:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        text = f"it is not set: start webserver and daemon with DAGSTER_HOME={file.parent.absolute()}"
        yield Finding("DAGSTER_HOME", text, Level.NOTE)
    elif Path(home).absolute() != file.parent.absolute():
        yield Finding("DAGSTER_HOME", f"it is {home}, where another dagster.yaml is read", Level.NOTE)
    storage = reference.storage_data
    told = "" if storage is None else f"{storage.class_name} {storage.config_yaml}"
    if any(name in told for name in _EPHEMERAL):
        text = "it is in memory, where no worker can reach it: leave `storage` out, or name a database"
        yield Finding("storage", text, Level.BROKEN)


def _configured(settings: Settings, launcher: list[Launcher[Any]]) -> Iterator[Finding]:
    """run-launcher's own configuration, its backend, engine and template."""
    loaded: list[Config] = []

    def configuration() -> str:
        file = settings.config_file
        loaded.append(load_config(file=None if file is None else Path(file).expanduser()))
        return file or "found as on the command line"

    yield asked("run-launcher.yaml", configuration)
    for config in loaded:
        yield from keeping(config)
        choice = choose_engine(config.engine.kind, tools_folder(), config.engine.cli)
        if choice.program is None:
            text = f"{choice.kind}, not there yet: `run-launcher setup` brings it, before the first launch has to wait"
            yield Finding("engine", text, Level.BROKEN)
        else:
            yield Finding("engine", f"{choice.kind}, {choice.program}")
        yield asked("template", partial(_template, settings, config, launcher))
    if settings.previous is not None:
        yield _previous(settings)


def _template(settings: Settings, config: Config, launcher: list[Launcher[Any]]) -> str:
    made = load_launcher(settings.template, config=config, workspace=make_workspace(config))
    launcher.append(made)
    return f"{made.name} (target {made.target})"


def _previous(settings: Settings) -> Finding:
    origin = settings.previous
    assert origin is not None  # noqa: S101 - for the type checker
    data = ConfigurableClassData(origin.module, origin.cls, yaml.safe_dump(dict(origin.config)))
    try:
        data.rehydrate(as_type=RunLauncher).dispose()  # type: ignore[type-abstract]
    except Exception as error:  # noqa: BLE001 - whatever it raises is why it cannot be used
        text = f"{origin.module}.{origin.cls} cannot be used: {error}. Install its package here, or correct its config"
        return Finding("previous", text, Level.BROKEN)
    return Finding("previous", f"{origin.module}.{origin.cls}")


def _instance(reference: InstanceRef, settings: Settings, launcher: list[Launcher[Any]]) -> Iterator[Finding]:
    """What the rest of dagster.yaml means for launches."""
    monitoring = _mapping(reference.settings.get("run_monitoring"))
    if not monitoring.get("enabled"):
        text = (
            "it is off: that a worker died is noticed by `run-launcher dagster reconcile` alone, and nothing limits "
            "how long a run may take to start. To switch it on: run_monitoring: {enabled: true}"
        )
        yield Finding("run_monitoring", text, Level.NOTE)
    elif monitoring.get("max_resume_run_attempts"):
        text = (
            "runs are resumed, so Dagster loads the launcher in every process that opens the instance: install "
            "run-launcher in the environments of all code locations too (pip install run-launcher, --no-deps will do)"
        )
        yield Finding("run_monitoring", text, Level.NOTE)
    limit, launch = monitoring.get("start_timeout_seconds", 180), settings.launch_timeout.total_seconds()
    if monitoring.get("enabled") and isinstance(limit, int) and 0 < limit <= launch:
        text = f"start_timeout_seconds is {limit}, but a launch alone may take {launch:g} s: make it longer"
        yield Finding("run_monitoring", text, Level.BROKEN)
    if not _retries(reference):
        text = (
            "a run that meets a backend that is away for longer than launch_timeout_seconds fails: to have it queued "
            "again, write run_queue: {max_user_code_failure_retries: 3}"
        )
        yield Finding("run_queue", text, Level.NOTE)
    storage = reference.storage_data
    for each in launcher:
        shared = storage is not None and "Sqlite" not in storage.class_name
        if shared and each.workspace.backend.location.folder is not None:
            text = (
                "Dagster's storage may be shared by several hosts or containers, and run-launcher's backend is a "
                "folder of this one: if they launch, watch or end runs, name a backend that all of them reach"
            )
            yield Finding("backend", text, Level.NOTE)


def _retries(reference: InstanceRef) -> object:
    queue = {} if reference.run_coordinator_data is None else reference.run_coordinator_data.config_dict
    runs = _mapping(_mapping(reference.settings.get("concurrency")).get("runs"))
    return queue.get("max_user_code_failure_retries") or runs.get("max_user_code_failure_retries")


def _code(file: Path | None, settings: Settings, launcher: list[Launcher[Any]]) -> Iterator[Finding]:
    """Code locations that a worker could not load."""
    if file is None:
        return
    read: list[Mapping[str, Any]] = []
    yield asked("workspace", lambda: _workspace(file, read))
    here = any(each.runs_here for each in launcher) and not settings.allow_remote_code
    for data in read:
        for kind, location in _locations(data):
            name = str(location.get("location_name") or kind)
            host = location.get("host")
            if kind == "grpc_server" and here and isinstance(host, str) and not is_here(host):
                text = (
                    f"its code is served from {host}, and the target {launcher[0].target} runs it here: name a "
                    "template of another target in its container context, or set allow_remote_code: true if it is "
                    "here too"
                )
                yield Finding(name, text, Level.BROKEN)
            yield from hidden_packages(file.parent / str(location.get("working_directory") or ""))


def _workspace(file: Path, read: list[Mapping[str, Any]]) -> str:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"{file}: {error}"
        raise ConfigurationError(message) from error
    read.append(_mapping(data))
    return str(file)


def _locations(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    entries = data.get("load_from")
    for entry in entries if isinstance(entries, list) else []:
        for kind, location in _mapping(entry).items():
            yield kind, _mapping(location)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
