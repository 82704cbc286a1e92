"""One small JSON per shared object, as long as that is there: shared/<hh>/<stack>.json.

Written only under the claim of the object's stack. What uses it stands in the records of runs (`Record.shared`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, Field, JsonValue

from stacks.engine import StackName, shard, shared_stack
from stacks.errors import DamagedFileError
from stacks.store import Store, walk

SHARED_RECORD_VERSION: Final = 1
_FOLDER: Final = "shared"
_DIGITS: Final = 2  # of a shard; a backend's folder may hold other things of that name


class SharedKind(StrEnum):
    """How long an object stays: VERSIONED is made anew for other inputs, DURABLE is updated and outlives all runs."""

    VERSIONED = "versioned"
    DURABLE = "durable"


class SharedPhase(StrEnum):
    """WANTED is an object that is being made or updated, or whose maker died half-way."""

    WANTED = "wanted"
    READY = "ready"


class SharedRecord(BaseModel, frozen=True):
    """The record of a shared object. Unknown fields are ignored.

    `digest` leads to the template of the run that made it, `inputs` is the hash of what it was made of. `made_at` is
    empty until it was there once, `marked_at` unless it is to be removed.
    """

    v: int = SHARED_RECORD_VERSION
    name: str
    stack_name: str
    kind: SharedKind
    phase: SharedPhase
    target: str
    template: str
    digest: str
    place: str
    inputs: str
    outputs: dict[str, JsonValue] = Field(default_factory=dict)
    wanted_at: datetime
    made_at: datetime | None = None
    marked_at: datetime | None = None

    @property
    def stack(self) -> StackName:
        """The stack of the object."""
        return shared_stack(self.stack_name)

    def changed(self, **fields: object) -> SharedRecord:
        """The record with some fields replaced."""
        return self.model_copy(update=fields)


class SharedRecords:
    """The records of one backend's shared objects. Reading never changes anything."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, stack: StackName) -> SharedRecord | None:
        """The record of a shared object."""
        content = self._store.read(_path(stack))
        try:
            return None if content is None else SharedRecord.model_validate_json(content)
        except ValueError as error:
            raise DamagedFileError(_path(stack)) from error

    def write(self, record: SharedRecord) -> None:
        """Replace the record; the caller holds the claim of its stack."""
        self._store.write(_path(record.stack), record.model_dump_json(indent=1).encode())

    def delete(self, stack: StackName) -> None:
        """Forget a shared object; the caller holds the claim of its stack."""
        self._store.delete(_path(stack))

    def all(self, on_damage: Callable[[DamagedFileError], None]) -> Iterator[SharedRecord]:
        """Every record that can be read, the others are told; one that vanishes meanwhile is left out."""
        for sorted_in, name in walk(self._store, _FOLDER):
            if len(sorted_in) == _DIGITS and name.endswith(".json"):
                try:
                    record = self.read(shared_stack(name.removesuffix(".json")))
                except DamagedFileError as error:
                    on_damage(error)
                    continue
                if record is not None:
                    yield record


def _path(stack: StackName) -> str:
    return f"{_FOLDER}/{shard(stack.stack)}/{stack.stack}.json"
