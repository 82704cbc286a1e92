"""What may stand under `run_launcher: config:` in dagster.yaml, in Dagster's own terms, and the values that it becomes.

Durations are in seconds, as everywhere in dagster.yaml. Loads nothing but dagster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from dagster import BoolSource, DagsterInvalidDefinitionError, Field, IntSource, Map, Noneable, Permissive, StringSource

_PREVIOUS: Final = {
    "module": Field(StringSource, description="The module of the launcher, as it stood under run_launcher."),
    "class": Field(StringSource, description="Its class."),
    "config": Field(Permissive(), is_required=False, default_value={}, description="Its config."),
}
_SHARE: Final = {
    "percent": Field(
        IntSource, is_required=False, default_value=100, description="So many of 100 new runs, chosen by their ids."
    ),
    "tags": Field(
        Map(str, str), is_required=False, default_value={}, description="Only runs that have all of these tags."
    ),
}
_RECONCILE: Final = {
    "enabled": Field(
        BoolSource,
        is_required=False,
        default_value=True,
        description="Reconcile in a thread of the process that launches; `run-launcher dagster reconcile` is better.",
    ),
    "interval_seconds": Field(
        IntSource, is_required=False, default_value=15, description="Between two looks of that thread."
    ),
    "settle_seconds": Field(
        IntSource,
        is_required=False,
        default_value=30,
        description="How long a worker may live on once Dagster says that its run is over.",
    ),
}
CONFIG: Final = {
    "template": Field(
        Noneable(StringSource),
        is_required=False,
        default_value=None,
        description="The launcher template of runs that choose none; by default the one of run-launcher.yaml.",
    ),
    "config_file": Field(
        Noneable(StringSource),
        is_required=False,
        default_value=None,
        description="The path of run-launcher.yaml; by default it is found as on the command line.",
    ),
    "launch_timeout_seconds": Field(
        IntSource, is_required=False, default_value=30, description="After that no worker of a launch starts."
    ),
    "unknown_grace_seconds": Field(
        IntSource,
        is_required=False,
        default_value=900,
        description="How long a worker that cannot be asked counts as running, before Dagster hears of it.",
    ),
    "allow_remote_code": Field(
        BoolSource,
        is_required=False,
        default_value=False,
        description="Launch processes for code locations of other hosts, whose code is on this one too.",
    ),
    "reconcile": Field(_RECONCILE, is_required=False, description="What nobody waits for any more is put right."),
    "previous": Field(
        Noneable(_PREVIOUS),
        is_required=False,
        default_value=None,
        description="The launcher that was there before: it goes on to own every run that this one did not launch.",
    ),
    "share": Field(
        Noneable(_SHARE),
        is_required=False,
        default_value=None,
        description="Launch only a part of the new runs; the others are launched by `previous`.",
    ),
}


@dataclass(frozen=True)
class Previous:
    """The launcher that was there before."""

    module: str
    cls: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """The config of the launcher; raises DagsterInvalidDefinitionError for values that contradict each other."""

    template: str | None = None
    config_file: str | None = None
    launch_timeout: timedelta = timedelta(seconds=30)
    unknown_grace: timedelta = timedelta(minutes=15)
    allow_remote_code: bool = False
    reconcile: bool = True
    interval: timedelta = timedelta(seconds=15)
    settle: timedelta = timedelta(seconds=30)
    previous: Previous | None = None
    percent: int = 100
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """The settings of a config that Dagster has checked."""
        reconcile = config.get("reconcile") or {}
        previous, share = config.get("previous"), config.get("share")
        if share is not None and previous is None:
            message = "run_launcher: config: share leaves the other runs to `previous`, which is not there: add it"
            raise DagsterInvalidDefinitionError(message)
        share = share or {}
        return cls(
            template=config.get("template"),
            config_file=config.get("config_file"),
            launch_timeout=_seconds(config, "launch_timeout_seconds", 30, least=1),
            unknown_grace=_seconds(config, "unknown_grace_seconds", 900),
            allow_remote_code=config.get("allow_remote_code", False),
            reconcile=reconcile.get("enabled", True),
            interval=_seconds(reconcile, "interval_seconds", 15, least=1),
            settle=_seconds(reconcile, "settle_seconds", 30),
            previous=previous and Previous(previous["module"], previous["class"], previous.get("config") or {}),
            percent=_within(share, "percent", 100, 0, 100),
            tags=share.get("tags") or {},
        )


def _seconds(config: Mapping[str, Any], name: str, default: int, least: int = 0) -> timedelta:
    return timedelta(seconds=_within(config, name, default, least, 10**8))


def _within(config: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = int(config.get(name, default))
    if not least <= value <= most:
        message = f"run_launcher: config: {name} is {value}: it must be from {least} to {most}"
        raise DagsterInvalidDefinitionError(message)
    return value
