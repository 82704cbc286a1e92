"""ps, status, logs, wait and why: they change nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from launchers.commands.output import (
    RunShape,
    Shape,
    age,
    command_line,
    in_words,
    lasted,
    pairs,
    run_data,
    table,
    write,
)
from launchers.commands.runs import find_run
from launchers.commands.session import say
from launchers.factory import launcher_for
from launchers.launcher import HasLogs
from programs.args import parse_duration
from stacks.errors import DamagedFileError, RunLauncherError, UsageError
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record

if TYPE_CHECKING:
    from datetime import timedelta

    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from launchers.workspace import Workspace

_TIDIED: Final = 20  # of the oldest runs that have ended, among which one may be removed
EXIT_CODES: Final = {
    WorkerState.SUCCEEDED: 0,
    WorkerState.FAILED: 10,
    WorkerState.NOT_FOUND: 6,
    WorkerState.UNKNOWN: 4,
}
"""How a command that waited for an end exits."""


def ps(session: Session, output: RunShape, *, show_all: bool) -> None:
    """See the command."""
    workspace = session.workspace()
    records = [record for record in workspace.records.all(_say_damage) if show_all or _has_more_than_a_record(record)]
    records.sort(key=lambda record: (record.wanted_at, record.run_id), reverse=True)
    states = _statuses(workspace, records)
    rows = [(record, states[record.run_id]) for record in records]
    write(output, [run_data(*row) for row in rows], lambda: run_table(rows), (record.run_id for record in records))
    ended = [record for record, status in rows if status.state.ended and record.removed is None]
    if ended:
        from launchers.commands.tidying import tidy  # noqa: PLC0415 - not for a list that shows nothing to tidy

        tidy(workspace, ended[-_TIDIED:])


def _say_damage(error: DamagedFileError) -> None:
    say(f"run-launcher: {error}")


def status(session: Session, run: str, output: RunShape) -> None:
    """See the command."""
    record, launcher = find_run(session.workspace(), run)
    _show(record, launcher.status(record.run_id), output)


def logs(session: Session, run: str, *, follow: bool) -> None:
    """See the command."""
    record, launcher = find_run(session.workspace(), run)
    total = max(copy_logs(launcher, record, follow=follow), default=0)
    if total == 0 and record.removed is not None:
        say(f"nothing is kept of what run {record.run_id} printed")


def wait(session: Session, run: str, timeout: str | None, output: RunShape) -> int:
    """See the command."""
    limit = None if timeout is None else duration(timeout, "--timeout")
    record, launcher = find_run(session.workspace(), run)
    ended = launcher.wait(record.run_id, timeout=limit)
    _show(launcher.record(record.run_id), ended, output)
    return EXIT_CODES[ended.state]


def why(session: Session, run: str, output: Shape) -> None:
    """See the command."""
    record, launcher = find_run(session.workspace(), run)
    explanation = launcher.why(record.run_id)
    data = {
        **run_data(record, explanation.status),
        "facts": dict(explanation.facts),
        "last_lines": list(explanation.last_lines),
    }

    def text() -> Iterable[str]:
        status = explanation.status
        yield f"run {_named(record)}: {in_words(status)}{lasted(status)}"
        yield from pairs(
            [("reason", status.reason or ""), ("command", command_line(record.command)), *explanation.facts.items()]
        )
        if explanation.last_lines:
            yield f"last {len(explanation.last_lines)} lines:" if len(explanation.last_lines) > 1 else "last line:"
            yield from (f"| {line}" for line in explanation.last_lines)

    write(output, data, text)


def run_table(rows: Iterable[tuple[Record, WorkerStatus]]) -> list[str]:
    """Runs as a table for people."""
    header = ("RUN", "STATE", "TARGET", "TEMPLATE", "AGE", "COMMAND")
    cells = [
        (
            _named(record),
            str(status.state),
            record.target,
            record.template,
            age(record.wanted_at),
            command_line(record.command),
        )
        for record, status in rows
    ]
    return table(header, cells)


def copy_logs(launcher: RunLauncher[Any], record: Record, *, follow: bool, skip: int = 0) -> Iterator[int]:
    """Write a worker's output to stdout, less the first bytes; yields after each piece how many bytes there were."""
    if not isinstance(launcher, HasLogs):
        message = f"the target {launcher.target} keeps no output that could be shown"
        raise UsageError(message)
    total = 0
    for piece in launcher.logs(record, follow=follow):
        sys.stdout.buffer.write(piece[max(0, skip - total) :])
        sys.stdout.buffer.flush()
        total += len(piece)
        yield total


def duration(text: str, flag: str) -> timedelta:
    """The duration that a flag holds; raises UsageError."""
    try:
        value: timedelta = parse_duration(text)  # type: ignore[assignment] # of text it makes nothing else
    except ValueError as error:
        message = f"{flag}: {error}"
        raise UsageError(message) from error
    return value


def _has_more_than_a_record(record: Record) -> bool:
    return record.removed is None and record.phase is not Phase.FAILED


def _statuses(workspace: Workspace, records: Iterable[Record]) -> dict[str, WorkerStatus]:
    """How all these runs are; each target is asked once for each place. One that cannot be asked is UNKNOWN."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record.target, record.place), []).append(record.run_id)
    states: dict[str, WorkerStatus] = {}
    for ids in groups.values():
        try:
            found = launcher_for(ids[0], workspace=workspace).statuses(ids)
        except RunLauncherError as error:
            found = [WorkerStatus(state=WorkerState.UNKNOWN, message=str(error))] * len(ids)
        states.update(zip(ids, found, strict=True))
    return states


def _show(record: Record, status: WorkerStatus, output: RunShape) -> None:
    def text() -> list[str]:
        handle = record.handle
        where = {name: str(value) for name, value in handle.coordinates.items()} if handle else {}
        return pairs(
            [
                ("run", _named(record)),
                ("state", f"{in_words(status)}{lasted(status)}"),
                ("reason", status.reason or ""),
                ("exit code", "" if status.exit_code is None else str(status.exit_code)),
                ("target", record.target),
                ("template", record.template),
                ("place", record.place),
                *where.items(),
                ("launched", f"{record.wanted_at:%Y-%m-%d %H:%M:%S} UTC"),
                ("command", command_line(record.command)),
                ("tags", ", ".join(f"{name}={value}" for name, value in record.tags.items())),
            ]
        )

    write(output, run_data(record, status), text, [record.run_id])


def _named(record: Record) -> str:
    return f"{record.run_id} (attempt {record.attempt})" if record.attempt else record.run_id
