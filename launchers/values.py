"""What a launcher answers with: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stacks.handle import WorkerHandle, WorkerState, WorkerStatus


@dataclass(frozen=True)
class Found:
    """A worker that the target knows, by its labels and not by our records."""

    handle: WorkerHandle
    status: WorkerStatus
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Event:
    """A worker as it was seen at one moment; NOT_FOUND for one that was removed.

    `cursor` is what a later watch takes up from; it is the target's own, and lasts as long as its place.
    """

    found: Found
    cursor: str


@dataclass(frozen=True)
class Launched:
    """What a launch returns; `created` is False where the run had been launched before, and nothing was started."""

    handle: WorkerHandle
    created: bool
    status: WorkerStatus

    @property
    def state(self) -> WorkerState:
        """The worker's state at that moment."""
        return self.status.state


@dataclass(frozen=True)
class Terminated:
    """What a termination returns: how the worker ended, how many objects went, and how many are left.

    `done` is False where the end was only begun (`wait=False`).
    """

    run_id: str
    attempt: int
    status: WorkerStatus
    objects: int
    left: int
    done: bool = True


@dataclass(frozen=True)
class Ejected:
    """The folder that a run was ejected to, with the names of its files, and the stack that is operated there.

    Without `backend_named` the folder leaves the backend's URL, which holds a password, to PULUMI_BACKEND_URL.
    """

    run_id: str
    attempt: int
    folder: Path
    stack: str
    files: tuple[str, ...]
    backend_named: bool


@dataclass(frozen=True)
class Data:
    """How much a durable object holds."""

    files: int
    bytes: int


@dataclass(frozen=True)
class Durable:
    """A durable object that runs of a template share: its stack, the live runs that use it, and what it holds.

    `data` is None where the target cannot tell.
    """

    name: str
    stack: str
    users: tuple[str, ...]
    data: Data | None


@dataclass(frozen=True)
class Explanation:
    """Why a run is as it is, in the words of its target."""

    run_id: str
    attempt: int
    status: WorkerStatus
    command: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    last_lines: tuple[str, ...] = ()
