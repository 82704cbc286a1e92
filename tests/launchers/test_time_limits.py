"""With a slow provider: a time limit that passed means that the run will not start later, and errors know what was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc
from targets import ProcessRow, take_engine

from launchers.factory import make_workspace
from launchers.process import ProcessLauncher
from launchers.testing.contract import written
from programs.args import Run
from programs.process.template import ProcessTemplate
from programs.provider.attach import serve
from programs.provider.servicer import RunworkerServicer
from stacks.engine import AttachedProvider
from stacks.errors import LaunchConflictError, Repair, RunCancelledError, StackLockedError, Started, TimeLimitError

LIMIT = timedelta(hours=1)
Skip = Callable[[timedelta], None]


class SlowServicer(RunworkerServicer):
    """Creates the worker only when it is let go, or answers only then that it is created."""

    def __init__(self, *, answers_late: bool = False) -> None:
        self.asked, self.go = threading.Event(), threading.Event()
        self.done = threading.Event()
        self._answers_late = answers_late

    def Create(self, request: provider_pb2.CreateRequest, context: grpc.ServicerContext) -> object:  # noqa: N802
        try:
            if self._answers_late:
                answer = super().Create(request, context)
                self.asked.set()
                self.go.wait(60)
                return answer
            self.asked.set()
            self.go.wait(60)
            return super().Create(request, context)
        finally:
            self.done.set()


class SlowLauncher(ProcessLauncher):
    """Launches through a slow provider."""

    slow: SlowServicer

    def providers(self) -> tuple[AttachedProvider, ...]:
        register = partial(provider_pb2_grpc.add_ResourceProviderServicer_to_server, self.slow)
        return (AttachedProvider("runworker", partial(serve, self.slow), register),)


@pytest.fixture(params=["cli", "warm"])
def row(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProcessRow]:
    row = ProcessRow(tmp_path, engine=take_engine(request, request.param))
    yield row
    row.close()


@pytest.fixture
def skip(monkeypatch: pytest.MonkeyPatch) -> Skip:
    """Puts the clock that limits are read from forward: a loaded machine may need any time to get somewhere."""
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(ahead))
    return lambda much: ahead.append(much.total_seconds())


def refused(launcher: SlowLauncher, run: Run, skip: Skip) -> TimeLimitError:
    """A launch whose time is up while its provider is at work."""
    with ThreadPoolExecutor() as threads:
        launch = threads.submit(launcher.launch, run, timeout=LIMIT)
        assert launcher.slow.asked.wait(60)
        skip(LIMIT)
        error = launch.exception(60)
    assert isinstance(error, TimeLimitError)
    return error


def slow_launcher(row: ProcessRow, *, answers_late: bool = False) -> SlowLauncher:
    template = ProcessTemplate.model_validate({"grace": "1s", "env": {"CONTRACT_ROW": row._mark}})
    launcher = SlowLauncher(make_workspace(row.config()), template, "process")
    launcher.slow = SlowServicer(answers_late=answers_late)
    return launcher


def test_after_the_time_limit_nothing_starts_however_late_the_provider_is(row: ProcessRow, skip: Skip) -> None:
    launcher, lines = slow_launcher(row), row.shared / "lines"
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    error = refused(launcher, run, skip)
    launcher.slow.go.set()
    assert launcher.slow.done.wait(60)

    assert (error.started, error.retryable) == (Started.NO, True)
    assert (row.executions(run.id), row.stacks(), row.leftovers()) == (0, [], [])
    assert not lines.exists()


def test_a_run_that_was_not_launched_in_time_may_be_launched_again(row: ProcessRow, skip: Skip) -> None:
    launcher, lines = slow_launcher(row), row.shared / "lines"
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    refused(launcher, run, skip)
    launcher.slow.go.set()

    assert launcher.launch(run).created
    assert written(lines) == "once\n"
    launcher.terminate(run.id)
    assert row.leftovers() == []


def test_a_worker_whose_provider_answers_after_the_time_limit_is_ended(row: ProcessRow, skip: Skip) -> None:
    launcher, lines = slow_launcher(row, answers_late=True), row.shared / "lines"
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    error = refused(launcher, run, skip)

    assert error.started is Started.YES
    assert (row.executions(run.id), row.stacks(), row.leftovers()) == (0, [], [])
    launcher.slow.go.set()


def test_terminate_cancels_a_launch_in_flight(row: ProcessRow) -> None:
    launcher, lines = slow_launcher(row), row.shared / "lines"
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    with ThreadPoolExecutor() as threads:
        launch = threads.submit(launcher.launch, run)
        assert launcher.slow.asked.wait(60)
        done = threads.submit(row.launcher().terminate, run.id)
        error = launch.exception(60)
        launcher.slow.go.set()

    assert isinstance(error, RunCancelledError)
    assert error.started is Started.NO
    assert done.result().left == 0
    assert (row.executions(run.id), row.stacks(), row.leftovers()) == (0, [], [])
    assert not lines.exists()


def test_a_launch_that_waits_for_another_one_says_for_whom_when_its_time_has_passed(row: ProcessRow) -> None:
    launcher = slow_launcher(row)
    run = row.run("sleep 600")
    with ThreadPoolExecutor() as threads:
        launch = threads.submit(launcher.launch, run)
        assert launcher.slow.asked.wait(60)
        with pytest.raises(StackLockedError, match="launch by process") as locked:
            slow_launcher(row).launch(run, timeout=timedelta(seconds=1))
        launcher.slow.go.set()

        assert launch.result().created
    assert (locked.value.started, locked.value.retryable) == (Started.UNKNOWN, True)
    launcher.terminate(run.id)
    assert row.leftovers() == []


def test_a_conflict_is_the_users_to_repair_and_no_repetition_helps(row: ProcessRow) -> None:
    launcher = row.launcher()
    run = row.run("sleep 600")
    launcher.launch(run)
    with pytest.raises(LaunchConflictError) as conflict:
        launcher.launch(run.model_copy(update={"command": ("true",)}))

    assert (conflict.value.retryable, conflict.value.repair) == (False, Repair.USER)
    assert conflict.value.started is Started.YES
    launcher.terminate(run.id)
