"""Removes shared objects: versioned ones that no run used for long, and durable ones when somebody retires them.

Why no run loses what it uses is told in launchers.sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from launchers.factory import launcher_for
from launchers.values import Durable
from stacks.engine import StackName
from stacks.errors import DamagedFileError, EngineError, RunLauncherError, StackLockedError, UsageError
from stacks.handle import WorkerHandle
from stacks.records import Record
from stacks.shared_records import SharedKind, SharedRecord

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher
    from launchers.workspace import Workspace
    from stacks.claims import Claim

_NOW: Final = timedelta(0)
_PATIENCE: Final = timedelta(seconds=30)  # that a retirement waits for a launch that makes or updates an object


class Doing(StrEnum):
    """What is done with a shared object, in the words in which it is told."""

    MARK = "marked"
    KEEP = "kept"
    REMOVE = "removed"


@dataclass(frozen=True)
class Step:
    """One thing to do with a shared object, and why."""

    what: Doing
    why: str


@dataclass(frozen=True)
class Due:
    """A step that is due; `perform` looks once more under the claim and answers False if it is not due any more."""

    subject: str
    step: Step
    perform: Callable[[], bool]


def due(workspace: Workspace, runs: list[Record], on_damage: Callable[[DamagedFileError], None]) -> Iterator[Due]:
    """What is due on the shared objects of places that are reached from here; changes nothing."""
    for record in workspace.shared_records.all(on_damage):
        step = _step(workspace, record, runs)
        if step is None or workspace.backend.claims.held(record.stack):
            continue
        with suppress(RunLauncherError):  # a target that is not installed or does not answer: another time
            launcher = launcher_of(workspace, record)
            if launcher.reaches_shared(record.place):
                yield Due(f"shared {record.stack.stack}", step, partial(_perform, launcher, record, step))


def overdue(
    record: SharedRecord, runs: Iterable[Record], now: datetime, keep: timedelta, wait: timedelta
) -> Step | None:
    """The next step on an object that nobody works on, given the records of all runs; None where nothing is due."""
    if record.made_at is None:
        return Step(Doing.REMOVE, "the launch that made it died half-way")
    if record.kind is SharedKind.DURABLE:
        return None
    using = [run for run in runs if uses(run, record.stack)]
    live = [run.run_id for run in using if run.is_live]
    if live:
        return None if record.marked_at is None else Step(Doing.KEEP, f"run {live[0]} uses it")
    if record.marked_at is not None:
        return None if now - record.marked_at < wait else Step(Doing.REMOVE, "no run uses it since it was marked")
    last = max([record.made_at, *(run.removed.at if run.removed else run.wanted_at for run in using)])
    return None if now - last < keep else Step(Doing.MARK, f"no run used it since {last:%Y-%m-%d %H:%M:%S}")


def uses(run: Record, stack: StackName) -> bool:
    """True if a run's record names this shared object."""
    return any(use.stack == stack.stack for use in run.shared)


def all_runs(workspace: Workspace) -> list[Record]:
    """The records of all runs whose launch began before this; raises DamagedFileError for one that cannot be read."""
    ids = {*workspace.records.ids(), *workspace.records.ids()}  # twice: see launchers.sharing
    read = (workspace.records.read(run_id) for run_id in sorted(ids))
    return [record for record in read if record is not None]


def launcher_of(workspace: Workspace, record: SharedRecord) -> RunLauncher[Any]:
    """The launcher that made an object, with its template as it was then."""
    origin = WorkerHandle(
        target=record.target,
        run_id="shared",
        place=record.place,
        backend="",
        template=record.template,
        digest=record.digest,
        fingerprint="",
    )
    return launcher_for(origin, workspace=workspace)


def _step(workspace: Workspace, record: SharedRecord, runs: Iterable[Record]) -> Step | None:
    return overdue(record, runs, datetime.now(UTC), workspace.shared_keep, workspace.shared_wait)


