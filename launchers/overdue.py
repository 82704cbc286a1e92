"""What is overdue on a run: decided from what is known of it, without touching anything.

Times are those of the template that the run was launched with; ages count from what the record or the target says.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from programs.args import LauncherTemplate
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record, Wish

_MARGIN: Final = timedelta(seconds=10)  # beyond a limit that the target itself enforces


class Kind(StrEnum):
    """What is done, in the words in which it is told."""

    MEND = "mended"
    TERMINATE = "terminated"
    END = "ended"
    REMOVE = "removed"
    WRITE_OFF = "written off"
    DISCARD = "discarded"
    FORGET = "forgotten"


@dataclass(frozen=True)
class Step:
    """One thing to do on a run, and why; `limit` is the limit that it has passed, for Kind.END."""

    kind: Kind
    why: str
    limit: str = ""


@dataclass(frozen=True)
class Seen:
    """What is known of a run: its record, how its worker is, whether its end is wished for, and its template."""

    record: Record
    status: WorkerStatus
    wish: Wish | None
    template: LauncherTemplate
    keeps_limits: bool = True
    """True if the target itself ends what is overdue, and needs its time for it."""

    @property
    def keep(self) -> timedelta:
        """How long its worker and output are kept after its end."""
        kept = self.template.keep
        return kept.succeeded if self.status.state is WorkerState.SUCCEEDED else kept.failed


def overdue(seen: Seen, now: datetime, records_keep: timedelta) -> Step | None:
    """The next step on a run that nobody works on and whose place can be asked; None where nothing is due."""
    record, status = seen.record, seen.status
    if not record.is_live:
        return _of_the_past(seen, now, records_keep)
    if seen.wish is not None:
        return Step(Kind.TERMINATE, f"{seen.wish.by} asked for its end at {seen.wish.at:%Y-%m-%d %H:%M:%S}")
    if record.phase is Phase.WANTED:
        return Step(Kind.MEND, "its launcher died half-way")
    if status.state is WorkerState.NOT_FOUND:
        return Step(Kind.WRITE_OFF, "its worker is gone: it was removed by somebody else")
    return _finished(seen, now) if status.state.ended else _too_long(seen, now)


def _of_the_past(seen: Seen, now: datetime, records_keep: timedelta) -> Step | None:
    record = seen.record
    since = record.removed.at if record.removed is not None else record.wanted_at
    if now - since > records_keep:
        return Step(Kind.FORGET, f"its record is older than {_words(records_keep)}")
    if seen.wish is not None:
        return Step(Kind.TERMINATE, "a wish to end it was left behind")
    if _has_output(record) and now - (seen.status.ended_at or since) > seen.keep:
        return Step(Kind.DISCARD, f"its output was kept for {_words(seen.keep)}")
    return None


def _has_output(record: Record) -> bool:
    return record.archive is not None or any(each.archive is not None for each in record.earlier)


def _finished(seen: Seen, now: datetime) -> Step | None:
    ended = seen.status.ended_at or seen.record.launched_at or seen.record.wanted_at
    if now - ended <= seen.keep:
        return None
    return Step(Kind.REMOVE, f"it {seen.status.state} and was kept for {_words(seen.keep)}")


def _too_long(seen: Seen, now: datetime) -> Step | None:
    template, status = seen.template, seen.status
    launched = seen.record.launched_at or seen.record.wanted_at
    margin, grace = (_MARGIN, template.grace) if seen.keeps_limits else (timedelta(0), timedelta(0))
    if status.state is WorkerState.STARTING and now - launched > template.start_timeout + margin:
        return Step(Kind.END, f"it did not start within {_words(template.start_timeout)}", "start_timeout")
    if status.state is WorkerState.RUNNING and template.max_runtime is not None:
        allowed = template.max_runtime + grace + margin
        if now - (status.started_at or launched) > allowed:
            return Step(Kind.END, f"it runs longer than {_words(template.max_runtime)}", "max_runtime")
    return None


def _words(value: timedelta) -> str:
    seconds = value.total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
