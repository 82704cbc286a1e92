"""ps, status and why: how runs are; they change nothing but what `ps` tidies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar

from launchers.ages import age
from launchers.commands.choice import Choice
from launchers.commands.output import Shape, command_line, in_words, lasted, pairs, table, write
from launchers.commands.selecting import Asking, choose, chosen, shaped
from launchers.commands.shapes import ExplainedInfo, explained_info, run_info
from launchers.factory import launcher_for
from stacks.errors import RunLauncherError

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from launchers.values import Explanation
    from stacks.handle import WorkerStatus
    from stacks.records import Record

_T = TypeVar("_T")
_TIDIED: Final = 20  # of the oldest runs that have ended, among which one may be removed


def ps(session: Session, choice: Choice, output: Shape) -> None:
    """See the command."""
    workspace = session.workspace()
    records = choose(workspace, choice, or_all=True)
    states = Asking(workspace, records.values()).statuses()
    rows = [(record, states[run_id]) for run_id, record in records.items()]
    write(output, [run_info(*row) for row in rows], lambda: run_table(rows), records)
    ended = [record for record, status in rows if status.state.ended and record.removed is None]
    if ended:
        from launchers.commands.tidying import tidy  # noqa: PLC0415 - not for a list that shows nothing to tidy

        tidy(workspace, ended[-_TIDIED:])


def status(session: Session, names: list[str], output: Shape) -> int:
    """See the command. A run that cannot be asked about hinders no other; the exit code is that of the first."""
    choice = Choice(tuple(names))
    told, code = _each(session, choice, lambda launcher, run_id: launcher.status(run_id))
    if told or not choice.one:
        show(output, choice, told)
    return code


def why(session: Session, choice: Choice, output: Shape) -> int:
    """See the command. As with status, one run hinders no other."""
    told, code = _each(session, choice, lambda launcher, run_id: launcher.why(run_id))
    if told or not choice.one:
        infos: list[ExplainedInfo] = [explained_info(*each) for each in told]
        names = (record.run_id for record, _ in told)
        write(output, shaped(choice, infos), lambda: _blocks(_explained(*each) for each in told), names)
    return code


def _each(
    session: Session, choice: Choice, ask: Callable[[RunLauncher[Any], str], _T]
) -> tuple[list[tuple[Record, _T]], int]:
    """What each run's launcher answers, and the exit code of the first that could not; the others are told as well."""
    workspace = session.workspace()
    answers: list[tuple[Record, _T]] = []
    codes: list[int] = []
    for run_id, record in chosen(workspace, choice).items():
        try:
            answers.append((record, ask(launcher_for(run_id, workspace=workspace), run_id)))
        except RunLauncherError as error:
            codes.append(session.report(error, run_id))
    return answers, next(iter(codes), 0)


def show(output: Shape, choice: Choice, rows: list[tuple[Record, WorkerStatus]]) -> None:
    """Write how runs are: all there is to know of each."""
    infos = [run_info(*row) for row in rows]
    names = (record.run_id for record, _ in rows)
    write(output, shaped(choice, infos), lambda: _blocks(_shown(*row) for row in rows), names)


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


def _blocks(blocks: Iterable[list[str]]) -> list[str]:
    """Blocks of lines, with an empty line between two."""
    return list(chain.from_iterable(["", *block] if number else block for number, block in enumerate(blocks)))


def _shown(record: Record, status: WorkerStatus) -> list[str]:
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


def _explained(record: Record, told: Explanation) -> list[str]:
    status = told.status
    facts = [("reason", status.reason or ""), ("command", command_line(record.command)), *told.facts.items()]
    lines = [f"run {_named(record)}: {in_words(status)}{lasted(status)}", *pairs(facts)]
    if told.last_lines:
        lines.append(f"last {len(told.last_lines)} lines:" if len(told.last_lines) > 1 else "last line:")
        lines.extend(f"| {line}" for line in told.last_lines)
    return lines


def _named(record: Record) -> str:
    return f"{record.run_id} (attempt {record.attempt})" if record.attempt else record.run_id
