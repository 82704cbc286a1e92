"""Puts right what nobody waits for any more: half-made, finished, overdue, wished away, or owned by no run.

It decides from what is known (launchers.overdue), then takes the claim of the run, looks again, and acts only if the
same is still due. So it never works on a run beside another command, and several at once do no harm; one leads, so that
they do not work for nothing. What lives in a place that is not reached from here is left to whoever reconciles there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from launchers import retiring
from launchers.factory import launcher_for
from launchers.launcher import RunLauncher
from launchers.life import ASKED, ENDED, Cause, adopt_under, dismantle, end
from launchers.looking import look
from launchers.overdue import Kind, Seen, Step, overdue
from launchers.strays import strays
from launchers.workspace import Workspace
from stacks.claims import Claim
from stacks.engine import StackName
from stacks.errors import (
    DamagedFileError,
    EngineError,
    RunLauncherError,
    RunNotFoundError,
    StackLockedError,
    Started,
)
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record

LEADER: Final = StackName("reconcile", "leader")
_NOW: Final = timedelta(0)


@dataclass(frozen=True)
class Action:
    """One thing that was done, or would be (`done` is False), and why; `error` says why it could not be.

    `subject` is a run's id, or what else was found: a stack, a claim, a lease, a folder.
    """

    subject: str
    what: str
    why: str
    done: bool = True
    error: str = ""


@dataclass(frozen=True)
class Known:
    """What a pass goes by: the stacks, listed before the records, and the records that cannot be read."""

    stacks: set[StackName]
    records: list[Record]
    damaged: list[DamagedFileError]


class Reconciler:
    """Reconciles the runs of one backend, as far as they live where this process can look. Safe to run anywhere.

    Only runs of the workspace's own owner are touched; workers and stacks that no record tells of are anybody's.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._launchers: dict[tuple[str, str], RunLauncher[Any]] = {}
        self.unowned = 0
        """How many objects the last pass found that no run owns."""

    @contextmanager
    def lead(self, timeout: timedelta = _NOW) -> Iterator[None]:
        """Be the only one who reconciles this owner's runs in this place; raises StackLockedError with the leader."""
        owner = self._workspace.owner
        of_owner = f"-{hashlib.sha256(owner.encode()).hexdigest()[:12]}" if owner else ""
        stack = StackName(LEADER.project, f"{LEADER.stack}-{self._workspace.place_name}{of_owner}")
        with self._workspace.backend.claims.hold(stack, "reconcile", timeout):
            yield

    def seen(self) -> Known:
        """What is there now; changes nothing."""
        if self._workspace.backend.identity() is None:
            return Known(set(), [], [])  # nothing was ever launched here
        damaged: list[DamagedFileError] = []
        stacks = set(self._workspace.engine.stacks())  # first: a stack is made after its record
        return Known(stacks, list(self._workspace.records.all(damaged.append)), damaged)

    def once(self, *, dry_run: bool = False, known: Known | None = None) -> Iterator[Action]:
        """Do what is due, one after the other, and tell each; with `dry_run` tell only. What fails is told and left."""
        if self._workspace.backend.identity() is None:
            return
        if not dry_run:
            self._workspace.engine.prepare()
            self._workspace.backend.open()
        known = known or self.seen()
        damaged = known.damaged
        yield from map(_unread, damaged)
        for record, step in self.due(known.records):
            yield from self._told(record, step, dry_run=dry_run)
        yield from self._shared(known.records, dry_run=dry_run)
        self.unowned = 0
        if not damaged:  # else a worker might belong to the run whose record cannot be read
            for stray in strays(self._workspace, known.stacks, known.records, self._launcher):
                self.unowned += 1
                yield from self._attempted(stray.subject, "removed", stray.why, stray.remove, dry_run=dry_run)

    def _shared(self, runs: list[Record], *, dry_run: bool) -> Iterator[Action]:
        """What is due on shared objects; whose record cannot be read is told."""
        damaged: list[DamagedFileError] = []
        for each in retiring.due(self._workspace, runs, damaged.append):
            yield from self._attempted(each.subject, each.step.what, each.step.why, each.perform, dry_run=dry_run)
        yield from map(_unread, damaged)

    def due(self, records: list[Record]) -> list[tuple[Record, Step]]:
        """What is due on these runs; changes nothing. Runs that somebody works on are left out."""
        found = []
        for record, status in self.statuses([each for each in records if each.owner == self._workspace.owner]):
            step = self._step(record, status)
            if step is not None and not self._workspace.backend.claims.held(record.stack):
                found.append((record, step))
        return found

    def remove_one(self, records: list[Record]) -> Action | None:
        """Remove the first of these runs that has ended and is past its keep; None where there is none."""
        for record, step in self.due(records):
            if step.kind is Kind.REMOVE:
                return next(self._told(record, step, dry_run=False), None)
        return None

    def statuses(self, records: list[Record]) -> Iterator[tuple[Record, WorkerStatus]]:
        """How the workers of runs are; those of a target that does not answer are left out."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            groups.setdefault((record.target, record.digest), []).append(record)
        for group in groups.values():
            with suppress(RunLauncherError):  # a target that does not answer: another time
                yield from zip(group, look(self._launcher(group[0]), [each.run_id for each in group]), strict=True)

    def _step(self, record: Record, status: WorkerStatus) -> Step | None:
        launcher = self._launcher(record)
        if status.state is WorkerState.UNKNOWN or (record.is_live and not launcher.reaches(record.place)):
            return None
        wish = self._workspace.records.wish(record.stack)
        seen = Seen(record, status, wish, launcher.template, launcher.keeps_limits)
        return overdue(seen, datetime.now(UTC), self._workspace.records_keep)

    def _told(self, record: Record, step: Step, *, dry_run: bool) -> Iterator[Action]:
        def perform() -> bool:
            return self._perform(record, step)

        yield from self._attempted(record.run_id, step.kind, step.why, perform, dry_run=dry_run)

    @staticmethod
    def _attempted(
        subject: str, what: str, why: str, perform: Callable[[], bool], *, dry_run: bool
    ) -> Iterator[Action]:
        if dry_run:
            yield Action(subject, what, why, done=False)
            return
        try:
            done = perform()
        except StackLockedError:
            return  # somebody works on it
        except (RunLauncherError, OSError) as error:
            yield Action(subject, what, why, done=False, error=str(error))
            return
        if done:
            yield Action(subject, what, why)

    def _perform(self, seen: Record, step: Step) -> bool:
        """Take the claim, look again, and act if the same is still due; False if it is not."""
        with self._workspace.backend.claims.hold(seen.stack, "reconcile", _NOW) as claim:
            record = self._workspace.records.read(seen.run_id)
            if record is None or record.attempt != seen.attempt:
                return False
            launcher = self._launcher(record)
            again = self._step(record, launcher.status(record.run_id))
            if again is None or again.kind is not step.kind:
                return False
            _ACTS[step.kind](launcher, record, claim, again)
            return True

    def _launcher(self, record: Record) -> RunLauncher[Any]:
        key = record.target, record.digest
        if key not in self._launchers:
            self._launchers[key] = launcher_for(record.run_id, workspace=self._workspace)
        return self._launchers[key]


def _unread(error: DamagedFileError) -> Action:
    return Action("a record", "left alone", "it cannot be read", done=False, error=str(error))


def _mend(launcher: RunLauncher[Any], record: Record, claim: Claim, step: Step) -> None:
    """Bring the worker of a half-made launch into the state, or leave nothing of it but its record."""
    with suppress(RunNotFoundError):
        adopt_under(launcher, record, claim)
        return
    left = dismantle(launcher, record, claim)[1]
    if left:
        message = f"{left} objects of run {record.run_id} do not end"
        raise EngineError(message, started=Started.YES)
    failed = record.changed(phase=Phase.FAILED, error=f"{step.why}, before its worker was there")
    launcher.workspace.records.write(failed)


def _terminate(launcher: RunLauncher[Any], record: Record, claim: Claim, _: Step) -> None:
    if record.is_live:
        end(launcher, record, claim, ASKED)
    launcher.workspace.records.grant(record.stack)


def _end(launcher: RunLauncher[Any], record: Record, claim: Claim, step: Step) -> None:
    why = WorkerStatus(state=WorkerState.FAILED, reason=step.limit, message=step.why)
    launcher.workspace.records.wish_end(record, "reconcile", reason=step.limit, message=step.why)
    end(launcher, record, claim, Cause(terminated=True, account=why))


def _remove(launcher: RunLauncher[Any], record: Record, claim: Claim, _: Step) -> None:
    _discard(launcher, end(launcher, record, claim, ENDED), claim, _)


def _write_off(launcher: RunLauncher[Any], record: Record, claim: Claim, step: Step) -> None:
    why = WorkerStatus(state=WorkerState.FAILED, reason="lost", message=step.why)
    end(launcher, record, claim, Cause(terminated=False, account=why))


def _discard(launcher: RunLauncher[Any], record: Record, _: Claim, __: Step) -> None:
    """Remove the output that is kept of a run's attempts, and write down that it is gone."""
    for attempt in record.earlier:
        launcher.discard(record.changed(archive=attempt.archive))
    launcher.discard(record)
    earlier = tuple(each.model_copy(update={"archive": None}) for each in record.earlier)
    launcher.workspace.records.write(record.changed(archive=None, earlier=earlier))


def _forget(launcher: RunLauncher[Any], record: Record, claim: Claim, step: Step) -> None:
    _discard(launcher, record, claim, step)
    launcher.workspace.records.grant(record.stack)
    launcher.workspace.records.delete(record.run_id)


_ACTS: Final[dict[Kind, Callable[[RunLauncher[Any], Record, Claim, Step], None]]] = {
    Kind.MEND: _mend,
    Kind.TERMINATE: _terminate,
    Kind.END: _end,
    Kind.REMOVE: _remove,
    Kind.WRITE_OFF: _write_off,
    Kind.DISCARD: _discard,
    Kind.FORGET: _forget,
}
