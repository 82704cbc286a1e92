"""How the worker of a run is, in Dagster's words.

Dagster's monitor resumes or fails a started run whose worker is neither RUNNING nor SUCCESS
(dagster/_daemon/monitoring/run_monitoring.py), and takes SUCCESS as a sign of life. So:
- what was not seen to end counts as running, with the reason in the message.
- a worker that ended well has failed, if its run is still started: it reported no end. The monitor reads the run once
  more before it acts, so one that did report it is not failed.
- a worker that cannot be asked counts as running until a grace of its own has passed.
"""

from __future__ import annotations

import time
from typing import Final

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

from launchers.dagster.binding import Binding
from stacks.errors import RunLauncherError, RunNotFoundError
from stacks.handle import WorkerHandle, WorkerState
from stacks.handle import WorkerStatus as Status

STATES: Final = {
    WorkerState.STARTING: WorkerStatus.RUNNING,
    WorkerState.RUNNING: WorkerStatus.RUNNING,
    WorkerState.SUCCEEDED: WorkerStatus.FAILED,
    WorkerState.FAILED: WorkerStatus.FAILED,
    WorkerState.NOT_FOUND: WorkerStatus.NOT_FOUND,
    WorkerState.UNKNOWN: WorkerStatus.UNKNOWN,
}
NO_END: Final = "it ended without telling Dagster how the run went"


def health(binding: Binding, run: DagsterRun) -> CheckRunHealthResult:
    """See PulumiRunLauncher.check_run_worker_health."""
    worker = binding.worker(run)
    if worker is None and binding.previous is not None:
        return binding.previous.health(run)
    status = _status(binding, worker)
    message = in_words(status)
    if status.state is not WorkerState.UNKNOWN:
        binding.unknown_since.pop(run.run_id, None)
        return CheckRunHealthResult(STATES[status.state], message)
    since = binding.unknown_since.setdefault(run.run_id, time.monotonic())
    if time.monotonic() - since < binding.settings.unknown_grace.total_seconds():
        return CheckRunHealthResult(WorkerStatus.RUNNING, message)
    return CheckRunHealthResult(WorkerStatus.UNKNOWN, message)


def debug_info(binding: Binding, run: DagsterRun, *, with_lines: bool) -> str | None:
    """See PulumiRunLauncher.get_run_worker_debug_info."""
    worker = binding.worker(run)
    if worker is None:
        return binding.previous.launcher.get_run_worker_debug_info(run, with_lines) if binding.previous else None
    try:
        return explain(binding, run.run_id, with_lines=with_lines)
    except (RunLauncherError, OSError) as error:
        return f"The worker cannot be asked: {error}"


def explain(binding: Binding, run_id: str, *, with_lines: bool = True) -> str:
    """Why a run's worker is as it is: state, facts, how to see more, and its last lines."""
    launcher = binding.launcher_of(run_id)
    told = launcher.why(run_id)
    record = launcher.record(run_id)
    facts = dict(told.facts)
    if record.handle is not None:
        facts |= {name: value for name, value in binding.facts(record.handle).items() if name != "handle"}
    lines = [f"Run worker: {in_words(told.status)}", *(f"  {name}: {value}" for name, value in facts.items())]
    if with_lines and told.last_lines:
        lines += ["  last lines:", *(f"    {line}" for line in told.last_lines)]
    return "\n".join(lines)


def in_words(status: Status) -> str:
    """A status as a person reads it."""
    parts = [str(status.state)]
    if status.reason:
        parts.append(f"({status.reason})")
    if status.exit_code is not None:
        parts.append(f"exit code {status.exit_code}")
    text = " ".join(parts)
    if status.state is WorkerState.SUCCEEDED:
        return f"{text}: {NO_END}"
    return f"{text}: {status.message}" if status.message else text


def _status(binding: Binding, worker: WorkerHandle | str | None) -> Status:
    """The status of a run's worker; UNKNOWN for what was not launched by us, or whose backend does not answer."""
    if worker is None:
        message = "this run was not launched by run-launcher, and run_launcher: config: names no `previous` launcher"
        return Status(state=WorkerState.UNKNOWN, message=message)
    try:
        return binding.launcher_of(worker).status(worker)
    except RunNotFoundError as error:
        return Status(state=WorkerState.UNKNOWN, message=str(error))
    except (RunLauncherError, OSError) as error:
        return Status(state=WorkerState.UNKNOWN, message=f"its worker cannot be asked: {error}")
