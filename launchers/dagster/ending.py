"""terminate: CANCELING is written first, then the worker is asked to end, and what is quick is waited for."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from dagster import DagsterRun, DagsterRunStatus

from launchers.dagster.binding import Binding
from launchers.dagster.health import in_words
from stacks.errors import RunLauncherError, RunNotFoundError, TimeLimitError, WrongPlaceError
from stacks.handle import WorkerState

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher
    from stacks.handle import WorkerHandle, WorkerStatus

_ANSWERS: Final = 1.5  # seconds from the call on that a worker is given to end, of the 2 s in which this returns
OVER: Final = frozenset({WorkerState.SUCCEEDED, WorkerState.FAILED, WorkerState.NOT_FOUND})


def terminate(binding: Binding, run_id: str) -> bool:
    """See PulumiRunLauncher.terminate."""
    begun = time.monotonic()
    run = binding.instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return False
    worker = binding.worker(run)
    if worker is None and binding.previous is not None:
        return bool(binding.previous.launcher.terminate(run_id))
    if run.status is not DagsterRunStatus.CANCELING:
        binding.instance.report_run_canceling(run)
    if worker is None:
        binding.report(run, "Nothing to end: run-launcher did not launch this run")
        return False
    return _ask(binding, run, worker, begun)


def _ask(binding: Binding, run: DagsterRun, worker: WorkerHandle | str, begun: float) -> bool:
    try:
        launcher = binding.launcher_of(worker)
        asked = launcher.terminate(worker, wait=False)
        binding.report(run, "Asked the run worker to end", _facts(binding, launcher, run))
        status = _await_end(launcher, worker, timedelta(seconds=_ANSWERS - (time.monotonic() - begun)))
    except WrongPlaceError as error:
        binding.report(run, str(error))
        return True
    except RunNotFoundError as error:
        binding.report(run, f"Nothing to end: {error}")
        return False
    except (RunLauncherError, OSError) as error:
        binding.report(run, f"The run worker could not be asked to end: {error}")
        raise
    settled = status.state in OVER and settle_canceled(binding, run.run_id, status)
    return settled or asked.status.state not in OVER or _is_canceled(binding, run.run_id)


def settle_canceled(binding: Binding, run_id: str, status: WorkerStatus) -> bool:
    """Have a run CANCELED whose worker ended before it could say so itself; False if its status is another by now."""
    run = binding.instance.get_run_by_id(run_id)  # after the worker's end, so all that it wrote is there
    if run is None or run.status is not DagsterRunStatus.CANCELING:
        return False
    binding.instance.report_run_canceled(run, f"The run was canceled. Its worker: {in_words(status)}")
    return True


def _is_canceled(binding: Binding, run_id: str) -> bool:
    """True of a run whose worker was asked, ended and said so, all before the target had answered."""
    run = binding.instance.get_run_by_id(run_id)
    return run is not None and run.status is DagsterRunStatus.CANCELED


def _await_end(launcher: RunLauncher[Any], worker: WorkerHandle | str, limit: timedelta) -> WorkerStatus:
    try:
        return launcher.wait(worker, timeout=max(limit, timedelta(0)))
    except TimeLimitError:
        return launcher.status(worker)


def _facts(binding: Binding, launcher: RunLauncher[Any], run: DagsterRun) -> dict[str, str]:
    handle = launcher.record(run.run_id).handle
    return {} if handle is None else binding.facts(handle)
