"""What Dagster says of runs and what there is of their workers, brought together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from dagster import DagsterEvent, DagsterEventType
from dagster._core.launcher import LaunchRunContext
from dagster_site import Desk, Site

from launchers.dagster.reconcile import DagsterReconciler
from launchers.testing.contract import eventually
from stacks.errors import EngineError, StackLockedError
from stacks.records import Phase

pytestmark = pytest.mark.parametrize("engine", ["warm"], indirect=True)
AT_ONCE = {"reconcile": {"enabled": False, "settle_seconds": 0}}


@pytest.fixture
def at_once(make_site: Callable[..., Site]) -> Iterator[Desk]:
    """An instance whose workers are ended as soon as their run is over."""
    with make_site(AT_ONCE).desk() as desk:
        yield desk


def test_the_worker_of_a_run_that_was_forced_to_canceled_is_ended(at_once: Desk) -> None:
    run_id = at_once.launch("holds_multiprocess")
    at_once.holds(run_id)
    at_once.instance.report_run_canceled(at_once.run(run_id))  # what "force" in the UI does

    assert (run_id, "terminated") in at_once.reconciled()
    assert at_once.site.workers(run_id) == []
    assert at_once.status(run_id) == "CANCELED"
    assert "Ending the run worker: its run is CANCELED in Dagster" in at_once.told(run_id)


def test_the_worker_of_a_run_that_dagster_gave_up_on_never_starts(at_once: Desk) -> None:
    slow = at_once.site.folder / "done" / "slow-start"
    slow.touch()
    run_id = at_once.launch("good_in_process")
    at_once.instance.report_run_failed(at_once.run(run_id), "it took longer than 180 seconds to start")
    at_once.reconciled()
    slow.unlink()

    assert at_once.site.workers(run_id) == []
    assert at_once.site.done(run_id) == []


def test_a_worker_gets_time_for_its_last_steps(desk: Desk) -> None:
    run_id = desk.launch("holds_in_process")
    desk.holds(run_id)
    desk.instance.report_run_failed(desk.run(run_id))

    assert desk.reconciled() == []
    assert desk.site.workers(run_id) != []


def test_a_finished_worker_is_kept_as_long_as_its_template_says(at_once: Desk) -> None:
    at_once.site.template("process", keep={"succeeded": "1h", "failed": "1h"})
    run_id = at_once.launch("good_in_process")
    at_once.ends(run_id, as_="SUCCESS")
    at_once.launcher.binding.launcher_of(run_id).wait(run_id)

    assert at_once.reconciled() == []
    assert at_once.site.stacks() == [run_id]


def test_a_run_of_which_the_worker_died_while_it_started_is_reported_with_why(desk: Desk) -> None:
    (desk.site.folder / "done" / "slow-start").touch()
    run_id = desk.launch("good_in_process")
    assert desk.reconciled() == []
    assert eventually(lambda: len(desk.site.workers(run_id)) > 1)
    for each in desk.site.workers(run_id):
        if "RUN_LAUNCHER_RUN_ID" in each.environ():
            each.kill()
    desk.launcher.binding.launcher_of(run_id).wait(run_id)

    assert (run_id, "reported failed") in desk.reconciled()
    assert desk.status(run_id) == "FAILURE"
    assert "SIGKILL" in desk.told(run_id)


def test_a_run_that_ended_by_itself_is_not_reported_again(desk: Desk) -> None:
    run_id = desk.launch("good_in_process")
    desk.ends(run_id, as_="SUCCESS")
    desk.reconciled()

    assert desk.status(run_id) == "SUCCESS"


def test_a_run_that_was_deleted_is_ended_at_the_second_look_and_not_before_its_age(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(AT_ONCE)
    with site.desk() as desk:
        desk.ends(desk.launch("good_in_process"), as_="SUCCESS")  # the storage is not empty
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
        desk.instance.delete_run(run_id)
        reconciler = DagsterReconciler(desk.launcher.binding)
        for _ in range(2):
            assert [each.subject for each in reconciler.once() if each.subject == run_id] == []  # it is young

        aged(desk, run_id)
        again = DagsterReconciler(desk.launcher.binding)
        first = [each.subject for each in again.once() if each.subject == run_id]
        second = [(each.subject, each.what) for each in again.once()]

        assert first == []
        assert (run_id, "terminated") in second
        assert site.workers(run_id) == []


def test_a_single_pass_looks_twice_for_a_run_that_was_deleted(at_once: Desk) -> None:
    at_once.create("good_in_process")  # the storage is not empty
    run_id = at_once.launch("holds_in_process")
    at_once.holds(run_id)
    aged(at_once, run_id)
    at_once.instance.delete_run(run_id)
    told = at_once.site.call("dagster", "reconcile", "-o", "name").stdout

    assert told == f"{run_id}\n"
    assert at_once.site.workers(run_id) == []


def aged(desk: Desk, run_id: str, age: timedelta = timedelta(hours=1)) -> None:
    """Let a run's record say that it was wanted long ago."""
    records = desk.launcher.binding.workspace.records
    record = records.read(run_id)
    assert record is not None
    records.write(record.changed(wanted_at=datetime.now(UTC) - age))


