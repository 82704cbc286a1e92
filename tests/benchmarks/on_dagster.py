"""Dagster's runs: our launcher side by side with DefaultRunLauncher, in one instance each, at one code server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from launchers.testing.contract import eventually

from .place import Place
from .table import Table

if TYPE_CHECKING:
    from dagster_site import Desk

QUEUED: Final = 30
JOB: Final = "good_in_process"
DEFAULT: Final = {"module": "dagster", "class": "DefaultRunLauncher"}
OURS: Final = "PulumiRunLauncher"
_MARKS: Final = ("launch_run", "RUN_START", "RUN_SUCCESS", "worker gone")
_QUEUE: Final = {"max_concurrent_runs": 100}


def runs(place: Place, rounds: int) -> Table:
    """One run after the other, launched by the one and the other in turn; seconds from the call of launch_run."""
    samples: dict[str, list[tuple[float, ...]]] = {}
    with _desks(place) as desks:
        for number in range(rounds + 2):  # the first two bring what every daemon brings once
            for name, desk in desks.items():
                place.say(f"round {number} of {rounds + 1}: {name}")
                sample = _one(desk)
                if number > 1:
                    samples.setdefault(name, []).append(sample)
    table = Table(f"One run of Dagster, median of {rounds}; in ms from the call of launch_run", ("launcher", *_MARKS))
    middles = {name: [median(each) for each in zip(*taken, strict=True)] for name, taken in samples.items()}
    for name, values in middles.items():
        table.add(name, *(f"{value * 1000:.0f}" for value in values))
    ours, default = middles[OURS], middles[DEFAULT["class"]]
    table.add("ratio", *(f"{one / other:.3f}" for one, other in zip(ours, default, strict=True)))
    return table


def queue(place: Place, rounds: int) -> Table:  # noqa: ARG001 - as many as the promise needs
    """Thirty queued runs, dequeued by the daemon's own code in one iteration."""
    table = Table(f"{QUEUED} queued runs, in s", ("launcher", "threads", "all dequeued", "x", "all finished", "x"))
    for threads in (False, True):
        taken = {}
        with _desks(place, dequeue_use_threads=threads) as desks:
            for name, desk in desks.items():
                _one(desk)
                place.say(f"{QUEUED} queued runs: {name}, {'with' if threads else 'without'} threads")
                taken[name] = _dequeued(desk)
        default = taken[DEFAULT["class"]]
        for name, values in taken.items():
            factors = [f"{other / one:.1f}" for one, other in zip(values, default, strict=True)]
            words = (f"{values[0]:.2f}", factors[0], f"{values[1]:.1f}", factors[1])
            table.add(name, "yes" if threads else "no", *words)
    return table


@contextmanager
def _desks(place: Place, **queue_settings: object) -> Iterator[dict[str, Desk]]:
    """An instance with DefaultRunLauncher, and one with ours and the warm engine."""
    from dagster_site import Site, code_server, short_folder  # noqa: PLC0415 - beside the tests, and loads dagster

    with ExitStack() as held:
        code = held.enter_context(code_server(Path(held.enter_context(short_folder()))))
        desks = {}
        for name, launcher in ((DEFAULT["class"], DEFAULT), (OURS, None)):
            folder = Path(held.enter_context(short_folder())) / "site"
            site = Site(folder, code, "warm", more={"run_queue": {**_QUEUE, **queue_settings}})
            site.configure(launcher)
            desks[name] = held.enter_context(site.desk())
            held.callback(place.say, f"{name}: done")
        yield desks


def launch_timed(desk: Desk, run_id: str) -> tuple[float, float]:
    """Launch a run by Dagster; when `launch_run` was called, and when it returned."""
    launched: list[float] = []
    launch_run: Any = desk.instance.run_launcher.launch_run

    def timed(context: object) -> None:
        launched.append(time.time())
        launch_run(context)
        launched.append(time.time())

    desk.instance.run_launcher.launch_run = timed  # type: ignore[method-assign]
    try:
        desk.instance.launch_run(run_id, desk.workspace.create_request_context())
    finally:
        desk.instance.run_launcher.launch_run = launch_run  # type: ignore[method-assign]
    begun, done = launched
    return begun, done


def _one(desk: Desk) -> tuple[float, ...]:
    run = desk.create(JOB)
    launched = launch_timed(desk, run.run_id)
    pid = _pid(desk, run.run_id)
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    gone = time.time()
    desk.ends(run.run_id, as_="SUCCESS")
    stats = desk.instance.get_run_stats(run.run_id)
    assert stats.start_time is not None
    assert stats.end_time is not None
    marks = (launched[1], stats.start_time, stats.end_time, gone)
    return tuple(mark - launched[0] for mark in marks)


def _pid(desk: Desk, run_id: str) -> str:
    """The worker's process, as its op writes it down."""
    assert eventually(lambda: desk.site.done(run_id) != [])
    return desk.site.done(run_id)[0]


def _dequeued(desk: Desk) -> tuple[float, float]:
    """Seconds until all were dequeued, and until all had ended."""
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (  # noqa: PLC0415
        QueuedRunCoordinatorDaemon,
    )

    run_ids = []
    for _ in range(QUEUED):
        run = desk.create(JOB)
        desk.instance.submit_run(run.run_id, desk.workspace.create_request_context())
        run_ids.append(run.run_id)
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        begun = time.monotonic()
        for _ in daemon.run_iteration(desk.workspace):
            pass
        dequeued = time.monotonic() - begun
    assert "QUEUED" not in {desk.status(run_id) for run_id in run_ids}
    for run_id in run_ids:
        desk.ends(run_id, as_="SUCCESS")
    return dequeued, time.monotonic() - begun
