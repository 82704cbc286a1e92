"""Inside somebody else's program: forks, threads, event loops, and nothing of that program is touched."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from targets import ProcessRow, terminate_all

from launchers import WorkerState, launcher_for
from launchers.testing.contract import eventually
from programs.provider import place, worker
from programs.provider.folder import Identity
from stacks.claims import Claims
from stacks.engine import stack_name
from stacks.errors import DamagedFileError
from stacks.records import Phase, Record, Records

LIMIT = timedelta(seconds=60)
_FORK = """
import os, sys
from launchers import Run, load_launcher
launcher = load_launcher("process")
handle = launcher.launch(Run(id="before", command=("sleep", "600"))).handle
child = os.fork()
if child == 0:
    print(launcher.status(handle).state, flush=True)
    for act in (lambda: launcher.launch(Run(id="after", command=("sleep", "600"))), lambda: launcher.terminate(handle)):
        try:
            act()
        except Exception as error:
            print(type(error).__name__, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(launcher.workspace.records.ids(), launcher.terminate(handle).left)
"""


@pytest.fixture
def row(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ProcessRow]:
    row = ProcessRow(tmp_path, engine=getattr(request, "param", "auto"))
    yield row
    terminate_all(row.launcher())
    assert row.leftovers() == []


def test_a_fork_can_look_and_is_told_why_it_cannot_launch(row: ProcessRow) -> None:
    done = subprocess.run(row.another_process(_FORK), capture_output=True, text=True, check=False, timeout=60)

    assert done.stdout.splitlines() == ["RUNNING", "ForkedError", "ForkedError", "['before'] 0"], done.stderr


def test_it_works_inside_a_running_event_loop(row: ProcessRow) -> None:
    async def cell() -> int | None:
        launcher = row.launcher()
        return launcher.wait(launcher.launch(row.run("exit 4")).handle, timeout=LIMIT).exit_code

    assert asyncio.run(cell()) == 4


def test_one_launcher_serves_many_threads(row: ProcessRow) -> None:
    launcher = row.launcher()
    runs = [row.run('exit "$1"', str(number)) for number in range(8)]

    def life(run: object) -> int | None:
        handle = launcher.launch(run).handle  # type: ignore[arg-type] # a Run, through map
        code = launcher.wait(handle, timeout=LIMIT).exit_code
        launcher.terminate(handle)
        return code

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(life, runs)) == list(range(8))


def test_the_process_around_it_is_left_alone(row: ProcessRow, capfd: pytest.CaptureFixture[str]) -> None:
    def around() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        return dict(os.environ), Path.cwd(), handlers, logging.getLogger().handlers, os.umask(0o022)

    os.umask(0o022)
    before = around()
    launcher = row.launcher()
    launcher.terminate(launcher.launch(row.run("exit 0")).handle)  # brings what one process shares
    threads = threading.active_count()
    launcher.terminate(launcher.launch(row.run("exit 0")).handle)

    assert around() == before
    assert eventually(lambda: threading.active_count() <= threads), threading.enumerate()
    assert capfd.readouterr() == ("", "")


def test_a_run_is_watched_by_its_id_or_its_handle_alone(row: ProcessRow) -> None:
    handle = row.launcher().launch(row.run("sleep 600")).handle
    config = row.config()

    assert launcher_for(handle.run_id, config=config).status(handle.run_id).state is WorkerState.RUNNING
    assert launcher_for(handle, config=config).template.grace == timedelta(seconds=5)
    assert launcher_for(handle, config=config).terminate(handle).left == 0


@pytest.mark.parametrize("pattern", ["state/records/*/*.json", "state/.pulumi/stacks/*/*.json", "runs/*/*/worker.json"])
def test_an_emptied_file_is_named_and_the_worker_can_still_be_ended(row: ProcessRow, pattern: str) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    (path,) = row.home.glob(pattern)
    content = path.read_bytes()
    path.with_name(f"{path.name}.bak").unlink(missing_ok=True)
    path.write_bytes(b"")
    with pytest.raises(DamagedFileError, match=path.name):
        launcher.terminate(handle)
    ended = not row.alive(handle)
    path.write_bytes(content)
    launcher.terminate(handle)

    assert ended == ("stacks" in pattern)


@pytest.mark.parametrize("row", ["cli"], indirect=True)  # what the other one writes is whole, or not there
def test_a_state_that_was_cut_short_is_taken_from_the_engines_own_backup(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle
    (path,) = row.home.glob("state/.pulumi/stacks/*/*.json")
    path.write_bytes(path.read_bytes()[:4096])

    assert launcher.terminate(handle).left == 0
    assert not row.alive(handle)


def test_a_launch_that_cannot_be_recorded_leaves_no_worker(row: ProcessRow, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, run = row.launcher(), row.run("sleep 600")
    write = Records.write

    def full(records: Records, record: Record) -> None:
        if record.phase is Phase.LAUNCHED:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(records, record)

    monkeypatch.setattr(Records, "write", full)
    with pytest.raises(OSError, match="space"):
        launcher.launch(run)

    assert row.executions(run.id) == 0
    assert launcher.status(run.id).state is WorkerState.FAILED


def test_launching_a_run_again_asks_no_engine(row: ProcessRow) -> None:
    run = row.run("sleep 600")
    handle = row.launcher().launch(run).handle
    launcher = row.launcher()
    vars(launcher.workspace)["engine"] = None

    assert launcher.launch(run).handle == handle


def test_a_worker_that_no_state_knows_is_taken_over(row: ProcessRow) -> None:
    """As a launcher leaves it that is killed while the engine's create is at work."""
    launcher, run = row.launcher(), row.run("sleep 600")
    handle = launcher.launch(run).handle
    record = launcher.record(run.id)
    launcher.workspace.records.write(record.changed(phase=Phase.WANTED, handle=None, launched_at=None))
    next(iter(row.home.glob("state/.pulumi/stacks/*/*.json"))).unlink()

    assert row.launcher().launch(run).handle == handle
    assert row.executions(run.id) == 1


def test_the_engine_of_a_killed_launcher_is_ended_before_the_next_one_starts(row: ProcessRow) -> None:
    run = row.run("sleep 600")
    code = "import sys; from launchers import Run, load_launcher; "
    code += "load_launcher('process').launch(Run(id=sys.argv[1], command=('true',)))"
    claims = row.launcher().workspace.backend.claims
    assert isinstance(claims, Claims)
    claim = claims.path(stack_name(run.id, 0))
    with subprocess.Popen(row.another_process(code, run.id)) as process:
        while not list(row.home.glob("state/.pulumi/locks/*/*/*/*.json")):
            assert process.poll() is None
        engine = int(claim.with_name(f"{claim.name}~cli").read_text().split()[0])
        start = worker.start_time(engine)
        process.kill()
        process.wait()
        os.kill(engine, signal.SIGSTOP)  # not before: the kernel wakes what is stopped in a group that is orphaned
    row.launcher().terminate(run.id)

    assert start is not None
    assert not worker.alive(Identity(engine, start))
    assert row.executions(run.id) == 0


def test_why_keeps_no_more_of_the_output_than_it_shows(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("exit 3")).handle
    launcher.wait(handle, timeout=LIMIT)
    os.truncate(next(iter(row.home.glob("runs/*/*/output.log"))), 100 * 2**20)
    tracemalloc.start()
    try:
        launcher.why(handle)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 10 * 2**20


def test_a_full_disk_does_not_keep_a_worker_alive(row: ProcessRow, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600")).handle

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Records, "wish_end", full)
        with pytest.raises(OSError, match="space"):
            launcher.terminate(handle)

    assert launcher.wait(handle, timeout=LIMIT).reason == "terminated"
    assert not row.alive(handle)


def test_ending_an_attempt_leaves_the_next_one_alone(row: ProcessRow) -> None:
    launcher = row.launcher()
    run = row.run("exit 3")
    first = launcher.launch(run).handle
    launcher.wait(first, timeout=LIMIT)
    claims = launcher.workspace.backend.claims
    with ThreadPoolExecutor() as threads:
        with claims.hold(stack_name(run.id, 0), "test", LIMIT):
            ending = threads.submit(row.launcher().terminate, first)
            while launcher.workspace.records.wish(stack_name(run.id, 0)) is None:
                assert not ending.done()
            record = launcher.record(run.id)
            launcher.workspace.records.write(record.changed(attempt=1))
        done = ending.result()
    removed = launcher.record(run.id).removed
    launcher.workspace.records.write(record)

    assert (done.objects, removed) == (0, None)
    assert launcher.workspace.records.wish(record.stack) is None


def test_a_launcher_is_made_without_touching_the_disk(tmp_path: Path) -> None:
    code = "import sys; from launchers import load_launcher; load_launcher('process'); print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert not (tmp_path / "home").exists()
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ["stacks", "programs"])
def test_a_users_folder_named_like_ours_gives_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()

    done = subprocess.run(
        [sys.executable, "-c", "import launchers"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.stderr.splitlines()[-1] == (
        f"ImportError: run-launcher's package '{name}' is hidden by {tmp_path / name}: "
        "rename that folder, or start from another one"
    )


def test_a_run_from_before_a_restart_of_its_host_has_ended(row: ProcessRow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files as they are found after it: another boot id, and nothing that runs."""
    launcher, run = row.launcher(), row.run("sleep 600")
    handle = launcher.launch(run).handle
    boot, another = place.boot_id(), "00000000-0000-0000-0000-000000000000"
    monkeypatch.setattr(place, "host", lambda: "0123456789abcdef")
    monkeypatch.setattr(place, "FIRST_PID_NAMESPACE", place.pid_namespace())
    for path in [*row.home.glob("state/records/*/*.json"), *row.home.glob("runs/*/*/worker.json")]:
        host = handle.place.partition("/")[0]
        path.write_text(path.read_text().replace(boot, another).replace(host, "host:0123456789abcdef"))
    moved = launcher.record(run.id).handle
    assert moved is not None
    row.kill(handle)
    assert worker.await_end(
        Identity(int(str(handle.coordinates["pid"])), int(str(handle.coordinates["start_time"]))), 10
    )
    (folder,) = row.home.glob("runs/*/*")
    while not (folder / "exit.json").exists():
        assert folder.exists()
    (folder / "exit.json").unlink()

    status = launcher.status(moved)

    assert (status.state, status.message) == (WorkerState.FAILED, "its host was restarted while it ran")
    assert launcher.status(moved.model_copy(update={"place": "host:other/1/1"})).state is WorkerState.UNKNOWN
    assert launcher.launch(run.model_copy(update={"attempt": 1})).created


def test_a_worker_whose_folder_was_removed_by_hand_is_seen_and_ended(row: ProcessRow) -> None:
    launcher = row.launcher()
    handle = launcher.launch(row.run("sleep 600 & sleep 600")).handle
    (folder,) = row.home.glob("runs/*/*")
    shutil.rmtree(folder)
    marked = [each.pid for each in row._processes(None)]

    assert launcher.status(handle).state is WorkerState.RUNNING
    assert launcher.terminate(handle).left == 0
    assert len(marked) >= 2
    assert list(row._processes(None)) == []
