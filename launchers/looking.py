"""How workers are: records, places and what the target finds, joined without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from launchers.life import record_of
from stacks.errors import TargetAwayError
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.processes import ProcessIdentity
from stacks.records import Phase, Record, Removal

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher


_UNKNOWN_ID: Final = WorkerStatus(state=WorkerState.NOT_FOUND, message="no run of this id was launched at this backend")


def look(launcher: RunLauncher[Any], runs: Sequence[WorkerHandle | str | Record]) -> list[WorkerStatus]:
    """The statuses of many runs, with one `find` for all of them; a record that is given is not read again."""
    records = [_record(launcher, run) for run in runs]
    pairs = list(zip(runs, records, strict=True))
    try:
        asked = [record for run, record in pairs if record is not None and _can_ask(launcher, run, record)]
        found = (
            {(each.handle.run_id, each.handle.attempt): each.status for each in launcher.find(asked)} if asked else {}
        )
        return [_status(launcher, run, record, found) for run, record in pairs]
    except TargetAwayError as error:
        return [_untold(run, record, error) for run, record in pairs]


def _record(launcher: RunLauncher[Any], run: WorkerHandle | str | Record) -> Record | None:
    if isinstance(run, Record):
        return run
    if isinstance(run, str):
        return launcher.workspace.records.read(run)
    return launcher.workspace.records.read(run.run_id) or record_of(run)


def _can_ask(launcher: RunLauncher[Any], run: WorkerHandle | str | Record, record: Record) -> bool:
    places = {record.place, run.place if isinstance(run, WorkerHandle) else record.place}
    return record.removed is None and all(launcher.reaches(place) for place in places)


def _status(
    launcher: RunLauncher[Any],
    run: WorkerHandle | str | Record,
    record: Record | None,
    found: dict[tuple[str, int], WorkerStatus],
) -> WorkerStatus:
    if record is None:
        return _UNKNOWN_ID
    if isinstance(run, WorkerHandle) and run.place != record.place and not launcher.reaches(run.place):
        return elsewhere(launcher, run.place)
    told = _by_record(run, record)
    if told is None and not launcher.reaches(record.place):
        return elsewhere(launcher, record.place)
    there = found.get((record.run_id, record.attempt))
    return told or (there and _accounted(launcher, record, there)) or _without_worker(launcher, record)


def _accounted(launcher: RunLauncher[Any], record: Record, status: WorkerStatus) -> WorkerStatus:
    """The end of a worker as the wish for it says, where the target cannot tell why it ended.

    A wish that is gone may have been carried out since the worker was looked at: then the record says how it ended.
    """
    if launcher.tells_why_it_ended or not status.state.ended:
        return status
    records = launcher.workspace.records
    wish = records.wish(record.stack)
    if wish is None:
        now = records.read(record.run_id)
        return (now and now.attempt == record.attempt and _over(now)) or status
    return wish.account(status) if wish.accounts_for(status) else status


def _untold(run: WorkerHandle | str | Record, record: Record | None, error: TargetAwayError) -> WorkerStatus:
    """What can be said of a run while its target does not answer."""
    if record is None:
        return _UNKNOWN_ID
    return _by_record(run, record) or WorkerStatus(state=WorkerState.UNKNOWN, message=str(error))


def _by_record(run: WorkerHandle | str | Record, record: Record) -> WorkerStatus | None:
    """What the record alone tells."""
    attempt = run.attempt if isinstance(run, WorkerHandle) else record.attempt
    return _earlier(record, attempt) if attempt != record.attempt else _over(record)


def _over(record: Record) -> WorkerStatus | None:
    """How a run ended of which nothing but the record is left; it can be told in any place."""
    if record.removed is not None:
        return _removed(record, record.removed)
    if record.phase is Phase.FAILED:
        return WorkerStatus(state=WorkerState.FAILED, reason="launch failed", message=record.error or "")
    return None


def elsewhere(launcher: RunLauncher[Any], place: str) -> WorkerStatus:
    """What can be said of a worker that lives where this launcher cannot look: only where to ask."""
    name = launcher.template.connection
    led = f"; the connection {name!r} led there when it was launched, and does not now" if name else ""
    message = f"this worker lives on {launcher.where(place)}: ask there ({place}){led}"
    return WorkerStatus(state=WorkerState.UNKNOWN, message=message)


def _earlier(record: Record, attempt: int) -> WorkerStatus:
    for each in record.earlier:
        if each.attempt == attempt and each.ended is not None:
            return each.ended
    return WorkerStatus(state=WorkerState.NOT_FOUND, message=f"the run is at attempt {record.attempt}")


def _removed(record: Record, removal: Removal) -> WorkerStatus:
    ended = record.ended or WorkerStatus(state=WorkerState.NOT_FOUND)
    word = "object" if removal.objects == 1 else "objects"
    text = f"removed at {removal.at:%Y-%m-%d %H:%M:%S} ({removal.objects} {word}, {removal.left} left)"
    return ended.model_copy(update={"message": f"{ended.message}; {text}" if ended.message else text})


def _without_worker(launcher: RunLauncher[Any], record: Record) -> WorkerStatus:
    """No worker was found where it should be: it is being launched, was never launched, or was removed by hand."""
    if record.phase is Phase.WANTED:
        holder = launcher.workspace.backend.claims.holder(record.stack)
        if holder is not None and ProcessIdentity.read(holder).alive() is not False:
            return WorkerStatus(state=WorkerState.STARTING, message=f"being launched by process {holder['pid']}")
        message = "its launch was interrupted before a worker was there: launch it again, or terminate it"
        return WorkerStatus(state=WorkerState.NOT_FOUND, message=message)
    ended = launcher.ended_of(record)
    return ended or WorkerStatus(state=WorkerState.NOT_FOUND, message="its worker was removed by somebody else")
