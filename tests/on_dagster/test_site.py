"""A whole installation: runs submitted through the webserver, dequeued, watched and given up on by the daemon."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from dagster_site import ENDS, Desk, Site, Web, code_server, short_folder
from targets import take_engine

from launchers.testing.contract import eventually
from stacks.records import Phase

QUICK: Final = {"reconcile": {"interval_seconds": 1, "settle_seconds": 1}}
MONITORED: Final = {"enabled": True, "poll_interval_seconds": 1}
QUEUE: Final = {
    "max_concurrent_runs": 40,
    "dequeue_interval_seconds": 1,
    "tag_concurrency_limits": [{"key": "one-at-a-time", "limit": 1}],
}
FLIGHT: Final = range(5)
QUEUED: Final = range(30)


@dataclass(frozen=True)
class Whole:
    """A site that runs, as a browser and the operator see it."""

    web: Web
    desk: Desk

    @property
    def site(self) -> Site:
        return self.desk.site

    def settles(self) -> None:
        """Wait until nothing is left of any run but its record, which says how it ended."""
        assert self.site.left() == []
        records = self.desk.launcher.binding.workspace.records
        assert records.ids() != []
        phases = {each: records.read(each).phase for each in records.ids()}  # type: ignore[union-attr]
        assert set(phases.values()) <= {Phase.REMOVED, Phase.FAILED}, phases
        assert {self.desk.status(run_id) for run_id in phases} <= ENDS


@pytest.fixture(scope="module", params=["warm", "cli"])
def whole(request: pytest.FixtureRequest) -> Iterator[Whole]:
    """One installation for the tests of this module that need nothing of their own."""
    with ExitStack() as held:
        engine = take_engine(request, request.param)
        code = held.enter_context(code_server(Path(held.enter_context(short_folder()))))
        folder = Path(held.enter_context(short_folder())) / "site"
        site = Site(folder, code, engine, QUICK, {"run_monitoring": MONITORED, "run_queue": QUEUE})
        web = held.enter_context(site.webserver())
        held.enter_context(site.daemon())
        desk = held.enter_context(site.desk())
        _ = desk.launcher.binding.workspace  # made now: the tests of the module change the environment
        yield Whole(web, desk)


@pytest.mark.parametrize(
    ("job", "end", "told"),
    [
        ("good_in_process", "SUCCESS", ""),
        ("good_multiprocess", "SUCCESS", ""),
        ("fails_in_process", "FAILURE", "this op fails on purpose"),
        ("fails_multiprocess", "FAILURE", "this op fails on purpose"),
        ("exits_in_process", "FAILURE", "exit code 7"),
        ("exits_multiprocess", "FAILURE", "unexpectedly exited with code 7"),
        ("killed_in_process", "FAILURE", "SIGKILL"),
        ("killed_multiprocess", "FAILURE", "SIGKILL"),
        ("hungry_in_process", "FAILURE", "MemoryError"),
    ],
)
def test_a_run_ends_as_its_worker_does(whole: Whole, job: str, end: str, told: str) -> None:
    run_id = whole.web.launch(job, {"run-launcher/template": "small"})

    whole.desk.ends(run_id, as_=end)
    assert told in whole.desk.told(run_id)
    assert len(whole.site.done(run_id)) == 1
    whole.settles()


def test_a_run_is_canceled_while_it_is_queued(whole: Whole) -> None:
    first = whole.web.launch("holds_multiprocess", {"one-at-a-time": "yes"})
    whole.desk.holds(first)
    second = whole.web.launch("good_in_process", {"one-at-a-time": "yes"})
    assert whole.desk.status(second) == "QUEUED"
    answer = whole.web.terminate(second)
    whole.desk.ends(second, as_="CANCELED")
    running = whole.web.terminate(first)

    whole.desk.ends(first, as_="CANCELED")
    assert (answer, running) == ("TerminateRunSuccess", "TerminateRunSuccess")
    assert whole.site.done(second) == []
    whole.settles()


def test_a_run_that_is_forced_to_canceled_while_it_starts_never_starts(whole: Whole) -> None:
    slow = whole.site.folder / "done" / "slow-start"
    slow.touch()
    run_id = whole.web.launch("good_in_process")
    assert eventually(lambda: whole.site.workers(run_id) != [])
    whole.web.terminate(run_id, force=True)
    assert eventually(lambda: whole.site.workers(run_id) == [])
    slow.unlink()

    assert whole.desk.status(run_id) == "CANCELED"
    assert whole.site.done(run_id) == []
    whole.settles()


def test_a_run_that_takes_longer_than_it_may_is_ended_by_the_monitor(whole: Whole) -> None:
    run_id = whole.web.launch("holds_in_process", {"dagster/max_runtime": "1"})

    assert eventually(lambda: whole.site.workers(run_id) != [])
    whole.desk.becomes(run_id, "FAILURE")  # its worker may say CANCELED before
    assert "Exceeded maximum runtime" in whole.desk.told(run_id)
    whole.settles()


@contextmanager
def running(site: Site) -> Iterator[Desk]:
    """A site's daemon, and the instance as dagster.yaml is now."""
    with site.daemon(), site.desk() as desk:
        yield desk


