"""Lives in a row, lives at once, and launchers at once, with the system asked what is left.

The suite runs a short form; `make soak` runs the same code with larger counts, and prints its figures.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from left import left, nothing
from targets import ProcessRow, take_engine

from launchers import Run
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.testing.contract import eventually, written
from stacks.handle import WorkerState
from stacks.program_server import CALLS
from stacks.warm_server import AT_ONCE, ENGINES

FDS, THREADS = 3, 5  # what may come and go; less than the smallest number of lives, so that a leak per life shows
ENGINE_FDS, ENGINE_MIB = 800, 150  # at most, of the processes of the warm engine: one that works, one that leaves
LAUNCH = """
import sys
from launchers import ProcessTemplate, Run, load_launcher
template, run = ProcessTemplate.model_validate_json(sys.argv[1]), Run.model_validate_json(sys.argv[2])
launcher = load_launcher(template)
launcher.workspace.engine  # everything is loaded before the start is given
print("ready", flush=True)
sys.stdin.readline()
launched = launcher.launch(run)
print(launched.created, launched.handle.to_json(), flush=True)
"""


@dataclass(frozen=True)
class Counts:
    """How many lives one after the other, how many at once, how many launcher processes for one run, how many ended."""

    engine: str
    row: int
    at_once: int
    launchers: int
    ended: int
    shown: bool = False


LONG = [pytest.mark.soak, pytest.mark.timeout(3600)]
COUNTS = [
    pytest.param(Counts("cli", row=8, at_once=6, launchers=4, ended=2), id="cli-short"),
    pytest.param(Counts("warm", row=20, at_once=12, launchers=4, ended=10), id="warm-short"),
    pytest.param(Counts("cli", row=200, at_once=50, launchers=20, ended=50, shown=True), id="cli-soak", marks=LONG),
    pytest.param(
        Counts("warm", row=10_000, at_once=50, launchers=20, ended=5_000, shown=True), id="warm-soak", marks=LONG
    ),
]


@pytest.fixture(params=COUNTS)
def counts(request: pytest.FixtureRequest) -> Counts:
    value: Counts = request.param
    take_engine(request, value.engine)
    return value


@pytest.fixture
def show(counts: Counts, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Prints figures where somebody asked for the long form."""

    def show(title: str, **figures: object) -> None:
        if counts.shown:
            with capsys.disabled():
                print(f"\n{title}: {', '.join(f'{name} {value}' for name, value in figures.items())}")  # noqa: T201

    return show


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch, counts: Counts) -> Iterator[ProcessRow]:
    """A row with a short path, as homes have, and with a folder for temporary files of its own."""
    with tempfile.TemporaryDirectory(prefix="rl-soak-") as name:
        folder, temporary = Path(name), Path(name, "tmp")
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setattr(tempfile, "tempdir", None)
        ENGINES.close()  # the next one has its sockets in the folder above
        row = ProcessRow(folder, engine=counts.engine)
        before = set(psutil.Process().children(recursive=True))
        yield row
        row.close()
        ENGINES.close()
        for process in [*set(psutil.Process().children(recursive=True)) - before, *row._processes(None)]:
            with suppress(psutil.Error):
                process.kill()  # a test that failed half-way