def _perform(launcher: RunLauncher[Any], seen: SharedRecord, step: Step) -> bool:
    """Take the claim, look again, and act if the same is still due; the mark was written before runs are listed."""
    workspace = launcher.workspace
    with workspace.backend.claims.hold(seen.stack, "reconcile", _NOW) as claim:
        record = workspace.shared_records.read(seen.stack)
        again = None if record is None else _step(workspace, record, all_runs(workspace))
        if record is None or again is None or again.what is not step.what:
            return False
        if step.what is Doing.REMOVE:
            dispose(launcher, record, claim)
        else:
            marked_at = datetime.now(UTC) if step.what is Doing.MARK else None
            workspace.shared_records.write(record.changed(marked_at=marked_at))
        return True


def dispose(launcher: RunLauncher[Any], record: SharedRecord, claim: Claim, *, data: bool = False) -> None:
    """Destroy an object and forget it; what a durable one holds stays unless `data` says otherwise. Repeatable."""
    engine, stack, limit = launcher.workspace.engine, record.stack, launcher.workspace.engine_timeout
    try:
        engine.destroy(stack, claim, launcher.providers(), limit)
    except StackLockedError:
        raise
    except EngineError:  # what the state does not know of may be in the way
        launcher.sweep_shared(record, data=data)
        engine.destroy(stack, claim, launcher.providers(), limit)
    launcher.sweep_shared(record, data=data)
    engine.remove(stack, claim)
    launcher.workspace.shared_records.delete(stack)


# ---- durable objects, which nothing but this removes ----


def durable_of(workspace: Workspace, template: str) -> list[Durable]:
    """The durable objects of a template's name in the place that is reached from here; changes nothing."""
    runs = all_runs(workspace)
    return [_look(launcher, record, runs) for launcher, record in _durable(workspace, template)]


def retire(workspace: Workspace, template: str) -> list[Durable]:
    """Remove the durable objects of a template's name in the place that is reached from here, with all they hold.

    Returns what was removed. Raises UsageError with the ids of the live runs that use one of them; then nothing was
    done. May be repeated, as after a crash.
    """
    workspace.engine.prepare()
    with ExitStack() as held:
        mine = []
        for launcher, seen in _durable(workspace, template):
            claim = held.enter_context(workspace.backend.claims.hold(seen.stack, "retire", _PATIENCE))
            record = workspace.shared_records.read(seen.stack)
            if record is not None:
                mine.append((launcher, record, claim))
        _refuse_used(workspace, template, [record for _, record, _ in mine])
        removed = [_look(launcher, record, []) for launcher, record, _ in mine]
        for launcher, record, claim in mine:
            dispose(launcher, record, claim, data=True)
        return removed


def _refuse_used(workspace: Workspace, template: str, records: list[SharedRecord]) -> None:
    """Mark them, then look for runs that use them: a launch at once sees the mark, or is seen."""
    for record in records:
        workspace.shared_records.write(record.changed(marked_at=datetime.now(UTC)))
    runs = all_runs(workspace)
    users = sorted({run.run_id for record in records for run in runs if run.is_live and uses(run, record.stack)})
    if not users:
        return
    for record in records:
        workspace.shared_records.write(record.changed(marked_at=None))
    message = (
        f"runs use what template {template} shares: {', '.join(users)}. Terminate them, then retire it; "
        "nothing was removed"
    )
    raise UsageError(message)


def _durable(workspace: Workspace, template: str) -> list[tuple[RunLauncher[Any], SharedRecord]]:
    """In the order of their names, so that two who take all their claims never wait for each other."""
    found = []
    for record in workspace.shared_records.all(_refuse_damaged):
        if (record.kind, record.template) == (SharedKind.DURABLE, template):
            launcher = launcher_of(workspace, record)
            if launcher.reaches_shared(record.place):
                found.append((launcher, record))
    return sorted(found, key=lambda each: each[1].stack)


def _refuse_damaged(error: DamagedFileError) -> None:
    raise error


def _look(launcher: RunLauncher[Any], record: SharedRecord, runs: list[Record]) -> Durable:
    users = tuple(sorted(run.run_id for run in runs if run.is_live and uses(run, record.stack)))
    return Durable(record.name, record.stack.full, users, launcher.data_of(record))
