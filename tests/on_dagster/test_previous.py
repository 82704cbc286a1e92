"""The launcher that was there before: a switch, there and back, loses no run; a share of the runs goes through ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from dagster import DagsterInvalidDefinitionError
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster_site import Desk, Site

from launchers.dagster.binding import HANDLE_TAG
from launchers.dagster.previous import is_ours
from launchers.dagster.schema import Settings
from launchers.testing.contract import eventually

pytestmark = pytest.mark.parametrize("engine", ["warm"], indirect=True)
DEFAULT: Final[dict[str, Any]] = {"module": "dagster", "class": "DefaultRunLauncher"}
PREVIOUS: Final = {"previous": DEFAULT}


def by_default_launcher(site: Site, job: str) -> str:
    """A run that was launched before the switch."""
    site.configure(DEFAULT)
    with site.desk() as desk:
        run_id = desk.launch(job)
        desk.holds(run_id)
        assert GRPC_INFO_TAG in desk.run(run_id).tags
    site.configure()
    return run_id


def test_a_run_of_the_previous_launcher_ends_by_itself_and_is_healthy_until_then(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(PREVIOUS)
    run_id = by_default_launcher(site, "holds_in_process")
    with site.desk() as desk:
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        info = desk.launcher.get_run_worker_debug_info(desk.run(run_id))
        desk.reconciled()
        site.let_go(run_id)

        desk.ends(run_id, as_="SUCCESS")
        assert health.status is WorkerStatus.RUNNING
        assert "DefaultRunLauncher does not tell" in str(health.msg)
        assert info is None


def test_a_run_of_the_previous_launcher_is_canceled_by_it(make_site: Callable[..., Site]) -> None:
    site = make_site(PREVIOUS)
    run_id = by_default_launcher(site, "holds_in_process")
    with site.desk() as desk:
        assert desk.launcher.terminate(run_id)
        desk.ends(run_id, as_="CANCELED")


def test_a_run_of_ours_ends_well_after_a_switch_back(make_site: Callable[..., Site]) -> None:
    site = make_site(PREVIOUS)
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
    site.configure(DEFAULT)
    with site.desk() as desk:
        site.let_go(run_id)
        desk.ends(run_id, as_="SUCCESS")
    assert eventually(lambda: site.workers(run_id) == [])
    removed = site.call("--config-file", "run-launcher.yaml", "dagster", "reconcile", "-o", "name").stdout

    assert removed == f"{run_id}\n"


def test_a_previous_launcher_that_cannot_be_used_is_told_and_is_in_no_way_of_our_runs(
    make_site: Callable[..., Site],
) -> None:
    site = make_site({"previous": {"module": "no_such_package", "class": "RunLauncher"}})
    with site.desk() as desk:
        run_id = desk.launch("good_in_process")
        desk.ends(run_id, as_="SUCCESS")
        other = desk.create("good_in_process")

        with pytest.raises(Exception, match=r"previous cannot be used: .*no_such_package"):
            desk.launcher.check_run_worker_health(other)
    site.config = {}


@pytest.mark.parametrize(("share", "ours"), [({"percent": 0}, False), ({"tags": {"team": "platform"}}, True)])
def test_a_share_of_the_runs_goes_through_ours(
    make_site: Callable[..., Site],
    share: dict[str, Any],
    ours: bool,  # noqa: FBT001
) -> None:
    site = make_site({**PREVIOUS, "share": share})
    with site.desk() as desk:
        run_id = desk.launch("good_in_process", {"team": "platform"})
        rest = desk.launch("good_in_process", {"team": "others"})
        for each in (run_id, rest):
            desk.ends(each, as_="SUCCESS")

        assert (HANDLE_TAG in desk.run(run_id).tags) is ours
        assert HANDLE_TAG not in desk.run(rest).tags
        assert GRPC_INFO_TAG in desk.run(rest).tags


def test_a_run_that_is_ours_stays_ours_when_the_share_shrinks(make_site: Callable[..., Site]) -> None:
    site = make_site(PREVIOUS)
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
    site.config = {**PREVIOUS, "share": {"percent": 0}}
    site.configure()
    with site.desk() as desk:
        desk.launcher.launch_run(LaunchRunContext(desk.run(run_id), None))  # as a queue that lost the answer
        assert desk.launcher.terminate(run_id)
        desk.ends(run_id, as_="CANCELED")
        assert len(site.done(run_id)) == 1


def test_a_percentage_is_about_that_part_of_all_runs_and_the_same_for_each_run(desk: Desk) -> None:
    run = desk.create("good_in_process")
    settings = Settings.of({"previous": DEFAULT, "share": {"percent": 5}})
    runs = [run._replace(run_id=f"run-{number}") for number in range(4000)]
    chosen = [each.run_id for each in runs if is_ours(settings, each)]

    assert 140 < len(chosen) < 260
    assert chosen == [each.run_id for each in runs if is_ours(settings, each)]
    assert all(is_ours(Settings.of({}), each) for each in runs)


def test_a_share_needs_a_previous_launcher(engine: str) -> None:  # noqa: ARG001
    with pytest.raises(DagsterInvalidDefinitionError, match="share leaves the other runs to `previous`"):
        Settings.of({"share": {"percent": 5}})
