"""Shared objects: used or made by launches, removed by reconcile or for good by `retire`.

A launch that finds what it needs takes no lock, and no object is removed under a run. Reasoning:
- A launch writes its run's record, which names the objects that it uses, before it reads their records. Whoever
  removes marks an object first, under its claim, and lists the runs after that. So of a launch and a removal at once,
  the launch sees the mark, or the removal sees the run.
- A launch that finds a mark, other inputs or nothing takes the claim, looks again, and takes the mark back, updates or
  makes. A removal holds the same claim from its list to its end.
- Intent first: the object's record says `wanted` before `up`, `ready` after, and is deleted when nothing is left. So a
  maker that dies leaves `wanted`: the next launch that needs the object goes on from there, or reconcile removes it.
- Many that wait for one maker look at the record, not for the claim: they need no turn each.
- A listing may miss a file that is replaced while it is read, on some file systems; so runs are listed twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from launchers.retiring import dispose
from launchers.token_bucket import TokenBucket
from stacks.engine import Deployment, StackName, shared_stack
from stacks.errors import (
    EngineError,
    LaunchFailedError,
    RunCancelledError,
    RunLauncherError,
    StackLockedError,
    TimeLimitError,
)
from stacks.records import Record, SharedUse
from stacks.shared_records import SharedKind, SharedPhase, SharedRecord

if TYPE_CHECKING:
    from pydantic import JsonValue

    from launchers.launcher import RunLauncher
    from launchers.shared import Shared
    from launchers.workspace import Workspace
    from programs.args import ProgramArgs, Run
    from stacks.claims import Claim

_NOW: Final = timedelta(0)
_LOOK: Final = (0.02, 0.3)  # seconds between two looks at an object that somebody else makes: first, last
_MAKING: Final = TokenBucket(burst=10, rate=2.0)
"""How fast this process makes versioned objects: targets limit such calls, as ECS does RegisterTaskDefinition.
https://docs.aws.amazon.com/AmazonECS/latest/APIReference/request-throttling.html"""
_FLIGHTS: Final[defaultdict[str, threading.Lock]] = defaultdict(threading.Lock)
"""One for each object that a thread of this process has waited for: so one thread of many contends for the claim."""


