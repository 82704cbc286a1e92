"""A launcher without a backend, for the tests of those who launch: same types, same errors, faults by name.

launcher = FakeLauncher(plan=[Ends(exit_code=137, reason="OOMKilled")])
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from launchers.values import Launched, Terminated
from programs.args import Run, fingerprints
from stacks.errors import (
    EngineError,
    LaunchConflictError,
    LaunchFailedError,
    RunNotFoundError,
    Started,
    TimeLimitError,
)
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus

_DIGEST = "0" * 64


@dataclass(frozen=True)
class Ends:
    """The worker runs for some questions of `status`, then ends."""

    exit_code: int = 0
    reason: str | None = None
    after: int = 1


@dataclass(frozen=True)
class FailsAtOnce:
    """The target refuses the worker."""

    message: str = "the target refused the worker"


@dataclass(frozen=True)
class FailsHalfWay:
    """The worker is made, and then the engine fails; the next launch of the run returns it."""


@dataclass(frozen=True)
class LosesTheAnswer:
    """The worker starts, but the caller learns only of a time limit; the next launch of the run returns it."""


@dataclass(frozen=True)
class NeverStarts:
    """The worker stays STARTING until it is terminated."""


Fault = Ends | FailsAtOnce | FailsHalfWay | LosesTheAnswer | NeverStarts


class FakeLauncher:
    """Keeps the promises of a launcher in memory: one worker per id, ends that never change back, repeatable ends.

    Each new run takes the next entry of `plan`, and the last one for ever. `launched` holds the runs whose worker
    started, in order. Safe from many threads.
    """

    def __init__(self, plan: Iterable[Fault] = (Ends(),), place: str = "fake:1") -> None:
        self.place = place
        self.launched: list[Run] = []
        self._plan = list(plan)
        self._guard = threading.RLock()
        self._runs: dict[str, Run] = {}
        self._faults: dict[str, Fault] = {}
        self._asked: dict[str, int] = {}
        self._ended: dict[str, WorkerStatus] = {}

    def launch(self, run: Run, *, timeout: timedelta | None = None) -> Launched:
        """Start the run once, as its fault says, or return what was started before."""
        with self._guard:
            there = self._runs.get(run.id)
            if there is not None:
                if fingerprints(there, _DIGEST) != fingerprints(run, _DIGEST):
                    message = f"run {run.id} was launched before with something else"
                    raise LaunchConflictError(message, started=Started.YES)
                return Launched(self._handle(run), created=False, status=self.status(run.id))
            fault = self._plan.pop(0) if len(self._plan) > 1 else self._plan[0]
            if isinstance(fault, FailsAtOnce):
                raise LaunchFailedError(fault.message)
            self._runs[run.id], self._faults[run.id] = run, fault
            self.launched.append(run)
            if isinstance(fault, FailsHalfWay):
                message = "the engine failed half-way"
                raise EngineError(message, started=Started.UNKNOWN)
            if isinstance(fault, LosesTheAnswer):
                message = f"run {run.id} was not heard of within {timeout or 'its time limit'}"
                raise TimeLimitError(message, started=Started.UNKNOWN)
            return Launched(self._handle(run), created=True, status=WorkerStatus(state=WorkerState.STARTING))

    def status(self, run: WorkerHandle | str) -> WorkerStatus:
        """How the worker is; UNKNOWN for a handle of another place, NOT_FOUND for a stranger."""
        if isinstance(run, WorkerHandle) and run.place != self.place:
            return WorkerStatus(state=WorkerState.UNKNOWN, message=f"this worker lives on {run.place}")
        run_id = run if isinstance(run, str) else run.run_id
        with self._guard:
            if run_id in self._ended:
                return self._ended[run_id]
            if run_id not in self._runs:
                return WorkerStatus(state=WorkerState.NOT_FOUND)
            fault = self._faults[run_id]
            if not isinstance(fault, Ends):
                never = isinstance(fault, NeverStarts)
                return WorkerStatus(state=WorkerState.STARTING if never else WorkerState.RUNNING)
            self._asked[run_id] = self._asked.get(run_id, 0) + 1
            if self._asked[run_id] <= fault.after:
                return WorkerStatus(state=WorkerState.RUNNING)
            return self._end(run_id, fault.exit_code, fault.reason)

    def terminate(self, run: WorkerHandle | str, *, wait: bool = True, timeout: timedelta | None = None) -> Terminated:  # noqa: ARG002
        """End the run; repeatable. Raises RunNotFoundError for a stranger."""
        run_id = run if isinstance(run, str) else run.run_id
        with self._guard:
            if run_id not in self._runs:
                message = f"no run {run_id!r} is known"
                raise RunNotFoundError(message)
            first = run_id not in self._ended
            status = self._end(run_id, 143, "terminated") if first else self._ended[run_id]
            return Terminated(run_id, self._runs[run_id].attempt, status, objects=int(first), left=0)

    def _end(self, run_id: str, exit_code: int, reason: str | None) -> WorkerStatus:
        state = WorkerState.FAILED if exit_code else WorkerState.SUCCEEDED
        status = WorkerStatus(state=state, exit_code=exit_code, reason=reason, ended_at=datetime.now(UTC))
        self._ended[run_id] = status
        return status

    def _handle(self, run: Run) -> WorkerHandle:
        return WorkerHandle(
            target="fake",
            run_id=run.id,
            attempt=run.attempt,
            place=self.place,
            backend="fake",
            template="fake",
            digest=_DIGEST,
            fingerprint=fingerprints(run, _DIGEST)["all"],
        )
