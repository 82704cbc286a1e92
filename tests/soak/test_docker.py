"""Lives of containers in a row and at once, and kill -9 of all that works on them: nothing is lost, doubled or left.

The suite runs a short form; `make soak` runs the same code with larger counts, and prints its figures. The moments of a
kill are drawn from a seed; what runs then is as it comes.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from dockerd import Daemon, Dockerd
from plugins.install import lead_to
from targets import DockerRow, take_engine

from launchers import Run
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import ReconcileSettings
from launchers.testing.contract import eventually
from stacks.errors import LaunchConflictError
from stacks.handle import WorkerState
from stacks.warm_server import ENGINES

SEED: Final = "2026-11"
COMMON: Final = {"grace": "1s", "init": True}
OWN: Final[dict[str, Any]] = {**COMMON, "networks": [{"create": "run"}]}
LONG: Final = [pytest.mark.soak, pytest.mark.timeout(3600)]
CALL: Final = """
import sys
from launchers import Run, load_launcher
from programs.docker.template import DockerTemplate
what, template, run = sys.argv[1], sys.argv[2], Run.model_validate_json(sys.argv[3])
launcher = load_launcher(DockerTemplate.model_validate_json(template))
launcher.workspace.engine  # everything is loaded before the start is given
print("ready", flush=True)
sys.stdin.readline()
launcher.launch(run) if what == "launch" else launcher.terminate(run.id)
"""
MARKS: Final = {"engine": ("run-launcher-engine", "/pulumi "), "plugin": ("resource-docker", "plugins.docker")}
"""What the command line of a process that may be killed holds; a worker and its shim are not among them."""


@dataclass(frozen=True)
class Counts:
    """How many lives one after the other, how many at once, and how many kills of each kind."""

    row: int
    at_once: int
    kills: int
    shown: bool = False


COUNTS: Final = [
    pytest.param(Counts(row=4, at_once=4, kills=1), id="short"),
    pytest.param(Counts(row=200, at_once=20, kills=15, shown=True), id="soak", marks=LONG),
]


@pytest.fixture(params=COUNTS)
def counts(request: pytest.FixtureRequest) -> Counts:
    value: Counts = request.param
    return value


@pytest.fixture
def show(counts: Counts, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def show(text: str) -> None:
        if counts.shown:
            with capsys.disabled():
                print(f"\n{text}")  # noqa: T201

    return show


@pytest.fixture(params=["warm", "cli"])
def row(request: pytest.FixtureRequest, tmp_path: Path, docker_host: Daemon) -> Iterator[DockerRow]:
    made = DockerRow(tmp_path, docker_host, take_engine(request, request.param))
    yield made
    made.close()


@pytest.fixture
def own_row(
    request: pytest.FixtureRequest, tmp_path: Path, own_dockerd: Dockerd, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerRow]:
    """On a daemon that the test may kill."""
    lead_to(own_dockerd, tmp_path / "plugins", monkeypatch)
    made = DockerRow(tmp_path, own_dockerd, take_engine(request, "warm"))
    yield made
    made.close()


def left(row: DockerRow) -> list[str]:
    """Containers, networks, volumes, stacks, files, and engines and plugins that work on any of them."""
    ENGINES.close()
    eventually(lambda: not list(at_work(row)))
    return [*row.leftovers(), *row.stacks(), *at_work(row)]


def at_work(row: DockerRow) -> Iterator[str]:
    marks = [mark for marks in MARKS.values() for mark in marks]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = f"{' '.join(process.cmdline())} "
            if any(mark in words for mark in marks) and process.environ().get("RUN_LAUNCHER_HOME") == str(row.home):
                yield f"process {process.pid}: {words}"


# ---- lives ----


def life(launcher: RunLauncher[Any], run: Run) -> float:
    begun = time.perf_counter()
    done = launcher.terminate(launcher.launch(run).handle)
    assert done.left == 0
    return time.perf_counter() - begun


def test_lives_in_a_row_and_at_once_leave_nothing_but_records(
    row: DockerRow, counts: Counts, show: Callable[[str], None]
) -> None:
    launcher = row.launcher(**OWN, volumes=[{"mount": "/own", "create": "run"}])
    times = sorted(life(launcher, row.run("sleep 600")) for _ in range(counts.row))
    begun = time.perf_counter()
    with ThreadPoolExecutor(counts.at_once) as threads:
        list(threads.map(lambda _: life(launcher, row.run("sleep 600")), range(counts.at_once)))
    took = time.perf_counter() - begun

    show(
        f"docker {row.engine.kind}: {counts.row} lives in a row, median {times[len(times) // 2]:.2f} s, "
        f"most {times[-1]:.2f} s; {counts.at_once} at once in {took:.1f} s"
    )
    assert len(launcher.workspace.records.ids()) == counts.row + counts.at_once
    assert [*row.leftovers(), *row.stacks()] == []


# ---- kills ----


class Trial:
    """One command that is killed, and the one that comes after it."""

    def __init__(self, row: DockerRow, chance: random.Random, template: Mapping[str, Any] = OWN) -> None:
        self.row = row
        self.chance = chance
        self.launcher = row.launcher(**template)
        self.lines = row.shared / "lines"
        self.run = row.run('echo "$RUN_LAUNCHER_RUN_ID" >>"$1"; exec sleep 600', str(self.lines))

    def perform(self, what: str, kill: Callable[[subprocess.Popen[str], float], bool]) -> bool:
        """Kill somebody at work on the command, have the next one put it right, and end the run; True if one died."""
        if what == "terminate":
            self.launcher.launch(self.run)
        words = self.row.another_process(CALL, what, self.launcher.template.canonical(), self.run.model_dump_json())
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as command:
            assert command.stdin is not None
            assert command.stdout is not None
            assert command.stdout.readline() == "ready\n", command.communicate()
            command.stdin.write("\n")
            command.stdin.flush()
            died = kill(command, self.chance.uniform(0.0, 1.2))
            command.communicate(timeout=120)
        after = self._go_on()
        told = f"{what} killed, then {after}"
        assert self._executions() <= 1, told
        self._end()
        assert self._executions() <= 1, told
        assert self.row.executions(self.run.id) == 0, told
        return died

    def _go_on(self) -> str:
        after = self.chance.choice(["launch", "terminate", "reconcile", "status"])
        if after == "launch":
            with suppress(LaunchConflictError):  # where it was terminated
                handle = self.launcher.launch(self.run).handle
                assert self.launcher.status(handle).state is WorkerState.RUNNING
                assert eventually(lambda: self._executions() == 1)
        elif after == "reconcile":
            self._reconcile()
        elif after == "status":
            self.launcher.status(self.run.id)
        return after

    def _end(self) -> None:
        if self.launcher.workspace.records.read(self.run.id) is not None:
            assert self.launcher.terminate(self.run.id).left == 0
        self._reconcile()

    def _reconcile(self) -> None:
        settings = ReconcileSettings.model_validate({"orphan_age": "0s"})
        config = self.row.config().model_copy(update={"reconcile": settings})
        assert [each.error for each in Reconciler(make_workspace(config)).once() if each.error] == []

    def _executions(self) -> int:
        return self.lines.read_text().split().count(self.run.id) if self.lines.exists() else 0


def killing(victim: str) -> Callable[[subprocess.Popen[str], float], bool]:
    """Kill the command itself, or one of its processes, when it has worked for some seconds."""

    def kill(command: subprocess.Popen[str], seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            command.wait(seconds)
        found = [command.pid] if victim == "launcher" else []
        while command.poll() is None and not found:
            with suppress(psutil.Error):
                for process in psutil.Process(command.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        words = f"{' '.join(process.cmdline())} "
                        found.extend([process.pid] if any(mark in words for mark in MARKS[victim]) else [])
        if command.poll() is not None:
            return False
        with suppress(ProcessLookupError):
            os.kill(found[0], 9)
        return True

    return kill


@pytest.mark.parametrize("what", ["launch", "terminate"])
@pytest.mark.parametrize("victim", ["launcher", "engine", "plugin"])
def test_whoever_is_killed_the_next_command_puts_it_right(
    row: DockerRow, counts: Counts, show: Callable[[str], None], what: str, victim: str
) -> None:
    chance = random.Random(f"{SEED} {row.engine.kind} {what} {victim}")  # noqa: S311 - repeatable
    died = [Trial(row, chance).perform(what, killing(victim)) for _ in range(counts.kills)]

    show(f"docker {row.engine.kind}: {what}, {victim} killed in {sum(died)} of {counts.kills} trials")
    assert left(row) == []


@pytest.mark.parametrize("what", ["launch", "terminate"])
def test_a_daemon_that_is_killed_and_started_again_loses_no_run(
    own_row: DockerRow, own_dockerd: Dockerd, counts: Counts, show: Callable[[str], None], what: str
) -> None:
    """Without a network of the run's own: a dockerd 20.10 that is killed while it makes or removes one never starts
    again (index out of range in libnetwork's reservePools)."""
    chance, kills = random.Random(f"{SEED} {what}"), 0  # noqa: S311 - repeatable

    def kill(command: subprocess.Popen[str], seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            command.wait(seconds)
        own_dockerd.kill()
        own_dockerd.start()
        return True

    for _ in range(counts.kills):
        kills += Trial(own_row, chance, COMMON).perform(what, kill)

    show(f"docker: {what}, daemon killed in {kills} of {counts.kills} trials")
    assert left(own_row) == []