@dataclass(frozen=True)
class Sharing:
    """The shared objects of one launch. `left` tells how much of its time is left."""

    launcher: RunLauncher[Any]
    place: str
    wanted: Mapping[StackName, Shared]
    left: Callable[[], timedelta]

    @classmethod
    def of(cls, launcher: RunLauncher[Any], run: Run, backend_id: str, left: Callable[[], timedelta]) -> Sharing:
        """What a run needs; nothing is looked at yet."""
        wanted = launcher.shared(run)
        place = launcher.shared_place() if wanted else ""
        named = {each.stack(launcher.target, launcher.name, place, backend_id): each for each in wanted}
        return cls(launcher, place, named, left)

    @property
    def uses(self) -> tuple[SharedUse, ...]:
        """What the run's record says of them, before they are read."""
        return tuple(SharedUse(name=shared.name, stack=stack.stack) for stack, shared in self.wanted.items())

    def provide(self, record: Record, args: ProgramArgs[Any]) -> tuple[Record, ProgramArgs[Any]]:
        """Use or make the objects of a run whose record is written; both come back with their outputs.

        Raises LaunchFailedError or TimeLimitError; then nothing is left of an object that was begun.
        """
        if not self.wanted:
            return record, args
        outputs = {shared.name: self._get(stack, record) for stack, shared in self.wanted.items()}
        context = args.context.model_copy(update={"shared": outputs})
        return with_outputs(record, outputs), args.model_copy(update={"context": context})

    def _get(self, stack: StackName, run: Record) -> dict[str, JsonValue]:
        ready = self._ready(stack)
        if ready is not None:
            return ready.outputs
        with self._alone_here(stack):
            pause = _LOOK[0]
            while (ready := self._ready(stack) or self._claimed(stack, run)) is None:
                if self.left() <= _NOW:
                    raise TimeLimitError(_late(stack))
                self._refuse_wished(run)
                time.sleep(random.uniform(0.5, 1.0) * min(pause, self.left().total_seconds()))  # noqa: S311 - no secret
                pause = min(pause * 1.5, _LOOK[1])
        return ready.outputs

    def _ready(self, stack: StackName) -> SharedRecord | None:
        """The object's record, if it can be used as it is."""
        record = self._workspace.shared_records.read(stack)
        usable = record is not None and record.marked_at is None and self._fits(record, stack)
        return record if usable and not self._is_gone(record) else None

    def _fits(self, record: SharedRecord | None, stack: StackName) -> bool:
        if record is None or record.phase is not SharedPhase.READY:
            return False
        return record.inputs == self.wanted[stack].digest

    def _is_gone(self, record: SharedRecord | None) -> bool:
        """True if somebody removed the object behind our back."""
        return record is not None and record.phase is SharedPhase.READY and not self.launcher.has_shared(record)

    def _is_half_made(self, record: SharedRecord) -> bool:
        """True of what a maker that died may have left behind, where the target's create does not take that over."""
        return record.made_at is None and not self.launcher.create_takes_over

    def _claimed(self, stack: StackName, run: Record) -> SharedRecord | None:
        """Make ready under the claim; None where somebody else holds that."""
        with ExitStack() as held:
            try:
                what = f"launch of run {run.run_id}"
                claim = held.enter_context(self._workspace.backend.claims.hold(stack, what, _NOW))
            except StackLockedError:
                return None
            self._refuse_wished(run)
            there = self._workspace.shared_records.read(stack)
            if there is not None and (self._is_gone(there) or self._is_half_made(there)):
                dispose(self.launcher, there, claim)  # its state would tell the engine that there is nothing to make
                there = None
            if there is None or not self._fits(there, stack):
                return self._make(stack, there, claim)
            used = there.changed(marked_at=None)
            self._workspace.shared_records.write(used)
            return used

    def _make(self, stack: StackName, before: SharedRecord | None, claim: Claim) -> SharedRecord:
        """Make the object, or update the durable one that is there."""
        shared, records = self.wanted[stack], self._workspace.shared_records
        if shared.kind is SharedKind.VERSIONED and not _MAKING.wait(self.left().total_seconds()):
            raise TimeLimitError(_late(stack))
        record = self._intent(stack, before)
        try:
            records.write(record)
            deployment = Deployment(stack, lambda: shared.program(stack), providers=self.launcher.providers())
            outputs = self._workspace.engine.up(deployment, claim, self.left())
            ready = record.changed(phase=SharedPhase.READY, outputs=outputs, made_at=datetime.now(UTC))
            records.write(ready)
        except BaseException as error:
            self._undo(record, claim)
            account = self.launcher.failure(error.details) if isinstance(error, EngineError) else None
            if account is not None and isinstance(error, EngineError):
                message = f"what runs of template {self.launcher.name} share could not be made: {account}"
                raise LaunchFailedError(message, details=error.details) from error
            raise
        return ready

    def _intent(self, stack: StackName, before: SharedRecord | None) -> SharedRecord:
        shared, launcher = self.wanted[stack], self.launcher
        return SharedRecord(
            name=shared.name,
            stack_name=stack.stack,
            kind=shared.kind,
            phase=SharedPhase.WANTED,
            target=launcher.target,
            template=launcher.name,
            digest=launcher.template.digest(),
            place=self.place,
            inputs=shared.digest,
            outputs=before.outputs if before else {},
            wanted_at=datetime.now(UTC),
            made_at=before.made_at if before else None,
        )

    def _undo(self, record: SharedRecord, claim: Claim) -> None:
        """Leave nothing of an object that was never there; one that was is updated by the next launch."""
        if record.made_at is None:
            with suppress(RunLauncherError, OSError):  # else the record says `wanted`: the next launch goes on here
                dispose(self.launcher, record, claim)

    def _refuse_wished(self, run: Record) -> None:
        if self._workspace.records.wish(run.stack) is not None:
            message = f"run {run.run_id} was terminated while it was launched"
            raise RunCancelledError(message)

    @contextmanager
    def _alone_here(self, stack: StackName) -> Iterator[None]:
        """Hold back the other threads of this process that need the same object."""
        flight = _FLIGHTS[f"{self._workspace.backend.url} {stack.full}"]
        if not flight.acquire(timeout=self.left().total_seconds()):
            raise TimeLimitError(_late(stack))
        try:
            yield
        finally:
            flight.release()

    @property
    def _workspace(self) -> Workspace:
        return self.launcher.workspace


def _late(stack: StackName) -> str:
    return f"the shared object {stack.stack} was not ready in time"


def with_outputs(record: Record, outputs: Mapping[str, JsonValue]) -> Record:
    """The record of a run with the outputs of the objects that it uses."""
    uses = (use.model_copy(update={"outputs": outputs.get(use.name)}) for use in record.shared)
    return record.changed(shared=tuple(uses))


def outputs_of(workspace: Workspace, record: Record) -> dict[str, JsonValue]:
    """The outputs that a run was, or is to be, launched with; they stay when the objects are gone."""
    found: dict[str, JsonValue] = {}
    for use in record.shared:
        there = None if use.outputs is not None else workspace.shared_records.read(shared_stack(use.stack))
        outputs = there.outputs if there is not None else use.outputs
        if outputs is not None:
            found[use.name] = outputs
    return found
