"""What `run-launcher dagster check` looks for where workers are containers: what they do not reach or know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from dagster._core.instance.ref import InstanceRef
from dagster._serdes import ConfigurableClassData

from launchers.dagster.code_host import LOOPBACK
from launchers.dagster.docker_fields import in_template
from launchers.dagster.schema import Settings
from launchers.findings import Finding, Level, asked
from launchers.launcher import RunLauncher
from programs.docker.template import DockerTemplate
from stacks.plugins import executables

_STORAGE: Final = ("storage_data", "run_storage_data", "event_storage_data", "compute_logs_data")
"""The parts of an instance that every worker opens."""


def check_container(reference: InstanceRef, settings: Settings, launcher: RunLauncher[Any]) -> Iterator[Finding]:
    """What would fail in the containers of a template of the target docker."""
    template = launcher.template
    if not isinstance(template, DockerTemplate):
        return
    yield asked(launcher.target, lambda: launcher.where(launcher.place()))
    yield asked("plugin", lambda: ", ".join(map(str, executables(launcher.providers()).values())))
    parts = [data for data in (getattr(reference, name) for name in _STORAGE) if data is not None]
    yield from _files(parts, template)
    yield from _variables(parts, template)
    yield from _hosts(parts, template)
    if template.pull != "never":
        limit = f"{settings.launch_timeout.total_seconds():g}"
        text = (
            f"an image that the daemon does not have is pulled within launch_timeout_seconds ({limit}): pull large "
            "ones before, or make it longer"
        )
        yield Finding("image", text, Level.NOTE)


def settings_of(previous: ConfigurableClassData) -> Finding:
    """Where the settings of a DockerRunLauncher belong."""
    lines = [f"- {name}: {instead}" for name, instead in in_template(previous.config_dict)]
    title = "a launcher template of the target docker has the settings that stand there now:"
    return Finding("template", "\n".join([title, *lines]), Level.NOTE)


def _files(parts: list[ConfigurableClassData], template: DockerTemplate) -> Iterator[Finding]:
    """A storage in files of this host that no volume of the template brings into the container."""
    mounts = [Path(each.mount) for each in template.volumes if each.host == each.mount]
    for data in parts:
        folder = data.config_dict.get("base_dir")
        if "Sqlite" not in data.class_name or folder is None:
            continue
        path = Path(folder)
        if not any(path.is_relative_to(mount) for mount in mounts):
            text = (
                f"it is files in {path}, which containers of this template do not see: add to its volumes "
                f"{{host: {path}, mount: {path}}}, where daemon and containers share a machine, or name a database"
            )
            yield Finding("storage", text, Level.BROKEN)
            return


def _variables(parts: list[ConfigurableClassData], template: DockerTemplate) -> Iterator[Finding]:
    """Variables that dagster.yaml takes values from, and the container does not have."""
    if template.env_files:
        return
    given = {*template.env, *template.secrets}
    for name in dict.fromkeys(name for data in parts for name in _named(data.config_dict, "env")):
        if name not in given:
            text = (
                f"dagster.yaml takes a value of its storage from ${name}, and each worker reads it anew: add to the "
                f"template secrets: {{{name}: {{env: {name}}}}}, or to its env"
            )
            yield Finding("storage", text, Level.BROKEN)


def _hosts(parts: list[ConfigurableClassData], template: DockerTemplate) -> Iterator[Finding]:
    if template.network_mode == "host":
        return
    for data in parts:
        for host in _named(data.config_dict, "hostname"):
            if host in LOOPBACK:
                text = (
                    f"it is at {host}, which is the container itself in a worker: name the host as the containers' "
                    "network knows it, or say network_mode: host in the template"
                )
                yield Finding("storage", text, Level.BROKEN)
                return


def _named(value: object, key: str) -> Iterator[str]:
    """The texts that stand under a key, however deep."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == key and isinstance(inner, str):
                yield inner
            yield from _named(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, key)
