"""terminate: ends workers and removes what their runs made."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from launchers.commands.output import RunShape, table, write
from launchers.commands.runs import find_run
from stacks.errors import RunLauncherError

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.values import Terminated


def terminate(session: Session, names: list[str], output: RunShape, *, wait: bool, break_lock: bool) -> int:
    """See the command. A run that fails to end keeps no other; the exit code is that of the first."""
    workspace = session.workspace()
    launchers = {}
    for name in names:  # all are known before the first is ended
        record, launcher = find_run(workspace, name)
        launchers[record.run_id] = launcher
    if wait and len(launchers) > 1:
        for run_id, launcher in launchers.items():  # so that their graces pass at the same time
            with suppress(RunLauncherError):  # told below
                launcher.terminate(run_id, wait=False)
    answers: list[Terminated] = []
    codes: list[int] = []
    for run_id, launcher in launchers.items():
        try:
            answers.append(launcher.terminate(run_id, wait=wait, break_lock=break_lock))
        except RunLauncherError as error:
            codes.append(session.report(error))
    write(output, [_data(each) for each in answers], lambda: _table(answers), (each.run_id for each in answers))
    return next(iter(codes), 0)


def told(ended: Terminated) -> str:
    """What a termination did, in one sentence."""
    if not ended.done:
        return f"run {ended.run_id} is asked to end"
    what = "1 object" if ended.objects == 1 else f"{ended.objects} objects"
    return f"run {ended.run_id} {ended.status.state}; {what} removed, {ended.left} left"


def _data(ended: Terminated) -> dict[str, Any]:
    return {
        "run_id": ended.run_id,
        "attempt": ended.attempt,
        **ended.status.model_dump(mode="json"),
        "objects": ended.objects,
        "left": ended.left,
        "done": ended.done,
    }


def _table(answers: list[Terminated]) -> list[str]:
    header = ("RUN", "STATE", "REMOVED", "LEFT")
    return (
        []
        if not answers
        else table(
            header,
            [
                (each.run_id, str(each.status.state), str(each.objects), str(each.left) if each.done else "ending")
                for each in answers
            ],
        )
    )
