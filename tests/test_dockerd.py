"""The Docker Engine of the tests: it works, survives what tests do to it, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dockerd_network
import psutil
import pytest
from dockerd import Daemon, Dockerd, absent, in_session, running
from dockerd_setup import UnavailableError
from images import BUSYBOX, CHECKOUT, WORKER, mounts

OWN: Final = pytest.mark.usefixtures("own_dockerd")
"""Where there is one daemon of our own, another can be had."""
FOREVER: Final = ["sleep", "1000000"]
SESSION: Final = """
import contextlib, os, time
import pytest

@pytest.mark.parametrize("number", range(2))
def test_a_container_runs(dockerd, number):
    with contextlib.closing(dockerd.client()) as client:
        client.containers.run("busybox:local", ["sleep", "1000000"], detach=True)
    with open(os.environ["TOLD"], "a") as told:
        print(dockerd.folder, file=told)
    time.sleep(1000)
"""
"""A session of two processes, each with a container, which does not end by itself."""


@contextmanager
def client_of(daemon: Daemon) -> Iterator[Any]:
    with contextlib.closing(daemon.client()) as client:
        yield client


def traces(folder: Path) -> list[str]:
    """All that the kernel and the files know of a daemon."""
    groups = Path("/sys/fs/cgroup")
    places = (folder, groups / folder.name, *(each / folder.name for each in groups.iterdir()))
    found = [str(path) for path in places if path.exists()]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            group = Path(f"/proc/{process.pid}/cgroup").read_text()
            mounted = Path(f"/proc/{process.pid}/mountinfo").read_text()
            if any(folder.name in text for text in (words, group, mounted)):
                found.append(f"process {process.pid}: {words}")
    return found


def links() -> dict[str, int]:
    """All network devices, each with the number that no other one gets."""
    shown = json.loads(subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout)
    return {each["ifname"]: each["ifindex"] for each in shown if each}


def links_of(folder: Path) -> set[int]:
    """The network devices of a daemon: bridges with an address of its slice, and what hangs on them."""
    every = links()
    return {every[name] for name in dockerd_network.links(int((folder / "slice").read_text()))}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_command_in_busybox_is_told_its_environment(dockerd: Daemon) -> None:
    script = ["sh", "-c", "cat /proc/self/environ; id -u"]
    with client_of(dockerd) as client:
        said = client.containers.run(BUSYBOX, script, environment={"A": "é\n"}, remove=True)

    assert "A=é\n\0".encode() in said
    assert said.endswith(b"\x000\n")


def test_a_worker_imports_what_the_tests_import(dockerd: Daemon) -> None:
    volumes = [str(mount) for mount in mounts()]
    code = "import dagster, launchers; print(launchers.__file__)"
    with client_of(dockerd) as client:
        version = client.containers.run(WORKER, ["python", "-m", "dagster", "--version"], volumes=volumes, remove=True)
        where = client.containers.run(WORKER, ["python", "-c", code], volumes=volumes, remove=True)

    assert b"dagster, version" in version
    assert where.decode() == f"{CHECKOUT}/launchers/__init__.py\n"


def test_a_container_survives_the_daemon_and_is_found_again(own_dockerd: Dockerd) -> None:
    with client_of(own_dockerd) as client:
        name = client.containers.run(BUSYBOX, FOREVER, detach=True).name
        before = client.containers.get(name).attrs["State"]
        first = own_dockerd.pid
        own_dockerd.kill()
        gone = not psutil.pid_exists(first)
        alive = psutil.pid_exists(before["Pid"])
        own_dockerd.start()
        after = client.containers.get(name).attrs["State"]
        client.containers.get(name).remove(force=True)
        left = client.containers.list(all=True)

    assert (gone, alive) == (True, True)
    assert own_dockerd.pid != first
    assert (after["Status"], after["Pid"]) == ("running", before["Pid"])
    assert left == []


def test_a_daemon_killed_by_somebody_else_starts_again_at_once(own_dockerd: Dockerd) -> None:
    os.kill(own_dockerd.pid, signal.SIGKILL)
    own_dockerd.start()

    with client_of(own_dockerd) as client:
        assert client.ping()


def test_a_container_that_ends_while_the_daemon_is_away_has_its_exit_code(own_dockerd: Dockerd) -> None:
    with client_of(own_dockerd) as client:
        container = client.containers.run(BUSYBOX, ["sh", "-c", "sleep 1; exit 3"], detach=True)
        own_dockerd.stop()
        time.sleep(1.5)
        own_dockerd.start()

        assert container.wait()["StatusCode"] == 3


@OWN
def test_a_full_disk_is_the_daemons_alone() -> None:
    with running(size="40m") as small, client_of(small) as client:
        script = [
            "sh",
            "-c",
            "cat /dev/zero >/zeros; told=$?; df -m / >/dev/shm/df; rm /zeros; echo $told; cat /dev/shm/df",
        ]
        said = client.containers.run(BUSYBOX, script).decode().split()

    assert said[0] == "1"
    assert said[-5:-2] == ["40", "40", "0"]  # MiB: all, used, free


def test_nothing_is_left_of_containers_networks_and_a_killed_daemon(own_dockerd: Dockerd) -> None:
    with running() as daemon, client_of(daemon) as client:
        network = client.networks.create("of-a-test").name
        client.containers.run(BUSYBOX, FOREVER, detach=True, network=network)
        client.containers.run(BUSYBOX, FOREVER, detach=True).pause()
        there, devices = traces(daemon.folder), links_of(daemon.folder)
        daemon.kill()

    assert len(there) > 5
    assert len(devices) == 4  # a bridge of its own and that of the network, each with a container
    assert traces(daemon.folder) == []
    assert not devices & set(links().values())
    with client_of(own_dockerd) as client:
        assert client.ping()


def test_the_machines_own_daemon_serves_where_none_can_be_started(
    own_dockerd: Dockerd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dockerd.cannot", lambda: "not today")
    monkeypatch.setenv("DOCKER_HOST", own_dockerd.url)
    why = absent()
    with in_session(tmp_path / "note") as daemon:
        found = daemon
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    why_not = absent()

    assert why is None
    assert found == Daemon(own_dockerd.url)
    assert why_not == "not today"


@OWN
@pytest.mark.parametrize(
    ("options", "size", "why"), [(["--no-such"], None, "unknown flag: --no-such"), ([], "none", "'mount'")]
)
def test_a_daemon_that_cannot_start_says_why_and_leaves_nothing(
    options: list[str], size: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def noted(prefix: str, dir: str) -> str:  # noqa: A002 - mkdtemp's own
        made.append(Path(dir, f"{prefix}{tmp_path.stat().st_ino}"))
        made[0].mkdir()
        return str(made[0])

    monkeypatch.setattr("tempfile.mkdtemp", noted)
    with pytest.raises(UnavailableError, match=why), running(*options, size=size):
        pass

    wait_until(lambda: traces(made[0]) == [])


@OWN
def test_one_daemon_serves_all_processes_of_a_session_until_the_last_leaves(tmp_path: Path) -> None:
    with in_session(tmp_path / "note") as first:
        assert isinstance(first, Dockerd)
        with in_session(tmp_path / "note") as second:
            assert second.url == first.url
        with client_of(first) as client:
            assert client.ping()

    assert traces(first.folder) == []
    with in_session(tmp_path / "note") as third:
        assert third.url != first.url


def test_two_sessions_at_once_do_not_see_each_other(own_dockerd: Dockerd) -> None:
    with client_of(own_dockerd) as ours:
        container = ours.containers.run(BUSYBOX, FOREVER, detach=True)
        with running() as other, client_of(other) as theirs:
            theirs.containers.run(BUSYBOX, FOREVER, detach=True, name=container.name)
            address = theirs.containers.get(container.name).attrs["NetworkSettings"]["IPAddress"]
            assert [each.id for each in ours.containers.list()] == [container.id]
        container.reload()

        assert container.status == "running"
        assert container.attrs["NetworkSettings"]["IPAddress"].split(".")[:3] != address.split(".")[:3]


@OWN
def test_a_session_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    told = tmp_path / "told"
    test = tmp_path / "test_session.py"
    test.write_text(SESSION)
    words = ["-m", "pytest", "-p", "conftest", "-c", CHECKOUT / "pyproject.toml", "-n", "2", test]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests"), "TOLD": str(told)}
    with (
        (tmp_path / "out").open("w") as out,
        subprocess.Popen(
            [sys.executable, *map(str, words), f"--basetemp={tmp_path}/base"],
            env={name: value for name, value in environment.items() if not name.startswith("PYTEST_")},
            stdout=out,
            start_new_session=True,
        ) as session,
    ):
        wait_until(lambda: session.poll() is not None or (told.exists() and told.read_text().count("\n") == 2), 60)
        assert session.poll() is None, (tmp_path / "out").read_text()
        workers = psutil.Process(session.pid).children(recursive=True)
        folders = set(told.read_text().splitlines())
        (folder,) = map(Path, folders)
        there, devices = traces(folder), links_of(folder)
        session.kill()
    wait_until(lambda: traces(folder) == [])
    for worker in workers:  # pytest-xdist's own end by themselves, but a test that sleeps is in no hurry
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()

    assert len(there) > 6
    assert not devices & set(links().values())


@OWN
def test_what_a_killed_keeper_leaves_the_next_daemon_removes() -> None:
    with running() as daemon:
        with client_of(daemon) as client:
            client.containers.run(BUSYBOX, FOREVER, detach=True)
        devices, pid = links_of(daemon.folder), daemon.pid
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid))
    with running():
        wait_until(lambda: traces(daemon.folder) == [])  # at once, if no other session is at it

    assert not devices & set(links().values())