def submit(desk: Desk, job: str) -> str:
    """Queue a run, as the webserver does."""
    run = desk.create(job)
    desk.instance.submit_run(run.run_id, desk.workspace.create_request_context())
    return run.run_id


def test_a_run_that_takes_too_long_to_start_is_given_up_and_never_starts(make_site: Callable[..., Site]) -> None:
    monitored = {**MONITORED, "start_timeout_seconds": 2}
    site = make_site(QUICK, run_monitoring=monitored, run_queue=QUEUE)
    slow = site.folder / "done" / "slow-start"
    slow.touch()
    with running(site) as desk:
        run_id = submit(desk, "good_in_process")
        desk.ends(run_id, as_="FAILURE")
        assert site.left() == []
        slow.unlink()

        assert "longer than 2 seconds to start" in desk.told(run_id)
        assert site.done(run_id) == []


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_a_run_is_resumed_by_the_monitor(make_site: Callable[..., Site], executor: str) -> None:
    site = make_site(QUICK, run_monitoring={**MONITORED, "max_resume_run_attempts": 1}, run_queue=QUEUE)
    with running(site) as desk:
        run_id = submit(desk, f"holds_{executor}")
        desk.holds(run_id)
        (worker,) = {each.ppid() for each in site.workers(run_id)} & {each.pid for each in shims(site, run_id)}
        next(each for each in site.workers(run_id) if each.ppid() == worker).send_signal(signal.SIGKILL)
        desk.holds(run_id, times=2)
        site.let_go(run_id)

        desk.ends(run_id, as_="SUCCESS")
        assert site.left() == []


def test_a_run_whose_resumptions_are_used_up_fails(make_site: Callable[..., Site]) -> None:
    site = make_site(QUICK, run_monitoring={**MONITORED, "max_resume_run_attempts": 1}, run_queue=QUEUE)
    with running(site) as desk:
        run_id = submit(desk, "killed_in_process")
        desk.ends(run_id, as_="FAILURE")

        assert len(site.done(run_id)) == 2
        assert "SIGKILL" in desk.told(run_id)
        assert site.left() == []


def test_a_run_is_queued_again_while_the_backend_is_away(make_site: Callable[..., Site]) -> None:
    retries = {"max_user_code_failure_retries": 50, "user_code_failure_retry_delay": 1}
    site = make_site({**QUICK, "launch_timeout_seconds": 10}, run_monitoring=MONITORED, run_queue={**QUEUE, **retries})
    assert site.home is not None
    with running(site) as desk:
        desk.ends(submit(desk, "good_in_process"), as_="SUCCESS")
        assert site.left() == []
        state, elsewhere = site.home / "state", site.home / "elsewhere"
        state.rename(elsewhere)
        state.touch()
        run_id = submit(desk, "good_in_process")
        assert eventually(lambda: "re-submitting the run into the queue" in desk.told(run_id))
        state.unlink()
        elsewhere.rename(state)

        desk.ends(run_id, as_="SUCCESS")
        assert len(site.done(run_id)) == 1
        assert site.left() == []


def shims(site: Site, run_id: str) -> list[Any]:
    """The shims of a run's workers: they have no variable of it."""
    return [each for each in site.workers(run_id) if "RUN_LAUNCHER_RUN_ID" not in each.environ()]


