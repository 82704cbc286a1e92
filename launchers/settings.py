"""Everything that may be configured, with its default."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, field_validator

from launchers.backend_url import check_url
from launchers.caps import LimitSettings
from launchers.templates.globs import any_matches, matches
from launchers.yaml_nodes import Location as Place
from programs.args import Duration
from programs.bounds import Words
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


class Route(BaseModel, frozen=True, extra="forbid"):
    """The template of runs that have all of these tags, by glob of their values, and come from one of these places."""

    template: str = Field(min_length=1)
    tags: dict[str, str] = Field(default_factory=dict)
    code_locations: Words | None = None

    def fits(self, tags: Mapping[str, str], code_location: str | None) -> bool:
        """True of a run that has all of the tags, and comes from one of the code locations where these are named."""
        located = self.code_locations is None or any_matches(self.code_locations, code_location or "")
        return located and all(name in tags and matches(glob, tags[name]) for name, glob in self.tags.items())


class ConnectionSettings(BaseModel, frozen=True):
    """A connection as it was written: its target, and what that target's own model says; see connections.py."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    target: str = Field(min_length=1)


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
    routes: tuple[Route, ...] = ()
    limits: LimitSettings = LimitSettings()
    connections: dict[str, ConnectionSettings] = Field(default_factory=dict)
    _origins: dict[Place, str] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: object) -> None:
        """Keep where values come from, which whoever read them gives as the context of the validation."""
        if isinstance(context, Mapping):
            self._origins.update(context)

    def origin_of(self, *location: str | int) -> str:
        """Where a value comes from, in words: file and line, a variable, a flag, or the caller's own code."""
        return self._origins.get(location, "set by the caller")

    @property
    def backend_url(self) -> str:
        """The backend's URL, the default's included."""
        return self.backend.url or f"file://{self.home / 'state'}"

    @property
    def backend_shown(self) -> str:
        """The backend's URL as it may be shown."""
        return Location(self.backend_url).shown
