"""wait: for the end of one run, or of all that are meant."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from launchers.commands.looking import show
from launchers.commands.selecting import Asking, chosen, duration
from stacks.errors import TimeLimitError
from stacks.handle import WorkerState, WorkerStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launchers.commands.choice import Choice
    from launchers.commands.output import Shape
    from launchers.commands.session import Session

EXIT_CODES: Final = {
    WorkerState.FAILED: 10,
    WorkerState.UNKNOWN: 4,
    WorkerState.NOT_FOUND: 6,
    WorkerState.SUCCEEDED: 0,
}
"""How a command that waited for an end exits; of several ends, the first in this order decides."""
_GOING_ON: Final = {WorkerState.STARTING, WorkerState.RUNNING}
_POLL: Final = (0.02, 0.5)  # seconds between two looks: first, last
_SHOWN: Final = 10  # runs that a message lists


def wait(session: Session, choice: Choice, timeout: str | None, output: Shape) -> int:
    """See the command. Past the time limit too it shows how the runs are."""
    limit = None if timeout is None else duration(timeout, "--timeout")
    workspace = session.workspace()
    records = chosen(workspace, choice)
    states = _await(Asking(workspace, records.values()), limit)
    now = [workspace.records.read(run_id) or record for run_id, record in records.items()]
    show(output, choice, [(record, states[record.run_id]) for record in now])
    going_on = {run_id: status for run_id, status in states.items() if status.state in _GOING_ON}
    if going_on:
        raise TimeLimitError(_goes_on(going_on, len(states), limit))
    ends = {status.state for status in states.values()}
    return next(code for state, code in EXIT_CODES.items() if state in ends)


def _await(asking: Asking, limit: timedelta | None) -> dict[str, WorkerStatus]:
    """How the runs are when all have ended or the time has passed; those that have ended are asked no more."""
    deadline = None if limit is None else time.monotonic() + limit.total_seconds()
    pause = _POLL[0]
    states = asking.statuses()
    while going_on := {run_id for run_id, status in states.items() if status.state in _GOING_ON}:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            break
        time.sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.3, _POLL[1])
        states.update(asking.statuses(going_on))
    return states


def _goes_on(going_on: Mapping[str, WorkerStatus], total: int, limit: timedelta | None) -> str:
    if total == 1:
        run_id, status = next(iter(going_on.items()))
        return f"run {run_id} is still {status.state} after {limit}; it goes on"
    shown = ", ".join(f"{run_id} ({status.state})" for run_id, status in list(going_on.items())[:_SHOWN])
    more = f" and {len(going_on) - _SHOWN} more" if len(going_on) > _SHOWN else ""
    return f"{len(going_on)} of {total} runs go on after {limit}: {shown}{more}"
