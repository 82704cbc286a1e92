"""Everything that may be configured, with its default."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator

from launchers.backend_url import check_url
from programs.args import Duration
from stacks.errors import ConfigurationError
from stacks.location import Location
from stacks.user_folders import user_folder


def _above_zero(value: timedelta) -> timedelta:
    if not value:
        message = "a time limit is longer than 0s"
        raise ValueError(message)
    return value


def _home() -> Path:
    folder = user_folder("data")
    if folder is None:
        message = "this user has no home folder to keep runs in: set HOME, or name a folder in RUN_LAUNCHER_HOME"
        raise ConfigurationError(message)
    return folder


TimeLimit = Annotated[Duration, AfterValidator(_above_zero)]
"""A duration above zero."""


class BackendSettings(BaseModel, frozen=True, extra="forbid"):
    """Where what run-launcher knows of runs is kept, and the file with the key of its secrets.

    Without a URL it is the folder `state` under `home`.
    """

    url: str | None = Field(default=None, repr=False)
    passphrase_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _supported(cls, value: str | None) -> str | None:
        return value if value is None else check_url(value)


class TemplateSettings(BaseModel, frozen=True, extra="forbid"):
    """The template of a launch that names none, and the folders to look for templates in, the first one first.

    The default of `folders` is the folder `templates` beside the project's file and the one beside the user's, as far
    as they exist. A working folder without `run-launcher.yaml` adds none, since `templates` is a common name.
    """

    default: str = Field(default="process", min_length=1)
    folders: tuple[Path, ...] = ()


class EngineSettings(BaseModel, frozen=True, extra="forbid"):
    """Which engine, the path of its command where it is not to be looked for, and its time limit for one operation."""

    kind: Literal["auto", "warm", "cli"] = "auto"
    cli: Path | None = None
    timeout: TimeLimit = timedelta(minutes=5)


class LaunchSettings(BaseModel, frozen=True, extra="forbid"):
    """How long a launch may take; after that no worker of it starts."""

    timeout: TimeLimit = timedelta(seconds=60)


class RecordSettings(BaseModel, frozen=True, extra="forbid"):
    """How long the record of a run that is gone is kept."""

    keep: Duration = timedelta(days=90)


class ReconcileSettings(BaseModel, frozen=True, extra="forbid"):
    """How old a worker must be before it is ended because no run owns it."""

    orphan_age: Duration = timedelta(minutes=10)


class SharedSettings(BaseModel, frozen=True, extra="forbid"):
    """How long a shared object that no run uses stays, and how long it is marked before it is removed."""

    keep: Duration = timedelta(days=7)
    wait: Duration = timedelta(minutes=2)


class Config(BaseModel, frozen=True, extra="forbid"):
    """Every setting. `home` is the folder of all that is kept: state, records, logs and keys."""

    home: Path = Field(default_factory=_home)
    backend: BackendSettings = BackendSettings()
    templates: TemplateSettings = TemplateSettings()
    engine: EngineSettings = EngineSettings()
    launch: LaunchSettings = LaunchSettings()
    records: RecordSettings = RecordSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    shared: SharedSettings = SharedSettings()

    @property
    def backend_url(self) -> str:
        """The backend's URL, the default's included."""
        return self.backend.url or f"file://{self.home / 'state'}"

    @property
    def backend_shown(self) -> str:
        """The backend's URL as it may be shown."""
        return Location(self.backend_url).shown
