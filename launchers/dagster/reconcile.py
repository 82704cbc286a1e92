"""Brings Dagster's account of its runs and ours together.

Dagster never tells a launcher that it gave up on a run, and never asks about one that has not started. So, on each
pass, of this instance's own runs only (their records name its run storage as owner):
- a run that is over in Dagster, and whose worker lives on, is ended.
- a run that was deleted in Dagster is ended, after two looks and an age; never where the storage shows no run at all.
- a run that Dagster takes for starting, started or canceling, and whose worker is gone, is reported: as failed, with
  what the target says, or as canceled.
Then the reconciler of all targets does what is due on our side: it carries out the wishes, and keeps what `keep` says.

Races: a worker's status is asked before the run is read for the last time, so all that a worker wrote before its end is
seen. What Dagster's monitor does is left to it where it may resume runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from dagster import DagsterError, DagsterEventType, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG
from sqlalchemy.exc import SQLAlchemyError

from launchers.dagster.binding import Binding
from launchers.dagster.ending import OVER, settle_canceled
from launchers.dagster.health import explain, in_words
from launchers.dagster.launching import ANNOUNCED
from launchers.reconcile import Action, Reconciler
from stacks.errors import EngineError, RunLauncherError
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record

_OPEN: Final = (DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING)
_OVER: Final = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_MARGIN: Final = timedelta(seconds=30)  # beyond the time limit of a launch, after which nobody works on it any more
_LOOKS: Final = 2  # after which a run that was not there counts as deleted
_PAGE: Final = 500  # run ids that one query names
_RECENT: Final = timedelta(minutes=15)


@dataclass(frozen=True)
class Figures:
    """What a pass saw, for gauges: seconds of each launch of the last quarter of an hour, by target and template."""

    launches: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    oldest_starting: float = 0.0
    unowned: int = 0


class DagsterReconciler:
    """Reconciles the runs of one Dagster instance. Safe to run anywhere, any number of them; one leads at a place.

    `alone`: there will be one pass only, so it looks a second time where a run was deleted, after this while.
    """

    def __init__(self, binding: Binding, alone: timedelta | None = None) -> None:
        self._binding = binding
        self._alone = alone
        self._instance = binding.instance
        self._base = Reconciler(binding.workspace)
        self._missed: dict[str, int] = {}
        """At how many looks in a row a run was not there in Dagster."""
        self._whole = True
        """False where a record cannot be read, so that a run without one may yet have one."""
        self.figures = Figures()

    def lead(self, timeout: timedelta = timedelta(0)) -> AbstractContextManager[None]:
        """Be the only one who reconciles this instance's runs in this place; raises StackLockedError."""
        return self._base.lead(timeout)

    def once(self, *, dry_run: bool = False) -> Iterator[Action]:
        """Do what is due and tell it; with `dry_run` tell only. Raises EngineError where Dagster's storage is away."""
        try:
            yield from self._once(dry_run=dry_run)
        except (SQLAlchemyError, DagsterError) as error:
            message = f"Dagster's storage does not answer, so nothing is decided: {error}"
            raise EngineError(message) from error

    def _once(self, *, dry_run: bool) -> Iterator[Action]:
        if self._binding.workspace.backend.identity() is None:
            return  # nothing was ever launched here, or the backend's folder is away
        known = self._base.seen()
        mine = [record for record in known.records if record.owner == self._binding.owner]
        yield from self._judged(mine, dry_run=dry_run)
        self._whole = not known.damaged
        yield from self._reported({each.run_id: each for each in mine}, dry_run=dry_run)
        acted = False
        for action in self._base.once(dry_run=dry_run, known=known):
            acted = acted or action.done
            yield action
        if acted:  # a worker that was just ended leaves a run that is to be reported
            yield from self._reported(self._records_of_open(), dry_run=dry_run)
        self.figures = self._figures(mine)

    # ---- what Dagster says is over ----

    def _judged(self, records: list[Record], *, dry_run: bool) -> Iterator[Action]:
        live = [each for each in records if each.is_live]
        runs = self._runs(live)
        if self._alone is not None and self._missed:
            threading.Event().wait(self._alone.total_seconds())
            runs = self._runs(live)
        for record, status in self._base.statuses(live):
            run = runs.get(record.run_id)
            if status.state in {WorkerState.STARTING, WorkerState.RUNNING}:
                why = self._deleted(record) if run is None else self._over(run)
                if why is not None:
                    yield from self._end(record, why, run, dry_run=dry_run)

    def _over(self, run: RunRecord) -> str | None:
        """Why the worker of a run that Dagster has finished with is to end; its last steps are left to it."""
        status = run.dagster_run.status
        since = datetime.now(UTC) - _aware(run.update_timestamp)
        if status not in _OVER or since < self._binding.settings.settle:
            return None
        return f"its run is {status.value} in Dagster"

    def _deleted(self, record: Record) -> str | None:
        """Why the worker of a run that Dagster does not know any more is to end, at the second look."""
        old = datetime.now(UTC) - record.wanted_at > self._binding.workspace.orphan_age
        if self._missed.get(record.run_id, 0) < _LOOKS or not old or self._instance.get_runs_count() == 0:
            return None
        return "its run was deleted in Dagster"

    def _end(self, record: Record, why: str, run: RunRecord | None, *, dry_run: bool) -> Iterator[Action]:
        """Wish for the worker's end; the reconciler of all targets carries it out at once."""
        if dry_run:
            yield Action(record.run_id, "terminated", why, done=False)
            return
        workspace = self._binding.workspace
        if workspace.records.wish(record.stack) is None:
            workspace.records.wish_end(record, f"{workspace.caller}, since {why},")
            if run is not None:
                self._binding.report(run.dagster_run, f"Ending the run worker: {why}, and it lived on")

    # ---- what Dagster does not know yet ----

    def _reported(self, records: dict[str, Record], *, dry_run: bool) -> Iterator[Action]:
        open_runs = {each.dagster_run.run_id: each for each in self._instance.get_run_records(_in(*_OPEN))}
        known = {run_id: records[run_id] for run_id in open_runs if run_id in records}
        statuses = {record.run_id: status for record, status in self._base.statuses(list(known.values()))}
        for run_id, run in open_runs.items():
            if run_id in statuses:
                yield from self._compared(run, known[run_id], statuses[run_id], dry_run=dry_run)
            elif run_id not in known and self._whole:
                yield from self._interrupted(run, dry_run=dry_run)

    def _compared(self, run: RunRecord, record: Record, status: WorkerStatus, *, dry_run: bool) -> Iterator[Action]:
        """Report a run whose worker is gone, or never was."""
        if status.state not in OVER or not self._is_ours_to_report(run, record):
            return
        yield from self._report(run, status, lambda: self._account(record.run_id, status), dry_run=dry_run)

    def _report(
        self, run: RunRecord, status: WorkerStatus, account: Callable[[], str], *, dry_run: bool
    ) -> Iterator[Action]:
        """Tell Dagster that a run is over: canceled where that was asked for, else failed, with the account of it."""
        run_id, canceling = run.dagster_run.run_id, run.dagster_run.status is DagsterRunStatus.CANCELING
        what, why = f"reported {'canceled' if canceling else 'failed'}", in_words(status)
        if dry_run:
            yield Action(run_id, what, why, done=False)
        elif settle_canceled(self._binding, run_id, status) if canceling else self._fail(run.dagster_run, account()):
            yield Action(run_id, what, why)

    def _is_ours_to_report(self, run: RunRecord, record: Record) -> bool:
        """False while its launch may be repeated, or where Dagster's monitor may resume it."""
        if record.phase in {Phase.WANTED, Phase.FAILED} and not self._launch_is_over(run):
            return False
        monitored = self._instance.run_monitoring_enabled and self._instance.run_monitoring_max_resume_run_attempts > 0
        return run.dagster_run.status is not DagsterRunStatus.STARTED or not monitored

    def _interrupted(self, run: RunRecord, *, dry_run: bool) -> Iterator[Action]:
        """Report a run whose launch died before anything was written down of it."""
        if run.dagster_run.status is DagsterRunStatus.STARTED or not self._launch_is_over(run):
            return
        if not self._was_ours(run.dagster_run):
            return
        why = "its launch was interrupted before there was a worker"
        nothing = WorkerStatus(state=WorkerState.NOT_FOUND, message=why)
        yield from self._report(run, nothing, lambda: f"The run cannot start any more: {why}", dry_run=dry_run)

    def _launch_is_over(self, run: RunRecord) -> bool:
        """True once no launch of the run can be under way."""
        age = datetime.now(UTC) - _aware(run.update_timestamp)
        return age > self._binding.settings.launch_timeout + _MARGIN

    def _was_ours(self, run: DagsterRun) -> bool:
        """True of a run that we announced, or, where we alone launch, of one that no launcher left a trace in."""
        events = self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        alone = self._binding.launches and self._binding.previous is None
        alone = alone and not events and GRPC_INFO_TAG not in run.tags
        return alone or any(ANNOUNCED in event.message for event in events)

    def _fail(self, run: DagsterRun, account: str) -> bool:
        """Report a run as failed, if its status is still the one that was seen."""
        again = self._instance.get_run_by_id(run.run_id)
        if again is None or again.status is not run.status:
            return False
        self._instance.report_run_failed(again, account)
        return True

    def _account(self, run_id: str, status: WorkerStatus) -> str:
        begin = "The run worker is gone, and the run was not reported to have ended."
        try:
            return f"{begin}\n{explain(self._binding, run_id)}"
        except RunLauncherError:
            return f"{begin} {in_words(status)}"

    # ---- looking ----

    def _runs(self, records: list[Record]) -> dict[str, RunRecord]:
        ids = [record.run_id for record in records]
        pages = [ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE)]
        found = {
            each.dagster_run.run_id: each
            for page in pages
            for each in self._instance.get_run_records(RunsFilter(run_ids=page))
        }
        self._missed = {run_id: self._missed.get(run_id, 0) + 1 for run_id in set(ids) - found.keys()}
        return found

    def _records_of_open(self) -> dict[str, Record]:
        """The records, read anew, of the runs that Dagster takes for unfinished."""
        ids = [each.dagster_run.run_id for each in self._instance.get_run_records(_in(*_OPEN))]
        records = (self._binding.workspace.records.read(run_id) for run_id in ids)
        return {each.run_id: each for each in records if each is not None and each.owner == self._binding.owner}

    def _figures(self, records: list[Record]) -> Figures:
        now = datetime.now(UTC)
        launches: dict[tuple[str, str], list[float]] = {}
        for record in records:
            if record.launched_at is not None and now - record.launched_at < _RECENT:
                took = (record.launched_at - record.wanted_at).total_seconds()
                launches.setdefault((record.target, record.template), []).append(took)
        mine = {record.run_id for record in records}
        starting = self._instance.get_run_records(_in(DagsterRunStatus.STARTING))
        ages = [
            (now - _aware(each.update_timestamp)).total_seconds()
            for each in starting
            if each.dagster_run.run_id in mine
        ]
        return Figures(launches, max(ages, default=0.0), self._base.unowned)


def _in(*statuses: DagsterRunStatus) -> RunsFilter:
    return RunsFilter(statuses=list(statuses))


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