@pytest.mark.timeout(900)  # as long as there is progress: thirty workers at 1.5 CPU-seconds, beside other tests
@pytest.mark.parametrize("threads", [False, True])
def test_thirty_runs_go_through_the_queue(make_site: Callable[..., Site], threads: bool) -> None:  # noqa: FBT001
    site = make_site(QUICK, run_monitoring=MONITORED, run_queue={**QUEUE, "dequeue_use_threads": threads})
    with site.desk() as desk:
        runs = [submit(desk, "good_in_process") for _ in QUEUED]
        with site.daemon():
            for run_id in runs:
                desk.ends(run_id, as_="SUCCESS")

            assert [run_id for run_id in runs if len(site.done(run_id)) != 1] == []
            assert site.left() == []


@pytest.mark.timeout(900)  # fifteen runs are launched and removed, beside other tests
def test_runs_in_flight_survive_a_switch_of_the_launcher_there_and_back(make_site: Callable[..., Site]) -> None:
    default = {"module": "dagster", "class": "DefaultRunLauncher"}
    site = make_site({**QUICK, "previous": default}, run_monitoring=MONITORED, run_queue=QUEUE)
    runs: list[str] = []
    for launcher in (default, None, default):
        site.configure(launcher)
        with running(site) as desk:
            more = [submit(desk, f"holds_{executor}") for _, executor in zip(FLIGHT, _executors(), strict=False)]
            for run_id in more:
                desk.holds(run_id)
            runs += more
            assert {desk.status(run_id) for run_id in runs} == {"STARTED"}
    site.configure()
    with running(site) as desk:
        assert {desk.status(run_id) for run_id in runs} == {"STARTED"}
        for run_id in runs:
            site.let_go(run_id)
        for run_id in runs:
            desk.ends(run_id, as_="SUCCESS")

        assert [run_id for run_id in runs if len(site.done(run_id)) != 1] == []
    assert eventually(lambda: site.workers() == [])
    site.call("dagster", "reconcile")  # a daemon that launches nothing and finds nothing to monitor does not
    assert site.leftovers() == []


def _executors() -> Iterator[str]:
    while True:
        yield from ("in_process", "multiprocess")


@pytest.mark.parametrize("launched", [1, 4])
def test_a_daemon_that_is_killed_while_it_launches_loses_no_run(make_site: Callable[..., Site], launched: int) -> None:
    site = make_site({**QUICK, "launch_timeout_seconds": 15}, run_queue=QUEUE)
    with site.desk() as desk:
        runs = [submit(desk, "good_in_process") for _ in range(8)]
        with site.daemon() as daemon:
            assert eventually(lambda: sum(desk.status(each) != "QUEUED" for each in runs) >= launched)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
        with site.daemon():
            over = eventually(lambda: {desk.status(each) for each in runs} <= ENDS, timedelta(seconds=120))
            ends = {run_id: (desk.status(run_id), len(site.done(run_id))) for run_id in runs}

            assert over, ends
            assert set(ends.values()) <= {("SUCCESS", 1), ("FAILURE", 0)}, ends
            lost = [run_id for run_id, end in ends.items() if end[1] == 0]
            assert len(lost) <= 1, [desk.told(run_id) for run_id in lost]  # the one that was being launched
            assert site.left() == []


def test_two_instances_that_share_a_backend_leave_each_others_runs_alone(make_site: Callable[..., Site]) -> None:
    one = make_site(QUICK, run_monitoring=MONITORED, run_queue=QUEUE)
    other = make_site(QUICK, run_monitoring=MONITORED, run_queue=QUEUE, home=one.home)
    with running(one) as mine, running(other) as theirs:
        desks = {mine: submit(mine, "holds_in_process"), theirs: submit(theirs, "holds_in_process")}
        for desk, run_id in desks.items():
            desk.holds(run_id)
        killed = submit(mine, "killed_in_process")
        mine.ends(killed, as_="FAILURE")
        for desk, run_id in desks.items():
            desk.site.let_go(run_id)
            desk.ends(run_id, as_="SUCCESS")

        assert [len(desk.site.done(run_id)) for desk, run_id in desks.items()] == [1, 1]
        assert eventually(lambda: one.leftovers(led=True) == [])
