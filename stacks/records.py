"""One small JSON per run that outlives its stack: what was wanted, launched, ended, removed.

records/<hh>/<run-id>.json             written only under the claim of the attempt's stack
wishes/<hh>/<stack>.json               "terminate wanted": may be written by anyone at any time, so it never races
templates/<digest>.json                resolved templates, kept for good, so that a digest can be read later
names/<template>/<digest>              which of them were launched under a name
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, Field, JsonValue

from stacks.engine import PROJECT_PREFIX, StackName, shard, stack_name
from stacks.errors import DamagedFileError
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.store import Store, read_json, walk

RECORD_VERSION: Final = 1
TERMINATED: Final = "terminated"
"""The reason of a worker that ended because it was asked to; also what a target tells of one."""


class Phase(StrEnum):
    """How far a run has come; WANTED without a handle is a launch in flight, or one that died half-way."""

    WANTED = "wanted"
    LAUNCHED = "launched"
    FAILED = "failed"
    REMOVED = "removed"


class Removal(BaseModel, frozen=True):
    """What a termination found and did."""

    at: datetime
    objects: int
    left: int = 0
    terminated: bool = True


class Attempt(BaseModel, frozen=True):
    """How an earlier attempt of a run went."""

    attempt: int
    handle: WorkerHandle | None = None
    ended: WorkerStatus | None = None
    removed: Removal | None = None
    archive: str | None = None


class SharedUse(BaseModel, frozen=True):
    """A shared object that a run uses: its name for the program, its stack, and once it was made ready its outputs."""

    name: str
    stack: str
    outputs: dict[str, JsonValue] | None = None


class Record(BaseModel, frozen=True):
    """The record of a run; of its environment it holds names and hashes, never a value. Unknown fields are ignored."""

    v: int = RECORD_VERSION
    run_id: str
    attempt: int
    phase: Phase
    target: str
    template: str
    digest: str
    fingerprints: dict[str, str]
    command: tuple[str, ...]
    env_names: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default_factory=dict)
    place: str
    coordinates: dict[str, JsonValue] = Field(default_factory=dict)
    cwd: str = ""
    archive: str | None = None
    owner: str = ""
    wanted_at: datetime
    launched_at: datetime | None = None
    handle: WorkerHandle | None = None
    ended: WorkerStatus | None = None
    removed: Removal | None = None
    error: str | None = None
    earlier: tuple[Attempt, ...] = ()
    shared: tuple[SharedUse, ...] = ()

    @property
    def is_live(self) -> bool:
        """True if something of the run may be there: it is being launched, or was and is not removed."""
        return self.removed is None and self.phase is not Phase.FAILED

    @property
    def stack(self) -> StackName:
        """The stack of the record's attempt."""
        return stack_name(self.run_id, self.attempt)

    def changed(self, **fields: object) -> Record:
        """The record with some fields replaced."""
        return self.model_copy(update=fields)


class Wish(BaseModel, frozen=True):
    """Somebody wants an attempt to end; `reason` and `message` are what its end is put down to."""

    v: int = 1
    run_id: str
    attempt: int
    at: datetime
    by: str
    reason: str = TERMINATED
    message: str = "ended by terminate"

    @classmethod
    def of(cls, record: Record, by: str, **account: str) -> Wish:
        """A wish of now."""
        return cls(run_id=record.run_id, attempt=record.attempt, at=datetime.now(UTC), by=by, **account)  # type: ignore[arg-type]

    def accounts_for(self, status: WorkerStatus) -> bool:
        """True of the end of a worker that came after the wish."""
        return status.state.ended and status.ended_at is not None and status.ended_at >= self.at

    def account(self, status: WorkerStatus) -> WorkerStatus:
        """The status of a worker that ended because of the wish."""
        told = {"state": WorkerState.FAILED, "reason": self.reason, "message": self.message}
        return status.model_copy(update=told)


