"""terminate: ends workers and removes what their runs made."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launchers.commands.interrupts import Interrupted, noticed
from launchers.commands.looking import run_table
from launchers.commands.output import Shape, table, write
from launchers.commands.selecting import Asking, choose, nothing
from launchers.commands.session import say
from launchers.commands.shapes import ended_info, run_info
from launchers.factory import launcher_for
from stacks.errors import RunCancelledError, RunLauncherError, UsageError

if TYPE_CHECKING:
    from launchers.commands.choice import Choice
    from launchers.commands.session import Session
    from launchers.values import Terminated
    from launchers.workspace import Workspace
    from stacks.handle import WorkerStatus
    from stacks.records import Record


@dataclass(frozen=True)
class Manner:
    """How runs are to be ended."""

    wait: bool
    yes: bool
    dry_run: bool
    break_lock: bool
    abandon: bool
    output: Shape


def terminate(session: Session, choice: Choice, manner: Manner) -> int:
    """See the command. A run that fails to end keeps no other; the exit code is that of the first."""
    asks = not (choice.names or manner.yes or manner.dry_run)
    if asks and choice.selects and not _has_terminal():
        message = "selectors may end many runs: say --yes, or see which with --dry-run"
        raise UsageError(message)
    workspace = session.workspace()
    records = choose(workspace, choice)
    if not records:
        say(f"{nothing(choice)}: nothing to end")
    if manner.dry_run:
        _show(workspace, records, manner.output)
        return 0
    if asks and records:
        _confirm(workspace, records)
    return Ending(session, workspace, records, manner).perform()


class Ending:
    """Ends runs: all are asked first, so that their graces pass at the same time."""

    def __init__(self, session: Session, workspace: Workspace, records: dict[str, Record], manner: Manner) -> None:
        self._session = session
        self._workspace = workspace
        self._open = dict(records)
        self._launchers = {run_id: launcher_for(run_id, workspace=workspace) for run_id in records}
        self._manner = manner
        self._answers: list[Terminated] = []
        self._codes: list[int] = []

    def perform(self) -> int:
        """Return the exit code. Interrupted, it leaves the runs that were asked to end to do so by themselves."""
        try:
            with noticed():
                self._perform()
        except Interrupted:
            self._leave()
            raise
        answers = self._answers
        names = (each.run_id for each in answers)
        write(self._manner.output, [ended_info(each) for each in answers], lambda: _table(answers), names)
        return next(iter(self._codes), 0)

    def _perform(self) -> None:
        if self._manner.wait and any(record.removed is None for record in self._open.values()):
            self._workspace.engine.prepare()
        if self._manner.wait and len(self._open) > 1 and not self._manner.abandon:
            for run_id in self._open:
                self._ask(run_id)
        for run_id in list(self._open):
            self._end(run_id)

    def _ask(self, run_id: str) -> None:
        with suppress(RunLauncherError):  # told when it is ended
            self._launchers[run_id].terminate(run_id, wait=False)

    def _end(self, run_id: str) -> None:
        launcher, manner = self._launchers[run_id], self._manner
        try:
            if manner.abandon:
                self._answers.append(launcher.abandon(run_id))
            else:
                self._answers.append(launcher.terminate(run_id, wait=manner.wait, break_lock=manner.break_lock))
        except RunLauncherError as error:
            self._codes.append(self._session.report(error, run_id))
        self._open.pop(run_id)

    def _leave(self) -> None:
        """Say of each run that is not done what becomes of it; the asking is repeated where it may be half-done."""
        asked = [run_id for run_id, record in self._open.items() if self._workspace.records.wish(record.stack)]
        for run_id in () if self._manner.abandon else asked:
            self._ask(run_id)
            say(f"run {run_id} is asked to end, and ends by itself")
        for run_id in self._open.keys() - asked:
            say(f"run {run_id} was not asked to end")
        if self._open:
            say(f"  run-launcher terminate {' '.join(self._open)}   removes what is left")


def told(ended: Terminated) -> str:
    """What a termination did, in one sentence."""
    if not ended.done:
        return f"run {ended.run_id} is asked to end"
    what = "1 object" if ended.objects == 1 else f"{ended.objects} objects"
    return f"run {ended.run_id} {ended.status.state}; {what} removed, {ended.left} left"


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _confirm(workspace: Workspace, records: dict[str, Record]) -> None:
    """Show what would be ended, and ask; raises RunCancelledError for any answer but yes."""
    say(*run_table(_rows(workspace, records)))
    what = "this run" if len(records) == 1 else f"these {len(records)} runs"
    sys.stderr.write(f"end {what} and remove all that was made? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        message = "nothing was ended"
        raise RunCancelledError(message)


def _show(workspace: Workspace, records: dict[str, Record], output: Shape) -> None:
    rows = _rows(workspace, records)
    write(output, [run_info(*row) for row in rows], lambda: run_table(rows), records)


def _rows(workspace: Workspace, records: dict[str, Record]) -> list[tuple[Record, WorkerStatus]]:
    states = Asking(workspace, records.values()).statuses()
    return [(record, states[run_id]) for run_id, record in records.items()]


def _table(answers: list[Terminated]) -> list[str]:
    header = ("RUN", "STATE", "REMOVED", "LEFT")
    rows = [
        (each.run_id, str(each.status.state), str(each.objects), str(each.left) if each.done else "ending")
        for each in answers
    ]
    return table(header, rows) if rows else []
