"""How a container is and how it ended, in our words; the daemon, the kernel and the clock are asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

import pytest
from targets import DockerRow

from launchers.factory import make_workspace
from launchers.reconcile import Reconciler
from launchers.settings import ReconcileSettings
from launchers.testing.contract import eventually, written
from programs.docker.containers import Containers
from stacks.engine import StackName
from stacks.handle import WorkerState
from stacks.records import Wish

LIMIT: Final = timedelta(seconds=60)
EAT: Final = "exec tail /dev/zero"
"""Keeps in memory all that it reads, since no line ever ends."""


# ---- while it is ended ----


def test_a_worker_that_is_removed_while_it_is_looked_at_keeps_the_reason_of_its_end(
    docker_row: DockerRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, ended = docker_row.launcher(), docker_row.launcher()
    handle = launcher.launch(docker_row.run("sleep 600")).handle
    record = launcher.record(handle)
    launcher.workspace.records.wish_end(record, "a test", reason="max_runtime", message="it ran too long")
    docker_row.kill(handle)
    wish = launcher.workspace.records.wish

    def wish_once_it_was_carried_out(stack: StackName) -> Wish | None:
        monkeypatch.setattr(launcher.workspace.records, "wish", wish)
        assert [each.error for each in Reconciler(make_workspace(docker_row.config())).once() if each.error] == []
        return wish(stack)

    monkeypatch.setattr(launcher.workspace.records, "wish", wish_once_it_was_carried_out)

    assert launcher.status(handle).reason == "max_runtime"
    assert ended.record(handle).removed is not None


# ---- memory ----


def test_a_worker_that_needs_more_memory_than_it_may_have_is_told_as_such(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(resources={"memory": "16Mi"})
    handle = launcher.launch(docker_row.run(EAT)).handle

    status = launcher.wait(handle, timeout=LIMIT)

    assert (status.state, status.reason, status.exit_code) == (WorkerState.FAILED, "OOMKilled", 137)
    assert "more memory than it may have" in status.message
    assert launcher.why(handle).facts["limit memory"] == "16 MiB"


@pytest.mark.parametrize(("code", "state"), [(0, WorkerState.SUCCEEDED), (3, WorkerState.FAILED)])
def test_a_worker_that_survives_the_end_of_a_child_is_not_called_out_of_memory(
    docker_row: DockerRow,
    code: int,
    state: WorkerState,
) -> None:
    launcher = docker_row.launcher(resources={"memory": "16Mi"})
    ate, go = docker_row.shared / "ate", docker_row.shared / "go"
    script = '(exec tail /dev/zero); echo $? >"$1"; until [ -e "$2" ]; do sleep 0.05; done; exit "$3"'
    handle = launcher.launch(docker_row.run(script, str(ate), str(go), str(code))).handle
    assert written(ate) == "137\n"
    meanwhile = launcher.status(handle)
    go.touch()

    status = launcher.wait(handle, timeout=LIMIT)

    assert docker_row.container(handle).attrs["State"]["OOMKilled"] is True
    assert meanwhile.state is WorkerState.RUNNING
    assert (status.state, status.reason, status.exit_code) == (state, None, code)
    assert "out of memory" in launcher.why(handle).facts


# ---- ends and other states ----


@pytest.mark.parametrize(
    ("script", "reason", "code"),
    [
        ("exit 0", None, 0),
        ("exit 41", None, 41),
        ("exit 255", None, 255),
        ("exit 137", "SIGKILL", 137),
        ("exit 139", "SIGSEGV", 139),
    ],
)
def test_an_end_is_told_with_its_code_and_signal(
    docker_row: DockerRow, script: str, reason: str | None, code: int
) -> None:
    launcher = docker_row.launcher()
    handle = launcher.launch(docker_row.run(script)).handle

    status = launcher.wait(handle, timeout=LIMIT)

    assert (status.reason, status.exit_code) == (reason, code)
    assert status.started_at is not None
    assert status.ended_at is not None


def test_a_paused_worker_runs_and_is_said_to_be_paused_and_can_be_ended(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(grace="1s")
    handle = launcher.launch(docker_row.run("sleep 600")).handle
    docker_row.container(handle).pause()

    status = launcher.status(handle)
    done = launcher.terminate(handle)

    assert (status.state, status.message) == (WorkerState.RUNNING, "the container is paused")
    assert (done.left, docker_row.executions(handle.run_id)) == (0, 0)


def test_a_container_that_somebody_removed_is_not_found_and_then_lost(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher()
    run = docker_row.run("sleep 600")
    handle = launcher.launch(run).handle
    docker_row.container(handle).remove(force=True)

    before, again = launcher.status(handle), launcher.launch(run)
    errors = [each.error for each in Reconciler(make_workspace(docker_row.config())).once() if each.error]
    after = launcher.status(handle)

    assert (before.state, before.message) == (WorkerState.NOT_FOUND, "its worker was removed by somebody else")
    assert (again.created, again.handle) == (False, handle)
    assert errors == []
    assert (after.state, after.reason) == (WorkerState.FAILED, "lost")
    assert docker_row.executions(run.id) == 0


# ---- many ----


def noted(method: Callable[..., object], asked: list[str]) -> Callable[..., object]:
    """A method that notes that it was called."""

    def note(*words: object) -> object:
        asked.append(method.__name__)
        return method(*words)

    return note


def test_the_statuses_of_many_runs_are_one_list(docker_row: DockerRow, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = docker_row.launcher(grace="0s")
    runs = [docker_row.run("sleep 600") for _ in range(18)]
    with ThreadPoolExecutor(6) as threads:
        handles = [each.handle for each in threads.map(launcher.launch, runs)]
    asked: list[str] = []
    for name in ("listed", "inspect"):
        monkeypatch.setattr(Containers, name, noted(getattr(Containers, name), asked))

    statuses = launcher.statuses(handles)
    one = launcher.status(handles[0])

    assert {each.state for each in statuses} == {WorkerState.RUNNING}
    assert asked == ["listed", "inspect"]
    assert one.started_at is not None
    assert all(each.started_at is not None for each in statuses)
    assert abs((statuses[0].started_at or one.started_at) - one.started_at) < timedelta(seconds=5)


# ---- life limits, and what no run owns ----


def reconcile(row: DockerRow, orphan_age: str = "10m") -> list[str]:
    """What one pass does, in words; it fails if anything failed."""
    settings = ReconcileSettings.model_validate({"orphan_age": orphan_age})
    config = row.config().model_copy(update={"reconcile": settings})
    told = list(Reconciler(make_workspace(config)).once())
    assert [each.error for each in told if each.error] == []
    return [f"{each.subject}: {each.what}" for each in told]


def test_a_finished_container_stays_as_long_as_keep_says(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(keep={"succeeded": "1s", "failed": "1h"})
    good, bad = (launcher.launch(docker_row.run(f"echo said; exit {code}")).handle for code in (0, 3))
    for each in (good, bad):
        launcher.wait(each, timeout=LIMIT)

    assert eventually(lambda: f"{good.run_id}: removed" in reconcile(docker_row))
    assert [docker_row.executions(each.run_id) for each in (good, bad)] == [0, 1]
    assert launcher.status(good).state is WorkerState.SUCCEEDED
    assert docker_row.output(bad.run_id) == b"said\n"


def test_a_container_that_never_starts_is_ended_at_its_start_timeout(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(start_timeout="1s")
    run = docker_row.run("sleep 600")
    handle = launcher.launch(run).handle
    labels = docker_row.container(handle).labels
    docker_row.container(handle).remove(force=True)
    docker_row.client.containers.create("busybox:local", ["true"], name=f"run-{run.id}", labels=labels)

    assert launcher.status(run.id).state is WorkerState.STARTING
    assert eventually(lambda: f"{run.id}: ended" in reconcile(docker_row))
    assert launcher.status(run.id).reason == "start_timeout"
    assert docker_row.executions(run.id) == 0


def test_a_container_without_a_record_is_removed_when_it_is_old_and_a_foreign_one_never(
    docker_row: DockerRow,
) -> None:
    launcher = docker_row.launcher(grace="0s")
    owned = launcher.launch(docker_row.run("sleep 600")).handle
    stray = {**docker_row.container(owned).labels, "run-launcher/run-id": "stray"}
    theirs = {**stray, "run-launcher/backend": "another"}
    for labels, name in ((stray, "run-stray"), (theirs, "theirs")):
        docker_row.client.containers.run("busybox:local", ["sleep", "600"], labels=labels, name=name, detach=True)
    try:
        young = reconcile(docker_row), docker_row.client.containers.get("run-stray").status
        old = reconcile(docker_row, orphan_age="0s")

        assert young == ([], "running")
        assert old == ["stray: removed"]
        assert docker_row.executions("stray") == 1
        assert docker_row.client.containers.get("theirs").status == "running"
        assert docker_row.alive(owned)
    finally:
        docker_row.client.containers.get("theirs").remove(force=True)


@pytest.mark.soak
def test_the_statuses_of_300_finished_runs_are_had_soon(
    docker_row: DockerRow, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = docker_row.launcher()
    with ThreadPoolExecutor(6) as threads:
        runs = [docker_row.run("exit 0") for _ in range(300)]
        handles = [each.handle for each in threads.map(launcher.launch, runs)]
    assert eventually(lambda: all(each.state.ended for each in launcher.statuses(handles)))
    begun = time.perf_counter()
    states = {each.state for each in launcher.statuses(handles)}
    took = time.perf_counter() - begun

    with capsys.disabled():
        print(f"\n300 finished runs on docker: their statuses in {took:.2f} s")  # noqa: T201
    assert states == {WorkerState.SUCCEEDED}
