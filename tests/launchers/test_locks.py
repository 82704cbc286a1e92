"""A plain `pulumi` and our commands on one run: a live lock is waited for, a dead one is broken, with proof only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from targets import ProcessRow

from launchers import WorkerHandle
from launchers.testing.contract import eventually
from programs.provider.place import FIRST_PID_NAMESPACE, pid_namespace
from stacks import locks
from stacks.errors import StackLockedError
from stacks.setup import ensure_cli, tools_folder

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or pid_namespace() != FIRST_PID_NAMESPACE,
    reason="only the first pid namespace of a Linux host sees every process",
)
STUBBORN = 'trap "touch \\"$1/asked\\"; until [ -e \\"$1/go\\" ]; do sleep 0.05; done; exit 0" TERM; touch "$1/up"; '
SOON = timedelta(seconds=1)


class Bench:
    """A run whose worker ends only when it is told, and the plain `pulumi` that destroys it meanwhile."""

    def __init__(self, row: ProcessRow) -> None:
        self.row = row
        self.launcher = row.launcher(grace="120s")
        run = row.run(STUBBORN + "while :; do sleep 0.05; done", str(row.shared))
        self.handle: WorkerHandle = self.launcher.launch(run).handle
        assert eventually((row.shared / "up").exists)

    @contextmanager
    def plain_destroy(
        self, *prefix: str, until: Callable[[], object] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """`pulumi destroy` by hand, by default as soon as it has asked the worker to end, which takes long."""
        backend = self.row.launcher().workspace.backend
        cli = ensure_cli(tools_folder(), print)
        environment = {
            "HOME": str(backend.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PULUMI_BACKEND_URL": backend.url,
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(backend.key_file()),
            "PULUMI_SKIP_UPDATE_CHECK": "1",
        }
        stack = self.launcher.record(self.handle).stack.full
        command = [*prefix, str(cli.path), "destroy", "-s", stack, "--yes", "--skip-preview", "--non-interactive"]
        with (self.row.shared / "plain").open("wb") as said:
            process = subprocess.Popen(command, env=environment, cwd=backend.home, stdout=said, stderr=said)
        try:
            begun = until or (self.row.shared / "asked").exists
            assert eventually(lambda: bool(begun())), (self.row.shared / "plain").read_text()
            yield process
        finally:
            self.let_go()
            process.kill()
            process.wait()

    def let_go(self) -> None:
        (self.row.shared / "go").touch()

    def locks(self) -> list[Path]:
        return [path for path in self.row.home.glob("state/.pulumi/locks/**/*.json") if path.is_file()]


@pytest.fixture
def bench(row: ProcessRow) -> Iterator[Bench]:
    made = Bench(row)
    yield made
    made.let_go()
    made.row.launcher().terminate(made.handle)
    assert row.leftovers() == []


@pytest.fixture
def row(tmp_path: Path) -> Iterator[ProcessRow]:
    row = ProcessRow(tmp_path)
    yield row
    row.close()


def test_a_live_plain_pulumi_is_waited_for(bench: Bench) -> None:
    with bench.plain_destroy() as plain, ThreadPoolExecutor() as threads:
        (lock,) = bench.locks()
        with pytest.raises(StackLockedError, match=f"pid {plain.pid}"):
            bench.launcher.terminate(bench.handle, timeout=SOON)
        assert lock.exists()
        ended = threads.submit(bench.launcher.terminate, bench.handle)
        bench.let_go()

        assert plain.wait(60) == 0
        assert ended.result().left == 0
    assert not bench.row.alive(bench.handle)


def test_the_lock_of_a_plain_pulumi_that_was_killed_is_broken(bench: Bench) -> None:
    with bench.plain_destroy() as plain:
        plain.kill()
        plain.wait()
    assert len(bench.locks()) == 1

    assert bench.launcher.terminate(bench.handle).left == 0
    assert bench.locks() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace, as root")
def test_the_lock_of_a_live_pulumi_in_a_container_is_never_broken(bench: Bench) -> None:
    """Its lock names a pid of its own namespace, which no process of this one has."""
    with bench.plain_destroy("unshare", "--pid", "--fork", "--kill-child", until=bench.locks) as container:
        (engine,) = psutil.Process(container.pid).children()
        engine.suspend()
        (lock,) = bench.locks()
        with pytest.raises(StackLockedError):
            bench.launcher.terminate(bench.handle, timeout=SOON)

        assert lock.exists()
        engine.kill()
        container.wait()
    assert bench.launcher.terminate(bench.handle).left == 0


def test_a_lock_whose_owner_nobody_can_prove_gone_is_broken_when_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_sees_all", lambda: False)  # as in a container
    with bench.plain_destroy() as plain:
        plain.kill()
        plain.wait()
    with pytest.raises(StackLockedError, match="--break-lock"):
        bench.launcher.terminate(bench.handle, timeout=SOON)
    assert len(bench.locks()) == 1

    assert bench.launcher.terminate(bench.handle, break_lock=True).left == 0
    assert bench.locks() == []


def test_a_lock_from_before_the_boot_is_dead_wherever_it_is_seen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_sees_all", lambda: False)
    taken = {"pid": os.getpid(), "hostname": "any", "timestamp": "2001-01-01T00:00:00.123456789Z"}

    assert locks.proven_dead(taken, tmp_path)


@pytest.mark.parametrize(
    "lock", [{}, {"pid": "9"}, {"pid": 9}, {"pid": 9, "timestamp": "yesterday"}, {"timestamp": "2001-01-01T00:00:00Z"}]
)
def test_a_lock_that_says_too_little_proves_nothing(lock: dict[str, object], tmp_path: Path) -> None:
    assert not locks.proven_dead(lock, tmp_path)


def test_a_folder_that_other_hosts_share_proves_nothing(tmp_path: Path) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path.resolve()} rw - nfs4 server:/x rw\n"
    inside, beside = tmp_path / "state", tmp_path.parent

    assert locks._file_system(inside, mounts) == "nfs4"
    assert locks._file_system(beside, mounts) == "ext4"