class Records:
    """The records of one backend. Reading never changes anything."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, run_id: str) -> Record | None:
        """The record of a run."""
        content = self._store.read(_path(run_id))
        try:
            return None if content is None else Record.model_validate_json(content)
        except ValueError as error:
            raise DamagedFileError(_path(run_id)) from error

    def write(self, record: Record) -> None:
        """Replace the record; the caller holds the claim of its stack."""
        self._store.write(_path(record.run_id), record.model_dump_json(indent=1).encode())

    def write_first(self, record: Record, template: str) -> None:
        """Write the record of a launch that begins, and keep the template that its digest stands for."""
        self._store.together(
            lambda: self._create(f"templates/{record.digest}.json", template.encode()),
            lambda: self._create(f"names/{record.template}/{record.digest}", b"{}"),
            lambda: self.write(record),
        )

    def write_and_see(self, record: Record) -> Wish | None:
        """Replace the record, and tell whether somebody wants its attempt to end, who wrote so before this began."""
        seen: list[Wish | None] = []
        self._store.together(lambda: self.write(record), lambda: seen.append(self.wish(record.stack)))
        return seen[0]

    def delete(self, run_id: str) -> None:
        """Forget a run; the caller holds the claim of its stack."""
        self._store.delete(_path(run_id))

    def all(self, on_damage: Callable[[DamagedFileError], None]) -> Iterator[Record]:
        """Every record that can be read, the others are told; one that vanishes meanwhile is left out."""
        yield from self._each((name for _, name in walk(self._store, "records")), on_damage)

    def beside(self, run_id: str, on_damage: Callable[[DamagedFileError], None]) -> Iterator[Record]:
        """The records that are sorted with this run's: one of 256 parts of all, whatever their number."""
        yield from self._each(self._store.names(f"records/{shard(run_id)}"), on_damage)

    def _each(self, names: Iterable[str], on_damage: Callable[[DamagedFileError], None]) -> Iterator[Record]:
        for name in names:
            try:
                record = self.read(name.removesuffix(".json"))
            except DamagedFileError as error:
                on_damage(error)
                continue
            if record is not None:
                yield record

    def ids(self) -> list[str]:
        """The ids of all runs, sorted."""
        return sorted(name.removesuffix(".json") for _, name in walk(self._store, "records"))

    def wish(self, stack: StackName) -> Wish | None:
        """The wish that an attempt should end."""
        content = self._store.read(_wish_path(stack))
        try:
            return None if content is None else Wish.model_validate_json(content)
        except ValueError as error:
            raise DamagedFileError(_wish_path(stack)) from error

    def wishes(self) -> Iterator[StackName]:
        """The stacks that somebody wants to end."""
        for shard_name, name in walk(self._store, "wishes"):
            yield StackName(f"{PROJECT_PREFIX}{shard_name}", name.removesuffix(".json"))

    def wish_end(self, record: Record, by: str, **account: str) -> None:
        """Write down that an attempt should end; nothing that is launched of it will stay."""
        wish = Wish.of(record, by, **account)
        self._store.write(_wish_path(record.stack), wish.model_dump_json().encode())

    def grant(self, stack: StackName) -> None:
        """Take back a wish that was carried out."""
        self._store.delete(_wish_path(stack))

    def template(self, digest: str) -> dict[str, JsonValue] | None:
        """A resolved template by its digest; None if it was never launched here."""
        path = f"templates/{digest}.json"
        data = read_json(self._store, path, "target")
        if data is not None and hashlib.sha256(canonical(data).encode()).hexdigest() != digest:
            raise DamagedFileError(path)
        return data

    def digests(self, name: str) -> list[str]:
        """The digests of all templates that were launched under a name, sorted."""
        return self._store.names(f"names/{name}")

    def _create(self, path: str, content: bytes) -> None:
        if self._store.read(path) is None:
            self._store.create(path, content)


def canonical(data: object) -> str:
    """JSON with sorted keys and no blanks: one spelling per meaning."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _path(run_id: str) -> str:
    return f"records/{shard(run_id)}/{run_id}.json"


def _wish_path(stack: StackName) -> str:
    return f"wishes/{stack.shard}/{stack.stack}.json"
