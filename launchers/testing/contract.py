"""The contract of every launcher, as a suite: inherit `LauncherContract` and give it a `row` fixture.

    class TestNomad(LauncherContract):
        @pytest.fixture
        def row(self, tmp_path):
            yield NomadRow(tmp_path)

Each test is named after the promise that it holds a launcher to. After each, everything is terminated, and
`row.leftovers()` must be empty.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from launchers.launcher import Ejects, HasLogs, RunLauncher
from launchers.testing.row import TargetRow
from stacks.errors import (
    LaunchConflictError,
    LaunchFailedError,
    RunCancelledError,
    RunLauncherError,
    RunNotFoundError,
    UsageError,
)
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus

PATIENCE: Final = timedelta(seconds=60)
ODD_WORDS: Final = (
    "two words",
    "it's",
    'say "hi"',
    "$HOME",
    "$(HOME)",
    "$$",
    "line\nbreak",
    "é",
    "",
    "--flag",
    "*",
    "\\",
)
_LAUNCH: Final = """
import sys
from launchers import Run, load_launcher
handle = load_launcher(sys.argv[1]).launch(Run.model_validate_json(sys.argv[2])).handle
print(handle.to_json())
"""
_END: Final = """
import sys
from launchers import WorkerHandle, launcher_for
handle = WorkerHandle.from_json(sys.argv[1])
launcher = launcher_for(handle)
print(launcher.status(handle).state)
launcher.terminate(handle)
print(launcher.status(handle).state)
"""


_UP: Final = """
export PULUMI_HOME="$1"
. ./env
exec pulumi --non-interactive --color never up --yes --skip-preview
"""


def eventually(condition: Callable[[], bool], within: timedelta = PATIENCE) -> bool:
    """Whether a condition of the outside world, which sends no event, comes true in time."""
    deadline = time.monotonic() + within.total_seconds()
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.01)
    return True


def written(path: Path) -> str:
    """What a worker wrote, as soon as it has written something."""
    assert eventually(lambda: path.exists() and path.stat().st_size > 0)
    return path.read_text()


class LauncherContract:
    """What every launcher promises, on every target and engine."""

    @pytest.fixture
    def row(self) -> Iterator[TargetRow]:
        """The target under test; to be given by the inheriting class."""
        raise NotImplementedError

    @pytest.fixture
    def launcher(self, row: TargetRow) -> RunLauncher[Any]:
        """A launcher of the row."""
        return row.launcher()

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, row: TargetRow) -> Iterator[None]:
        """After each test every run is terminated, and then nothing but records and archives may be there."""
        yield
        launcher = row.launcher()
        for run_id in launcher.workspace.records.ids():
            with suppress(RunNotFoundError):
                launcher.terminate(run_id)

        assert row.leftovers() == []

    # ---- how a run ends ----

    @pytest.mark.smoke
    @pytest.mark.parametrize(("code", "state"), [(0, WorkerState.SUCCEEDED), (3, WorkerState.FAILED)])
    def test_the_exit_code_decides_the_final_state(
        self, row: TargetRow, launcher: RunLauncher[Any], code: int, state: WorkerState
    ) -> None:
        handle = launcher.launch(row.run('exit "$1"', str(code))).handle

        status = launcher.wait(handle, timeout=PATIENCE)

        assert (status.state, status.exit_code) == (state, code)

    def test_a_failing_worker_executes_once(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        lines = row.shared / "lines"
        run = row.run('echo once >>"$1"; exit 3', str(lines))
        launcher.wait(launcher.launch(run).handle, timeout=PATIENCE)
        launcher.launch(run)

        assert lines.read_text() == "once\n"

    @pytest.mark.parametrize(("code", "state"), [(0, WorkerState.SUCCEEDED), (3, WorkerState.FAILED)])
    def test_an_end_state_never_changes_back(
        self, row: TargetRow, launcher: RunLauncher[Any], code: int, state: WorkerState
    ) -> None:
        handle = launcher.launch(row.run('exit "$1"', str(code))).handle
        launcher.wait(handle, timeout=PATIENCE)
        seen = [row.launcher().status(handle) for _ in range(5)]
        launcher.terminate(handle)
        seen.append(row.launcher().status(handle))

        assert {(status.state, status.exit_code) for status in seen} == {(state, code)}

    def test_a_worker_killed_from_outside_is_noticed(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        row.kill(handle)

        status = launcher.wait(handle, timeout=PATIENCE)

        assert status.state is WorkerState.FAILED
        assert not row.alive(handle)

    @pytest.mark.parametrize("script", ["sleep 600", 'trap "" TERM INT HUP; while :; do sleep 0.1; done'])
    def test_max_runtime_ends_it_with_that_reason(self, row: TargetRow, script: str) -> None:
        launcher = row.launcher(max_runtime="1s", grace="1s")
        handle = launcher.launch(row.run(script)).handle

        with row.limits_kept():
            status = launcher.wait(handle, timeout=PATIENCE)

        assert (status.state, status.reason) == (WorkerState.FAILED, "max_runtime")
        assert not row.alive(handle)

    def test_start_timeout_ends_it_with_that_reason(self, row: TargetRow) -> None:
        command = row.slow_start()
        if command is None:
            pytest.skip("no worker of this target can be kept from starting here")
        launcher = row.launcher(start_timeout="1s")
        run = row.run("exit 0").model_copy(update={"command": command})
        with suppress(LaunchFailedError), row.limits_kept():
            launcher.wait(launcher.launch(run).handle, timeout=PATIENCE)

        status = launcher.status(run.id)

        assert status.state is WorkerState.FAILED
        assert "start_timeout" in f"{status.reason} {status.message}"
        assert row.executions(run.id) == 0

    # ---- termination ----

    @pytest.mark.smoke
    def test_terminate_ends_the_worker_itself(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        assert row.alive(handle)

        done = launcher.terminate(handle)

        assert not row.alive(handle)
        assert (done.left, done.status.state) == (0, WorkerState.FAILED)

    def test_terminate_twice_is_as_good_as_once(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        first = launcher.terminate(handle)

        second = row.launcher().terminate(handle)

        assert (second.left, second.status.state) == (0, first.status.state)

    def test_terminate_gives_the_worker_its_grace(self, row: TargetRow) -> None:
        launcher = row.launcher(grace="20s")
        note, ready = row.shared / "note", row.shared / "ready"
        script = 'trap "sleep 1; echo saved >\\"$1\\"; exit 0" TERM; touch "$2"; while :; do sleep 0.1; done'
        handle = launcher.launch(row.run(script, str(note), str(ready))).handle
        assert eventually(ready.exists)

        launcher.terminate(handle)

        assert note.read_text() == "saved\n"

    def test_terminate_ends_a_worker_that_ignores_signals(self, row: TargetRow) -> None:
        launcher = row.launcher(grace="1s")
        ready = row.shared / "ready"
        run = row.run('trap "" TERM INT HUP; touch "$1"; while :; do sleep 0.1; done', str(ready))
        handle = launcher.launch(run).handle
        assert eventually(ready.exists)

        launcher.terminate(handle)

        assert not row.alive(handle)

    def test_terminate_without_waiting_returns_soon_and_ends_it(
        self, row: TargetRow, launcher: RunLauncher[Any]
    ) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        begun = time.monotonic()
        done = launcher.terminate(handle, wait=False)
        took = time.monotonic() - begun

        assert took < 2  # the contract's own bound
        assert not done.done
        assert eventually(lambda: not row.alive(handle))

    def test_the_grandchildren_of_a_worker_die_with_it(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        """One of them has left session, group and environment: only what it does shows that it lives."""
        beats, script = row.shared / "beats", row.shared / "beat.sh"
        script.write_text('i=0; while [ $((i += 1)) -lt 600 ]; do echo beat >>"$1"; sleep 0.1; done\n')
        command = '(sleep 601 &) ; setsid sleep 602 & (setsid env -i "$(command -v sh)" "$1" "$2" &); sleep 604'
        handle = launcher.launch(row.run(command, str(script), str(beats))).handle
        assert eventually(beats.exists)

        launcher.terminate(handle)
        heard = beats.read_bytes()

        assert not eventually(lambda: beats.read_bytes() != heard, within=timedelta(seconds=1))
        assert not row.alive(handle)
        assert row.executions(handle.run_id) == 0

    def test_what_a_worker_leaves_running_ends_with_it(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("setsid sleep 605 & sleep 606 & exit 0")).handle

        status = launcher.wait(handle, timeout=PATIENCE)

        assert status.state is WorkerState.SUCCEEDED
        assert not row.alive(handle)

    def test_terminate_before_the_worker_runs_leaves_no_late_start(self, row: TargetRow) -> None:
        run = row.run("sleep 600")
        with ThreadPoolExecutor() as threads:
            launch = threads.submit(row.launcher().launch, run)
            records = row.launcher().workspace.records
            assert eventually(lambda: records.read(run.id) is not None)
            row.launcher().terminate(run.id)
            error = launch.exception()

        assert error is None or isinstance(error, RunCancelledError | LaunchConflictError)
        assert row.executions(run.id) == 0
        with pytest.raises(LaunchConflictError):
            row.launcher().launch(run)

    def test_a_wish_to_end_it_is_carried_out_by_the_launch_itself(self, row: TargetRow) -> None:
        run = row.run("sleep 600")
        with ThreadPoolExecutor() as threads:
            launch = threads.submit(row.launcher().launch, run)
            records = row.launcher().workspace.records
            assert eventually(lambda: records.read(run.id) is not None)
            row.launcher().terminate(run.id, wait=False)
            error = launch.exception()

        assert isinstance(error, RunCancelledError)
        assert row.executions(run.id) == 0
        assert row.stacks() == []

    # ---- one id, one worker ----

    @pytest.mark.parametrize("script", ["sleep 600", "exit 0"])
    def test_launching_a_run_again_returns_its_worker(
        self, row: TargetRow, launcher: RunLauncher[Any], script: str
    ) -> None:
        run = row.run(script)
        first = launcher.launch(run)
        if script == "exit 0":
            launcher.wait(first.handle, timeout=PATIENCE)

        second = row.launcher().launch(run)

        assert (first.created, second.created) == (True, False)
        assert second.handle == first.handle

    @pytest.mark.parametrize("what", ["command", "env", "template"])
    def test_the_same_id_with_something_else_is_refused(
        self, row: TargetRow, launcher: RunLauncher[Any], what: str
    ) -> None:
        run = row.run("sleep 600")
        handle = launcher.launch(run).handle
        other = {"command": row.run("sleep 601", run_id=run.id), "env": run.model_copy(update={"env": {"A": "b"}})}
        launcher = row.launcher(description="another") if what == "template" else launcher

        with pytest.raises(LaunchConflictError, match=what if what != "env" else "environment"):
            launcher.launch(other.get(what, run))
        assert row.alive(handle)
        assert row.executions(run.id) == 1

    def test_two_launchers_at_once_give_one_worker(self, row: TargetRow) -> None:
        lines = row.shared / "lines"
        run = row.run('echo once >>"$1"; sleep 600', str(lines))
        with ThreadPoolExecutor(20) as threads:
            results = list(threads.map(lambda _: row.launcher().launch(run), range(20)))

        assert len({each.handle.to_json() for each in results}) == 1
        assert sum(each.created for each in results) == 1
        assert written(lines) == "once\n"
        assert row.executions(run.id) == 1

    def test_only_the_next_attempt_starts_another_worker(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        run = row.run("exit 3")
        first = launcher.launch(run).handle
        launcher.wait(first, timeout=PATIENCE)

        second = launcher.launch(run.model_copy(update={"attempt": 1}))

        assert second.created
        assert second.handle.coordinates != first.coordinates
        assert launcher.status(first).state is WorkerState.FAILED
        with pytest.raises(LaunchConflictError):
            launcher.launch(run)

    def test_the_next_attempt_waits_for_the_end_of_the_one_before(
        self, row: TargetRow, launcher: RunLauncher[Any]
    ) -> None:
        run = row.run("sleep 600")
        handle = launcher.launch(run).handle

        with pytest.raises(LaunchConflictError, match="RUNNING"):
            launcher.launch(run.model_copy(update={"attempt": 1}))
        assert row.alive(handle)

    def test_a_terminated_run_is_over(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        run = row.run("sleep 600")
        launcher.terminate(launcher.launch(run).handle)

        with pytest.raises(LaunchConflictError, match="terminated"):
            launcher.launch(run)
        assert launcher.launch(run.model_copy(update={"attempt": 1})).created

    def test_an_absent_worker_is_not_started_again(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        lines = row.shared / "lines"
        run = row.run('echo once >>"$1"; exit 0', str(lines))
        handle = launcher.launch(run).handle
        launcher.wait(handle, timeout=PATIENCE)
        for found in launcher.find([launcher.record(run.id)]):
            launcher.remove(found, timedelta(seconds=1))

        assert launcher.launch(run).handle == handle
        assert lines.read_text() == "once\n"

    def test_runs_do_not_see_each_other(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        runs = [row.run("sleep 600") for _ in range(5)]
        with ThreadPoolExecutor(5) as threads:
            handles = [each.handle for each in threads.map(launcher.launch, runs)]
        launcher.terminate(handles[2])

        assert [row.alive(handle) for handle in handles] == [True, True, False, True, True]

    # ---- handles ----

    def test_a_handle_outlives_its_launcher(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        command = row.another_process(_END, handle.to_json())

        done = subprocess.run(command, capture_output=True, text=True, check=False)

        assert done.stdout.split() == ["RUNNING", "FAILED"], done.stderr
        assert not row.alive(handle)

    def test_a_handle_read_in_another_place_is_unknown(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        moved = handle.model_copy(update={"place": "elsewhere:1"})
        seen = [launcher.status(moved), row.seen_elsewhere(handle)]

        assert {status.state for status in seen if status is not None} == {WorkerState.UNKNOWN}
        assert handle.place in (seen[1] or WorkerStatus(state=WorkerState.UNKNOWN, message=handle.place)).message

    def test_the_status_of_a_stranger_is_not_found(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        handle = launcher.launch(row.run("exit 0")).handle
        coordinates = {name: f"{value}-stranger" for name, value in handle.coordinates.items()}
        stranger = handle.model_copy(update={"run_id": "stranger", "coordinates": coordinates})

        assert launcher.status("stranger").state is WorkerState.NOT_FOUND
        assert launcher.status(stranger).state is WorkerState.NOT_FOUND
        with pytest.raises(RunNotFoundError):
            launcher.terminate("stranger")

    def test_a_handle_of_a_later_release_is_read(self, launcher: RunLauncher[Any], row: TargetRow) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        later = WorkerHandle.from_json(json.dumps({**json.loads(handle.to_json()), "new_field": 1}))

        assert launcher.status(later).state in {WorkerState.STARTING, WorkerState.RUNNING}

    def test_everything_carries_the_labels_of_its_run(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        runs = [row.run("sleep 600"), row.run("exit 0")]
        for run in runs:
            launcher.launch(run)

        found = {each.handle.run_id: each for each in row.launcher().find(None)}

        assert set(found) == {run.id for run in runs}
        for run in runs:
            labels = found[run.id].labels
            assert labels["run-launcher/run-id"] == run.id
            assert labels["run-launcher/attempt"] == "0"
            assert {"template", "digest", "backend", "fingerprint"} <= {name.partition("/")[2] for name in labels}
            assert found[run.id].handle == launcher.record(run.id).handle

    def test_a_watch_tells_how_a_worker_changes(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        gate, seen = row.shared / "gate", list[WorkerState]()
        run = row.run('while ! [ -e "$1" ]; do sleep 0.05; done; exit 3', str(gate))
        launcher.launch(run)

        def watch() -> None:
            for event in row.launcher().watch():
                if event.found.handle.run_id == run.id:
                    seen.append(event.found.status.state)
                if WorkerState.NOT_FOUND in seen:
                    return

        with ThreadPoolExecutor() as threads:
            watching = threads.submit(watch)
            assert eventually(lambda: WorkerState.RUNNING in seen or watching.done())
            gate.touch()
            assert eventually(lambda: WorkerState.FAILED in seen or watching.done())
            launcher.terminate(run.id)
            watching.result(PATIENCE.total_seconds())

        once = [state for number, state in enumerate(seen) if seen[:number][-1:] != [state]]
        assert once == [WorkerState.RUNNING, WorkerState.FAILED, WorkerState.NOT_FOUND]

    # ---- what arrives, what is shown ----

    def test_command_and_environment_arrive_verbatim(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        words, env = row.shared / "words", row.shared / "env"
        values = {f"ODD_{index}": word for index, word in enumerate(ODD_WORDS)}
        script = (
            'out=$1; env_out=$2; shift 2; for word; do printf "%s\\0" "$word"; done >"$out"; '
            'cat /proc/self/environ >"$env_out"'
        )
        handle = launcher.launch(row.run(script, str(words), str(env), *ODD_WORDS, env=values)).handle

        assert launcher.wait(handle, timeout=PATIENCE).exit_code == 0
        assert words.read_bytes() == b"".join(os.fsencode(word) + b"\0" for word in ODD_WORDS)
        seen = env.read_bytes().split(b"\0")
        assert [os.fsencode(f"{name}={value}") in seen for name, value in values.items()] == [True] * len(values)

    def test_logs_end_with_the_worker_and_survive_terminate(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        if not isinstance(launcher, HasLogs):
            pytest.skip("this target shows no logs")
        handle = launcher.launch(row.run("for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done")).handle
        record = launcher.record(handle)

        followed = b"".join(launcher.logs(record, follow=True))
        assert not row.alive(handle)
        launcher.terminate(handle)
        kept = b"".join(launcher.logs(launcher.record(handle)))

        lines = followed.splitlines()
        assert followed == kept
        assert [line for line in lines if line.startswith(b"out")] == [b"out 1", b"out 2", b"out 3"]
        assert [line for line in lines if line.startswith(b"err")] == [b"err 1", b"err 2", b"err 3"]
        assert not row.orders_streams or lines[:3] == [b"out 1", b"err 1", b"out 2"]

    def test_why_shows_the_command_and_the_last_lines(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        run = row.run("for i in $(seq 30); do echo line $i; done; exit 7")
        launcher.wait(launcher.launch(run).handle, timeout=PATIENCE)

        why = launcher.why(run.id)

        assert (why.command, why.status.exit_code) == (run.command, 7)
        assert why.last_lines == tuple(f"line {index}" for index in range(11, 31))

    def test_a_secret_is_in_no_log_error_process_list_or_plain_state(
        self, row: TargetRow, launcher: RunLauncher[Any]
    ) -> None:
        secret = "s3cr3t-" + os.urandom(8).hex()
        hidden = row.shared / "hidden"
        run = row.run('printf %s "$TOKEN" >"$1"; sleep 600', str(hidden), env={"TOKEN": secret})
        handle = launcher.launch(run).handle
        assert eventually(lambda: hidden.exists() and hidden.read_text() == secret)
        traces = [row.public_traces()]
        with pytest.raises(RunLauncherError) as refused:
            launcher.launch(run.model_copy(update={"env": {"TOKEN": secret + "x"}}))
        launcher.terminate(handle)
        traces += [row.public_traces(), f"{refused.value}{refused.value.details}".encode(), repr(run).encode()]

        assert [secret.encode() in trace for trace in traces] == [False] * len(traces)

    # ---- what fails ----

    def test_a_bad_template_makes_no_stack(self, row: TargetRow) -> None:
        with pytest.raises((UsageError, ValueError)):
            row.launcher(no_such_key=1).launch(row.run("exit 0"))
        assert row.stacks() == []

    def test_a_failed_launch_leaves_nothing_but_its_record(self, row: TargetRow, launcher: RunLauncher[Any]) -> None:
        run = row.run("exit 0").model_copy(update={"command": row.refused()})

        with pytest.raises(LaunchFailedError):
            launcher.launch(run)
        assert row.stacks() == []
        assert row.leftovers() == []
        assert launcher.status(run.id).state is WorkerState.FAILED
        assert launcher.launch(row.run("exit 0", run_id=run.id)).created

    @pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, None])
    def test_a_launcher_killed_at_any_moment_is_put_right_by_the_next_command(
        self, row: TargetRow, delay: float | None
    ) -> None:
        """Without a delay it is killed once its worker runs, which it has not recorded by then."""
        lines = row.shared / "lines"
        run = row.run('echo once >>"$1"; sleep 600', str(lines))
        with subprocess.Popen(row.another_process(_LAUNCH, *row_template(row), run.model_dump_json())) as process:
            records = row.launcher().workspace.records
            assert eventually(lambda: records.read(run.id) is not None or process.poll() is not None)
            assert delay is not None or eventually(lines.exists)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay or 0)
            process.send_signal(signal.SIGKILL)

        launched = row.launcher().launch(run)

        assert written(lines) == "once\n"
        assert row.executions(run.id) == 1
        assert row.alive(launched.handle)

    @pytest.mark.parametrize("script", ["sleep 600", "exit 3"])
    def test_a_plain_up_of_an_ejected_run_changes_nothing_and_a_changed_one_is_refused(
        self, row: TargetRow, launcher: RunLauncher[Any], script: str
    ) -> None:
        if not isinstance(launcher, Ejects):
            pytest.skip("this target's program does not run from disk")
        lines = row.shared / "lines"
        handle = launcher.launch(row.run(f'echo once >>"$1"; {script}', str(lines))).handle
        if script != "sleep 600":
            launcher.wait(handle, timeout=PATIENCE)
        ejected = launcher.eject(handle, row.shared / "ejected")
        folder, url = ejected.folder, launcher.workspace.backend.url
        environment = {**os.environ, **({} if ejected.backend_named else {"PULUMI_BACKEND_URL": url})}
        alive = row.alive(handle)

        def up() -> subprocess.CompletedProcess[str]:
            words = ["sh", "-ec", _UP, "sh", str(row.shared / "pulumi")]
            return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment)

        unchanged = up()
        (settings,) = folder.glob("Pulumi.*.yaml")
        settings.write_text(settings.read_text().replace("echo once", "echo twice"))
        changed = up()

        assert unchanged.returncode == 0, unchanged.stdout + unchanged.stderr
        assert re.search(r"Resources:\s+\d+ unchanged\s+Duration", unchanged.stdout)
        assert changed.returncode != 0
        assert launcher.workspace.engine.outputs(launcher.record(handle).stack) == {
            "handle": json.loads(handle.to_json())
        }
        assert row.alive(handle) == alive
        assert lines.read_text() == "once\n"

    def test_a_worker_that_a_dead_launch_left_is_adopted(self, row: TargetRow) -> None:
        lines = row.shared / "lines"
        run = row.run('echo once >>"$1"; sleep 600', str(lines))
        with subprocess.Popen(
            row.another_process(_LAUNCH, *row_template(row), run.model_dump_json()), stdout=subprocess.DEVNULL
        ) as process:
            assert eventually(lambda: lines.exists() or process.poll() is not None)
            process.send_signal(signal.SIGKILL)

        adopted = row.launcher().adopt(run.id)

        assert not adopted.created
        assert row.alive(adopted.handle)
        assert written(lines) == "once\n"
        assert row.launcher().launch(run).handle == adopted.handle
        with pytest.raises(RunNotFoundError):
            row.launcher().adopt("stranger")

    @pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.25, 0.35, 0.45])
    def test_a_launcher_killed_at_any_moment_can_be_followed_by_a_termination(
        self, row: TargetRow, delay: float
    ) -> None:
        run = row.run("sleep 600")
        with subprocess.Popen(row.another_process(_LAUNCH, *row_template(row), run.model_dump_json())) as process:
            records = row.launcher().workspace.records
            assert eventually(lambda: records.read(run.id) is not None or process.poll() is not None)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.send_signal(signal.SIGKILL)

        done = row.launcher().terminate(run.id)

        assert done.left == 0
        assert row.executions(run.id) == 0
        assert row.leftovers() == []

    @pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.3, 0.5])
    def test_a_termination_killed_at_any_moment_is_put_right_by_the_next_command(
        self, row: TargetRow, launcher: RunLauncher[Any], delay: float
    ) -> None:
        handle = launcher.launch(row.run("sleep 600")).handle
        stack = launcher.record(handle).stack
        with subprocess.Popen(row.another_process(_END, handle.to_json()), stdout=subprocess.DEVNULL) as process:
            records = row.launcher().workspace.records
            assert eventually(lambda: records.wish(stack) is not None or process.poll() is not None)
            with suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.send_signal(signal.SIGKILL)

        done = row.launcher().terminate(handle)

        assert done.left == 0
        assert not row.alive(handle)


def row_template(row: TargetRow) -> tuple[str, ...]:
    """The path of the row's template, for a process of its own."""
    path = row.shared / "template.yaml"
    path.write_text(row.launcher().template.canonical())  # JSON is YAML
    return (str(path),)