def test_where_the_run_storage_is_empty_nothing_counts_as_deleted(at_once: Desk) -> None:
    run_id = at_once.launch("holds_in_process")
    at_once.holds(run_id)
    aged(at_once, run_id)
    at_once.instance.delete_run(run_id)
    reconciler = DagsterReconciler(at_once.launcher.binding)
    told = [each for _ in range(3) for each in reconciler.once()]

    assert told == []
    assert at_once.site.workers(run_id) != []
    at_once.launcher.binding.launcher_of(run_id).terminate(run_id)


def test_where_the_run_storage_is_away_nothing_is_decided(at_once: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = at_once.launch("holds_in_process")
    at_once.holds(run_id)
    runs = next((at_once.site.folder / "dagster").rglob("runs.db"))
    content = runs.read_bytes()
    runs.write_bytes(b"this is no database")
    with pytest.raises(EngineError, match="Dagster's storage does not answer"):
        list(DagsterReconciler(at_once.launcher.binding).once())
    runs.write_bytes(content)

    assert at_once.site.workers(run_id) != []
    monkeypatch.undo()


def test_runs_of_another_instance_at_the_same_backend_are_left_alone(make_site: Callable[..., Site]) -> None:
    one = make_site(AT_ONCE)
    other = make_site(AT_ONCE, home=one.home)
    with one.desk() as theirs:
        run_id = theirs.launch("holds_in_process")
        theirs.holds(run_id)
        aged(theirs, run_id)
    with other.desk() as desk:
        desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
        reconciler = DagsterReconciler(desk.launcher.binding)
        told = [each.subject for _ in range(3) for each in reconciler.once()]
    shell = one.call("reconcile", "-o", "name", "--dry-run").stdout

    assert run_id not in told
    assert run_id not in shell
    assert one.workers(run_id) != []


@pytest.mark.parametrize("announced", [True, False])
def test_a_launch_that_died_before_its_worker_is_reported(desk: Desk, announced: bool) -> None:  # noqa: FBT001
    desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
    run = desk.create("good_in_process")
    if announced:
        desk.instance.report_engine_event("[PulumiRunLauncher] Launching a run worker", run)
    desk.instance.report_dagster_event(_starting(run.job_name), run.run_id)
    desk.reconciled()
    assert desk.status(run.run_id) == "STARTING"

    later(desk)
    assert (run.run_id, "reported failed") in desk.reconciled()
    assert "its launch was interrupted" in desk.told(run.run_id)


def test_a_run_that_another_launcher_starts_is_left_alone(desk: Desk) -> None:
    run = desk.create("good_in_process")
    desk.instance.report_engine_event("[NomadRunLauncher] Launching", run)
    desk.instance.report_dagster_event(_starting(run.job_name), run.run_id)
    later(desk)
    desk.reconciled()

    assert desk.status(run.run_id) == "STARTING"


def test_a_launch_that_failed_without_dagster_hearing_of_it_is_reported(desk: Desk) -> None:
    run = desk.create("good_in_process")
    desk.instance.report_dagster_event(_starting(run.job_name), run.run_id)
    desk.launcher.launch_run(LaunchRunContext(run, None))
    records = desk.launcher.binding.workspace.records
    desk.launcher.binding.launcher_of(run.run_id).wait(run.run_id)
    desk.instance.report_dagster_event(_starting(run.job_name), run.run_id)
    record = records.read(run.run_id)
    assert record is not None
    records.write(record.changed(phase=Phase.FAILED, error="the disk was full"))
    desk.reconciled()
    before = desk.status(run.run_id)
    later(desk)
    desk.reconciled()
    records.write(record)

    assert before == "STARTING"
    assert desk.status(run.run_id) == "FAILURE"
    assert "the disk was full" in desk.told(run.run_id)


def test_a_run_whose_record_cannot_be_read_is_left_alone(desk: Desk) -> None:
    (desk.site.folder / "done" / "slow-start").touch()
    run_id = desk.launch("good_in_process")
    assert desk.site.home is not None
    (record,) = desk.site.home.glob(f"state/records/*/{run_id}.json")
    content = record.read_bytes()
    record.write_bytes(b"")
    later(desk)
    told = [each.error for each in DagsterReconciler(desk.launcher.binding).once()]
    record.write_bytes(content)
    (desk.site.folder / "done" / "slow-start").unlink()

    assert ["is damaged" in each for each in told] == [True]
    desk.ends(run_id, as_="SUCCESS")


def test_where_the_backend_is_away_nothing_is_reported(desk: Desk) -> None:
    (desk.site.folder / "done" / "slow-start").touch()
    run_id = desk.launch("good_in_process")
    assert desk.site.home is not None
    later(desk)
    (desk.site.home / "state").rename(desk.site.home / "elsewhere")
    told = list(DagsterReconciler(desk.launcher.binding).once())
    (desk.site.home / "elsewhere").rename(desk.site.home / "state")
    (desk.site.folder / "done" / "slow-start").unlink()

    assert told == []
    desk.ends(run_id, as_="SUCCESS")


def later(desk: Desk) -> None:
    """Let it be long after the last launch."""
    desk.limit(-40)


def _starting(job: str) -> DagsterEvent:
    return DagsterEvent(event_type_value=DagsterEventType.PIPELINE_STARTING.value, job_name=job)


def test_a_dry_run_tells_and_does_nothing(at_once: Desk) -> None:
    over, dead = at_once.launch("holds_in_process"), at_once.launch("killed_in_process")
    at_once.holds(over)
    at_once.launcher.binding.launcher_of(dead).wait(dead)
    at_once.instance.report_run_canceled(at_once.run(over))
    told = list(DagsterReconciler(at_once.launcher.binding).once(dry_run=True))

    assert {(each.subject, each.what, each.done) for each in told} >= {
        (over, "terminated", False),
        (dead, "reported failed", False),
    }
    assert at_once.status(dead) == "STARTED"
    assert at_once.site.workers(over) != []


def test_one_leads_for_each_instance(make_site: Callable[..., Site]) -> None:
    one = make_site()
    other = make_site(home=one.home)
    with one.desk() as mine, other.desk() as theirs:
        first, second = (DagsterReconciler(each.launcher.binding) for each in (mine, theirs))
        with first.lead(), second.lead(), pytest.raises(StackLockedError):
            DagsterReconciler(mine.launcher.binding).lead().__enter__()


def test_the_launchers_own_thread_reconciles_until_the_instance_is_disposed_of(
    make_site: Callable[..., Site],
) -> None:
    site = make_site({"reconcile": {"interval_seconds": 1}})
    with site.desk() as desk:
        run_id = desk.launch("killed_in_process")
        desk.ends(run_id, as_="FAILURE")

        assert "SIGKILL" in desk.told(run_id)
        assert eventually(lambda: site.stacks() == [])
    assert [each for each in threading.enumerate() if each.name == "run-launcher-reconcile"] == []
    with suppress(StackLockedError), site.desk() as desk, DagsterReconciler(desk.launcher.binding).lead():
        return
    pytest.fail("somebody leads still")
