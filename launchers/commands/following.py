"""logs: what workers printed, of one run as it is, of several line by line with the run's name before it."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from launchers.commands.output import LogShape, writing
from launchers.commands.selecting import chosen
from launchers.commands.session import say
from launchers.commands.shapes import LogLine
from launchers.factory import launcher_for
from launchers.launcher import HasLogs
from launchers.looking import elsewhere
from stacks.errors import Started, UsageError, WrongPlaceError

if TYPE_CHECKING:
    from launchers.commands.choice import Choice
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from stacks.records import Record

_AHEAD: Final = 1000  # lines that are read before they are written


class Stream:
    """What one run printed, and prints."""

    def __init__(self, launcher: RunLauncher[Any], record: Record, *, follow: bool) -> None:
        self.record = record
        self._pieces = pieces(launcher, record, follow=follow)

    def lines(self) -> Iterator[tuple[Record, bytes]]:
        """Its lines, each with the record; the last one may have had no end."""
        rest = b""
        for piece in self._pieces:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield self.record, line
        if rest:
            yield self.record, rest


def logs(session: Session, choice: Choice, output: LogShape, *, follow: bool) -> None:
    """See the command."""
    workspace = session.workspace()
    records = chosen(workspace, choice)
    launchers = {run_id: launcher_for(run_id, workspace=workspace) for run_id in records}
    if output is LogShape.TEXT and len(records) == 1:
        ((run_id, record),) = records.items()
        if max(copy_logs(launchers[run_id], record, follow=follow), default=0) == 0:
            _say_nothing_kept(record)
        return
    streams = [Stream(launchers[run_id], record, follow=follow) for run_id, record in records.items()]
    lines = _merged(streams) if follow else (line for stream in streams for line in stream.lines())
    _write(lines, output, records)


def copy_logs(launcher: RunLauncher[Any], record: Record, *, follow: bool, skip: int = 0) -> Iterator[int]:
    """Write a worker's output to stdout, less the first bytes; yields after each piece how many bytes there were."""
    total = 0
    for piece in pieces(launcher, record, follow=follow):
        with writing():
            sys.stdout.buffer.write(piece[max(0, skip - total) :])
            sys.stdout.buffer.flush()
        total += len(piece)
        yield total


def pieces(launcher: RunLauncher[Any], record: Record, *, follow: bool) -> Iterator[bytes]:
    """A worker's output; raises UsageError for a target that keeps none, WrongPlaceError where it lives elsewhere."""
    if not launcher.may_ask(record):
        raise WrongPlaceError(elsewhere(launcher, record.place).message, started=Started.YES)
    if not isinstance(launcher, HasLogs):
        message = f"the target {launcher.target} keeps no output that could be shown"
        raise UsageError(message)
    return launcher.logs(record, follow=follow)


def _merged(streams: Iterable[Stream]) -> Iterator[tuple[Record, bytes]]:
    """The lines of all streams as they come, until the last has ended; raises what a stream raises."""
    lines: queue.Queue[tuple[Record, bytes] | BaseException | None] = queue.Queue(_AHEAD)

    def read(stream: Stream) -> None:
        try:
            for line in stream.lines():
                lines.put(line)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised below
            lines.put(error)
        else:
            lines.put(None)

    threads = [threading.Thread(target=read, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    running = len(threads)
    while running:
        line = lines.get()
        if isinstance(line, BaseException):
            raise line
        if line is None:
            running -= 1
        else:
            yield line


def _write(lines: Iterable[tuple[Record, bytes]], output: LogShape, records: dict[str, Record]) -> None:
    width = max(map(len, records))
    silent = dict(records)
    for record, line in lines:
        silent.pop(record.run_id, None)
        if output is LogShape.JSON:
            told = LogLine(run_id=record.run_id, attempt=record.attempt, line=line.decode(errors="replace"))
            shown = json.dumps(told.model_dump(mode="json")).encode()
        else:
            shown = record.run_id.ljust(width).encode() + b" | " + line
        with writing():
            sys.stdout.buffer.write(shown + b"\n")
            sys.stdout.buffer.flush()
    for record in silent.values():
        _say_nothing_kept(record)


def _say_nothing_kept(record: Record) -> None:
    if record.removed is not None:
        say(f"nothing is kept of what run {record.run_id} printed")
