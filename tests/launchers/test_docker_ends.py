"""How a container is ended: its signal, its grace, who waits for it, and what is kept of it."""

from __future__ import annotations

import subprocess
import time
from datetime import timedelta
from typing import Final

import pytest
from targets import DockerRow

from launchers import Run
from launchers.factory import make_workspace
from launchers.reconcile import Reconciler
from launchers.testing.contract import eventually
from stacks.errors import RunNotFoundError
from stacks.handle import WorkerState
from stacks.records import Phase

LIMIT: Final = timedelta(seconds=60)
STUBBORN: Final = 'trap "" TERM INT; touch "$1"; while :; do sleep 0.1; done'
NOTES: Final = 'trap "echo \\"$2\\"; exit 0" "$2"; touch "$1"; while :; do sleep 0.1; done'
END: Final = """
import sys
from launchers import launcher_for
launcher_for(sys.argv[1]).terminate(sys.argv[1], wait=False)
print("asked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_the_templates_signal_ends_it_and_its_last_words_are_kept(docker_row: DockerRow, name: str) -> None:
    launcher = docker_row.launcher(stop_signal=f"SIG{name}", grace="20s")
    ready = docker_row.shared / "ready"
    handle = launcher.launch(docker_row.run(NOTES, str(ready), name)).handle
    assert eventually(ready.exists)
    begun = time.monotonic()

    done = launcher.terminate(handle)

    assert time.monotonic() - begun < 10
    assert docker_row.executions(handle.run_id) == 0
    assert docker_row.output(handle.run_id) == f"{name}\n".encode()
    assert (done.status.state, done.status.reason, done.status.exit_code) == (WorkerState.FAILED, "terminated", 0)


def test_terminate_takes_no_longer_than_the_grace_and_five_seconds(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(grace="2s")
    ready = docker_row.shared / "ready"
    handle = launcher.launch(docker_row.run(STUBBORN, str(ready))).handle
    assert eventually(ready.exists)
    begun = time.monotonic()

    done = launcher.terminate(handle)

    assert 2 <= time.monotonic() - begun < 2 + 5
    assert (done.left, done.status.exit_code) == (0, 137)


def test_a_worker_that_was_only_asked_to_end_is_ended_though_whoever_asked_is_killed(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(grace="2s")
    ready = docker_row.shared / "ready"
    handle = launcher.launch(docker_row.run(STUBBORN, str(ready))).handle
    assert eventually(ready.exists)
    words = docker_row.another_process(END, handle.run_id)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asks:
        assert asks.stdout is not None
        assert asks.stdout.readline() == "asked\n"
        asks.kill()
    alive = docker_row.alive(handle)

    assert eventually(lambda: not docker_row.alive(handle), timedelta(seconds=10))
    assert alive
    assert launcher.status(handle).reason == "terminated"


def test_without_a_readable_log_there_is_no_output_and_no_error(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(log={"driver": "none"})
    handle = launcher.launch(docker_row.run("echo unheard; exit 3")).handle
    launcher.wait(handle, timeout=LIMIT)
    before, why = docker_row.output(handle.run_id), launcher.why(handle)

    done = launcher.terminate(handle)

    assert (before, why.last_lines, docker_row.output(handle.run_id)) == (b"", (), b"")
    assert (done.left, launcher.status(handle).exit_code) == (0, 3)


def test_followed_output_of_a_silent_terminal_comes_to_its_end(docker_row: DockerRow) -> None:
    launcher = docker_row.launcher(tty=True)
    go = docker_row.shared / "go"
    script = 'echo first; until [ -e "$1" ]; do sleep 0.05; done; echo last'
    run = docker_row.run(script, str(go))
    launcher.launch(run)
    heard = bytearray()
    for piece in launcher.logs(launcher.record(run.id), follow=True):  # type: ignore[attr-defined]
        heard += piece
        go.touch()

    assert bytes(heard) == b"first\r\nlast\r\n"


# ---- created, and never started ----


@pytest.fixture
def run(docker_row: DockerRow) -> Run:
    """Its launcher and the plugin died between create and start of its container: so the daemon and the record say."""
    run = docker_row.run('echo "$SAID" >>"$1"', str(docker_row.shared / "lines"), env={"SAID": "once"})
    launcher = docker_row.launcher(networks=[{"create": "run"}])
    handle = launcher.launch(run).handle
    launcher.wait(handle, timeout=LIMIT)
    workspace, record = launcher.workspace, launcher.record(run.id)
    with workspace.backend.claims.hold(record.stack, "a test", LIMIT) as claim:
        workspace.engine.remove(record.stack, claim)
    workspace.records.write(record.changed(phase=Phase.WANTED, handle=None, launched_at=None))
    there = docker_row.container(handle)
    there.remove(force=True)
    (docker_row.shared / "lines").unlink()
    network = next(iter(there.attrs["NetworkSettings"]["Networks"]))
    name, labels = str(there.name), dict(there.labels)
    docker_row.client.containers.create("busybox:local", ["false"], name=name, labels=labels, network=network)
    return run


def test_a_container_that_was_never_started_makes_room_for_the_next_launch(docker_row: DockerRow, run: Run) -> None:
    launcher = docker_row.launcher(networks=[{"create": "run"}])
    before = launcher.status(run.id).state
    handle = launcher.launch(run).handle

    status = launcher.wait(handle, timeout=LIMIT)

    assert (before, status.state) == (WorkerState.STARTING, WorkerState.SUCCEEDED)
    assert (docker_row.shared / "lines").read_text() == "once\n"
    assert docker_row.executions(run.id) == 1


def test_a_network_that_a_dead_launch_made_makes_room_for_the_next_one(docker_row: DockerRow, run: Run) -> None:
    docker_row.client.containers.get(f"run-{run.id}").remove()
    launcher = docker_row.launcher(networks=[{"create": "run"}])

    status = launcher.wait(launcher.launch(run).handle, timeout=LIMIT)

    assert status.state is WorkerState.SUCCEEDED


def test_terminate_removes_a_container_that_was_never_started(docker_row: DockerRow, run: Run) -> None:
    done = docker_row.launcher().terminate(run.id)

    assert done.left == 0
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []


def test_reconcile_removes_a_container_that_was_never_started_and_starts_nothing(
    docker_row: DockerRow, run: Run
) -> None:
    errors = [each.error for each in Reconciler(make_workspace(docker_row.config())).once() if each.error]

    assert errors == []
    assert not (docker_row.shared / "lines").exists()
    assert docker_row.launcher().status(run.id).reason == "launch failed"
    assert [*docker_row.leftovers(), *docker_row.stacks()] == []


def test_nothing_is_adopted_of_a_container_that_was_never_started(docker_row: DockerRow, run: Run) -> None:
    with pytest.raises(RunNotFoundError):
        docker_row.launcher().adopt(run.id)

    assert not (docker_row.shared / "lines").exists()
