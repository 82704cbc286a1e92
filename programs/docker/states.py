"""What the daemon says of a container, in our words.

States: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerInspect
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from stacks.handle import WorkerState, WorkerStatus

STATES: Final[Mapping[str, WorkerState]] = {
    "created": WorkerState.STARTING,
    "restarting": WorkerState.STARTING,
    "running": WorkerState.RUNNING,
    "paused": WorkerState.RUNNING,
    "removing": WorkerState.UNKNOWN,
    "exited": WorkerState.FAILED,  # SUCCEEDED where its exit code is 0
    "dead": WorkerState.FAILED,
}
"""The container's states; one that is not listed is UNKNOWN."""
OOM: Final = "OOMKilled"
START_FAILED: Final = "start failed"
_SIGNALLED: Final = 128  # added to a signal's number, it is the exit code of what it ended
_KILLED: Final = _SIGNALLED + signal.SIGKILL
_NEVER: Final = "0001-01-01"


def status_of(inspected: Mapping[str, Any]) -> WorkerStatus:
    """The status of a container, from all that the daemon knows of it."""
    told: Mapping[str, Any] = inspected["State"]
    word = str(told["Status"])
    state = STATES.get(word, WorkerState.UNKNOWN)
    started = time_of(str(told.get("StartedAt", "")))
    error = str(told.get("Error") or "")
    if word == "created" and error:  # it was told to start, and could not
        return WorkerStatus(state=WorkerState.FAILED, reason=START_FAILED, message=error)
    if not state.ended:
        message = "" if word in {"created", "running"} else f"the container is {word}"
        return WorkerStatus(state=state, message=message, started_at=started)
    code = int(told["ExitCode"])
    reason, message = _account(code, error, oom=bool(told.get("OOMKilled")))
    return WorkerStatus(
        state=WorkerState.SUCCEEDED if word == "exited" and code == 0 else state,
        message=message,
        exit_code=code,
        reason=reason,
        started_at=started,
        ended_at=time_of(str(told.get("FinishedAt", ""))),
    )


def _account(code: int, error: str, *, oom: bool) -> tuple[str | None, str]:
    """Reason and message of an end. The daemon says `oom` also where only a child of the worker was ended for it."""
    if code == 0:
        return None, ""
    if oom and code == _KILLED:
        return OOM, f"it needed more memory than it may have, and the kernel ended it (exit code {code})"
    if error:
        return START_FAILED, error
    name = signal_name(code - _SIGNALLED)
    return name, f"exit code {code}" if name is None else f"ended by {name}"


def signal_name(number: int) -> str | None:
    """The signal's name; None for a number that is none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def time_of(text: str) -> datetime | None:
    """The daemon's time, which is of nanoseconds; None for one that never was."""
    if not text or text.startswith(_NEVER):
        return None
    moment, _, fraction = text.rstrip("Z").partition(".")
    parsed = datetime.fromisoformat(f"{moment}+00:00").astimezone(UTC)
    return parsed.replace(microsecond=int(f"{fraction:0<6}"[:6])) if fraction.isdigit() else parsed