@dataclass(frozen=True)
class Held:
    """What this process and its engine hold of the system, past their own bookkeeping."""

    fds: int
    threads: int
    children: int
    mib: int
    engine_fds: int = 0
    engine_mib: int = 0

    @classmethod
    def now(cls) -> Held:
        own = psutil.Process()
        held = cls(own.num_fds(), own.num_threads(), len(own.children()), own.memory_info().rss // 2**20)
        for pid in ENGINES.pids():
            engine = psutil.Process(pid)
            used = engine.memory_info().rss // 2**20
            held = replace(held, engine_fds=held.engine_fds + engine.num_fds(), engine_mib=held.engine_mib + used)
        return held

    def most(self, other: Held) -> Held:
        """The larger of each."""
        return Held(**{name: max(value, getattr(other, name)) for name, value in asdict(self).items()})

    def grew(self, before: Held) -> bool:
        more = THREADS + CALLS + (2 * AT_ONCE if self.engine_fds else 0)  # those of programs and providers stay
        return self.fds > before.fds + FDS or self.threads > before.threads + more or self.children > before.children


def life(launcher: RunLauncher[Any], run: Run) -> None:
    done = launcher.terminate(launcher.launch(run).handle)
    assert done.left == 0


def test_lives_in_a_row_leave_nothing_but_records(row: ProcessRow, counts: Counts, show: Callable[..., None]) -> None:
    launcher = row.launcher()
    for _ in range(2):  # loads what is loaded once
        life(launcher, row.run("sleep 600"))
    before, times = Held.now(), []
    peak = before
    for number in range(counts.row):
        begun = time.perf_counter()
        life(launcher, row.run("sleep 600"))
        times.append(time.perf_counter() - begun)
        if number % 50 == 0:
            peak = peak.most(Held.now())
    settled = eventually(lambda: not Held.now().grew(before))

    after = Held.now()
    show(
        f"{counts.row} lives in a row", **_figures(times), before=asdict(before), most=asdict(peak), after=asdict(after)
    )
    assert left(row) == nothing()
    assert settled, (before, after, [thread.name for thread in threading.enumerate()])
    assert len(launcher.workspace.records.ids()) == counts.row + 2
    assert peak.engine_fds < ENGINE_FDS
    assert peak.engine_mib < ENGINE_MIB


def test_lives_at_once_leave_nothing_but_records(row: ProcessRow, counts: Counts, show: Callable[..., None]) -> None:
    launcher = row.launcher()
    life(launcher, row.run("sleep 600"))
    before, begun = Held.now(), time.perf_counter()
    runs = [row.run("sleep 600") for _ in range(counts.at_once)]
    with ThreadPoolExecutor(counts.at_once) as threads:
        handles = [each.handle for each in threads.map(launcher.launch, runs)]
        launched = time.perf_counter() - begun
        alive = [row.alive(handle) for handle in handles]
        begun = time.perf_counter()
        ended = list(threads.map(launcher.terminate, handles))
        terminated = time.perf_counter() - begun
    settled = eventually(lambda: not Held.now().grew(before))

    after = Held.now()
    show(
        f"{counts.at_once} lives at once",
        launched=f"{launched:.1f} s",
        terminated=f"{terminated:.1f} s",
        before=asdict(before),
        after=asdict(after),
    )
    assert all(alive)
    assert {each.left for each in ended} == {0}
    assert left(row) == nothing()
    assert settled, (before, after, [thread.name for thread in threading.enumerate()])


def test_of_finished_runs_past_their_keep_only_records_stay(
    row: ProcessRow, counts: Counts, show: Callable[..., None]
) -> None:
    launcher = row.launcher(keep={"succeeded": "10s"})
    with ThreadPoolExecutor(4) as threads:
        handles = [each.handle for each in threads.map(launcher.launch, [row.run("true") for _ in range(counts.ended)])]
    states = {launcher.wait(handle).state for handle in handles}
    reconciler, begun = Reconciler(make_workspace(row.config())), time.perf_counter()
    errors: list[str] = []

    def gone() -> bool:
        errors.extend([each.error for each in reconciler.once() if each.error])
        return not row.stacks()

    eventually(gone, timedelta(minutes=5))

    show(f"{counts.ended} finished runs past their keep", removed_in=f"{time.perf_counter() - begun:.1f} s")
    assert states == {WorkerState.SUCCEEDED}
    assert errors == []
    assert left(row) == nothing()
    assert not list(row.home.glob("logs/*/*"))
    assert len(launcher.workspace.records.ids()) == counts.ended


def test_launchers_at_once_with_one_id_give_one_worker(
    row: ProcessRow, counts: Counts, show: Callable[..., None]
) -> None:
    lines, launcher = row.shared / "lines", row.launcher()
    run = row.run('echo once >>"$1"; sleep 600', str(lines))
    words = (launcher.template.canonical(), run.model_dump_json())
    processes = [_begin(row, *words) for _ in range(counts.launchers)]
    ready = [process.stdout.readline() for process in processes if process.stdout]
    begun = time.perf_counter()
    answers = _all(processes)
    took = time.perf_counter() - begun
    workers, told = row.executions(run.id), written(lines)
    launcher.terminate(run.id)

    show(f"{counts.launchers} launchers at once with one id", took=f"{took:.1f} s", workers=workers)
    assert ready == ["ready\n"] * counts.launchers
    created = [answer.split(" ", 1)[0] for answer, _ in answers]
    assert sorted(created) == ["False"] * (counts.launchers - 1) + ["True"], answers
    assert len({json.dumps(json.loads(answer.split(" ", 1)[1]), sort_keys=True) for answer, _ in answers}) == 1
    assert workers == 1
    assert told == "once\n"
    assert left(row) == nothing()


def _begin(row: ProcessRow, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        row.another_process(LAUNCH, *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _all(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Give every process its start, and await what each said."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    with ThreadPoolExecutor(len(processes)) as threads:
        return list(threads.map(lambda process: process.communicate(timeout=300), processes))


def _figures(times: list[float]) -> dict[str, str]:
    ordered = sorted(times)
    quarter = max(1, len(times) // 4)
    return {
        "median": f"{ordered[len(ordered) // 2]:.3f} s",
        "slowest": f"{ordered[-1]:.3f} s",
        "first quarter": f"{sum(times[:quarter]) / quarter:.3f} s",
        "last quarter": f"{sum(times[-quarter:]) / quarter:.3f} s",
    }
