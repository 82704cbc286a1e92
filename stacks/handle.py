"""Where a worker is and how it is: frozen values that cross processes as JSON."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, Field, JsonValue, ValidationError

from stacks.errors import UsageError

HANDLE_VERSION: Final = 1
_SHOWN: Final = 40  # characters of a wrong id that a message repeats
RUN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")


def check_run_id(run_id: str) -> str:
    """Return the id; raise UsageError for one that no backend could hold."""
    if not RUN_ID.fullmatch(run_id) or not run_id.strip("."):
        shown = run_id if len(run_id) <= _SHOWN else f"{run_id[:_SHOWN]}…"
        message = f"{shown!r} is no run id: it takes 1 to 100 of the characters A-Z a-z 0-9 . _ -, and not only dots"
        raise UsageError(message)
    return run_id


class WorkerState(StrEnum):
    """The life of a worker as its target tells it.

    The ends are SUCCEEDED and FAILED. NOT_FOUND is proven absence; UNKNOWN means that the place did not answer,
    or that the handle belongs to another one.
    """

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        """True of a worker that has ended and will not change any more."""
        return self in {WorkerState.SUCCEEDED, WorkerState.FAILED}


class WorkerStatus(BaseModel, frozen=True):
    """A worker's state at one moment; times are aware datetimes in UTC."""

    state: WorkerState
    message: str = ""
    exit_code: int | None = None
    reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


class WorkerHandle(BaseModel, frozen=True):
    """All it takes to find a worker again, from any process that reaches its place.

    `coordinates` are the target's own (process: folder, pid, start time); `place` is what the target says of itself.
    Unknown fields are ignored on reading, so that an older release reads a newer one's handle of the same `v`.
    """

    v: Annotated[int, Field(ge=1)] = HANDLE_VERSION
    target: str
    run_id: str
    attempt: int = 0
    place: str
    backend: str
    template: str
    digest: str
    fingerprint: str
    coordinates: dict[str, JsonValue] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The handle as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> WorkerHandle:
        """Read what `to_json` wrote; raises UsageError for anything else, and for a `v` above this release's."""
        try:
            handle = cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the text"
            message = f"this is no worker handle: {where}: {problem['msg']}"
            raise UsageError(message) from error
        if handle.v > HANDLE_VERSION:
            message = f"this handle is of version {handle.v}, and this release reads up to {HANDLE_VERSION}: upgrade it"
            raise UsageError(message)
        return handle
