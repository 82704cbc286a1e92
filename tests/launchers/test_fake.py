"""The fake launcher keeps the promises that its users' tests rely on."""

from __future__ import annotations

import pytest

from launchers import Run, WorkerState
from launchers.testing.fake import Ends, FailsAtOnce, FailsHalfWay, FakeLauncher, LosesTheAnswer, NeverStarts
from stacks.errors import EngineError, LaunchConflictError, LaunchFailedError, RunNotFoundError, Started, TimeLimitError

RUN = Run(id="a", command=("true",))


def test_it_ends_as_planned_and_never_changes_back() -> None:
    launcher = FakeLauncher([Ends(exit_code=137, reason="OOMKilled", after=2)])
    handle = launcher.launch(RUN).handle

    states = [launcher.status(handle).state for _ in range(5)]

    assert states == [WorkerState.RUNNING] * 2 + [WorkerState.FAILED] * 3
    assert launcher.status("a").reason == "OOMKilled"
    assert launcher.terminate(handle).status.reason == "OOMKilled"


def test_a_run_is_launched_once_and_only_with_one_command() -> None:
    launcher = FakeLauncher()
    first, second = launcher.launch(RUN), launcher.launch(RUN)

    assert (first.created, second.created) == (True, False)
    assert launcher.launched == [RUN]
    with pytest.raises(LaunchConflictError):
        launcher.launch(Run(id="a", command=("false",)))


@pytest.mark.parametrize(
    ("fault", "error", "started"),
    [(FailsHalfWay(), EngineError, Started.UNKNOWN), (LosesTheAnswer(), TimeLimitError, Started.UNKNOWN)],
)
def test_after_an_unknown_answer_the_next_launch_returns_the_worker(
    fault: FailsHalfWay | LosesTheAnswer, error: type[Exception], started: Started
) -> None:
    launcher = FakeLauncher([fault])
    with pytest.raises(error) as caught:
        launcher.launch(RUN)

    assert caught.value.started is started  # type: ignore[attr-defined]
    assert not launcher.launch(RUN).created
    assert len(launcher.launched) == 1


def test_a_refused_worker_never_started() -> None:
    launcher = FakeLauncher([FailsAtOnce("no room"), Ends()])

    with pytest.raises(LaunchFailedError, match="no room"):
        launcher.launch(RUN)
    assert launcher.launched == []
    assert launcher.launch(RUN).created


def test_places_strangers_and_workers_that_never_start() -> None:
    launcher = FakeLauncher([NeverStarts()])
    handle = launcher.launch(RUN).handle

    assert launcher.status(handle).state is WorkerState.STARTING
    assert launcher.status(handle.model_copy(update={"place": "fake:2"})).state is WorkerState.UNKNOWN
    assert launcher.status("b").state is WorkerState.NOT_FOUND
    with pytest.raises(RunNotFoundError):
        launcher.terminate("b")
    assert launcher.terminate(handle).left == 0
