"""What a worker on the `process` target may be. Loads pydantic only, so that reading a template loads no SDK."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypedDict

from pydantic import BaseModel, Field, field_validator

from programs.args import Duration, KeepOverrides, LauncherTemplate, Resources, ResourcesOverrides, Size
from programs.references import EnvReference, FileReference

_MOST: Final = 2**20  # bytes of all files of a template
_LONGEST: Final = 255  # bytes of one part of a file's name: NAME_MAX of Linux


class Limits(BaseModel, frozen=True, extra="forbid"):
    """What one process of the worker may use; refused where the platform cannot enforce it.

    memory: bytes of address space (RLIMIT_AS); cpu_time: CPU time in whole seconds (RLIMIT_CPU);
    open_files: descriptors (RLIMIT_NOFILE).
    """

    memory: Size | None = None
    cpu_time: Duration | None = None
    open_files: Annotated[int, Field(gt=3)] | None = None

    @field_validator("cpu_time")
    @classmethod
    def _whole_seconds(cls, value: timedelta | None) -> timedelta | None:
        if value is not None and value < timedelta(seconds=1):
            message = "the smallest limit of CPU time is 1s"
            raise ValueError(message)
        return value


class ProcessTemplate(LauncherTemplate, frozen=True, extra="forbid"):
    """A process group on the launcher's host.

    `cwd` defaults to the caller's folder. With `inherit_env` the worker gets the caller's environment less PULUMI_*;
    then `env`, the run's own environment and `secrets` are laid over it, in this order. `resources` is what a worker is
    counted with, and enforced by nobody; `limits.memory` stands for `resources.memory` where that is left out.
    `shared_folder` is a folder that all runs of the template share and that outlives them; `files` are in a folder that
    is read-only, by names relative to it, made once for all runs with the same files.
    """

    LATER: ClassVar[frozenset[str]] = LauncherTemplate.LATER | {"resources", "shared_folder", "files"}
    SHARED_ONLY: ClassVar[frozenset[str]] = frozenset({"files"})
    DURABLE: ClassVar[frozenset[str]] = frozenset({"shared_folder"})

    target: Literal["process"] = "process"
    cwd: Path | None = None
    inherit_env: bool = True
    env: dict[str, str] = Field(default_factory=lambda: {"PYTHONUNBUFFERED": "1"})
    secrets: dict[str, EnvReference | FileReference] = Field(default_factory=dict)
    limits: Limits = Limits()
    resources: Resources = Resources()
    shared_folder: bool = False
    files: dict[str, str] = Field(default_factory=dict)

    def counts(self) -> Resources:
        """See LauncherTemplate."""
        if self.resources.memory is not None:
            return self.resources
        return self.resources.model_copy(update={"memory": self.limits.memory})

    @field_validator("files")
    @classmethod
    def _files(cls, value: dict[str, str]) -> dict[str, str]:
        _check_names(value)
        size = sum(len(text.encode(errors="replace")) for text in value.values())
        if size > _MOST:
            message = f"they have {size} bytes; the limit of all together is {_MOST}"
            raise ValueError(message)
        return value

    @field_validator("cwd")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            message = f"{str(value)!r} must be an absolute path (or be left out, for the caller's folder)"
            raise ValueError(message)
        return value


class LimitsOverrides(TypedDict, total=False):
    """See Limits."""

    memory: str | int | None
    cpu_time: str | timedelta | None
    open_files: int | None


class ProcessOverrides(TypedDict, total=False):
    """What a run may ask to have otherwise than its ProcessTemplate says, as far as that one lets it."""

    cwd: str | Path | None
    inherit_env: bool
    env: dict[str, str]
    files: dict[str, str]
    limits: LimitsOverrides
    resources: ResourcesOverrides
    grace: str | timedelta
    start_timeout: str | timedelta
    max_runtime: str | timedelta | None
    keep: KeepOverrides


def _check_names(names: Collection[str]) -> None:
    """Refuse names that lead out of the folder, that no file can have, or of which one would be in another one."""
    for name in names:
        parts = name.split("/")
        if "" in parts or {".", ".."} & set(parts) or "\0" in name:
            message = f"{name!r} is no name of a file in a folder: write it like etl.sql or queries/etl.sql"
            raise ValueError(message)
        if any(len(part.encode(errors="replace")) > _LONGEST for part in parts):
            message = f"{name[:40]!r}… is too long for the name of a file"
            raise ValueError(message)
        around = next((other for other in names if name.startswith(f"{other}/")), None)
        if around is not None:
            message = f"{around!r} cannot be both a file and the folder of {name!r}"
            raise ValueError(message)
