"""Runs that are launched, watched and ended through PulumiRunLauncher, as daemon and webserver call it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRunStatus
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster_site import Desk, Site, code_server, short_folder

from launchers.dagster import PulumiRunLauncher
from launchers.dagster.binding import ARGS, DIGEST_TAG, HANDLE_TAG, PLACE_TAG
from launchers.testing.contract import eventually
from stacks.engine import stack_name
from stacks.handle import WorkerHandle

EXECUTORS = ("in_process", "multiprocess")
BOTH = pytest.mark.parametrize("executor", EXECUTORS)


@pytest.mark.smoke
@BOTH
def test_a_run_succeeds(desk: Desk, executor: str) -> None:
    run_id = desk.launch(f"good_{executor}")

    desk.ends(run_id, as_="SUCCESS")
    assert len(desk.site.done(run_id)) == 1


@BOTH
def test_a_run_fails_and_its_worker_says_so_by_its_exit_code(desk: Desk, executor: str) -> None:
    run_id = desk.launch(f"fails_{executor}")

    desk.ends(run_id, as_="FAILURE")
    assert desk.launcher.binding.launcher_of(run_id).wait(run_id).exit_code == 1
    assert len(desk.site.done(run_id)) == 1


@pytest.mark.parametrize(("job", "reason"), [("exits", "exit code 7"), ("killed", "SIGKILL")])
def test_a_run_whose_worker_crashed_is_reported_with_what_is_known_of_it(desk: Desk, job: str, reason: str) -> None:
    run_id = desk.launch(f"{job}_in_process")
    desk.launcher.binding.launcher_of(run_id).wait(run_id)
    assert desk.status(run_id) == "STARTED"  # nobody else would ever say so

    assert (run_id, "reported failed") in desk.reconciled()
    assert desk.status(run_id) == "FAILURE"
    told = desk.told(run_id)
    assert reason in told
    assert f"run-launcher --config-file {desk.site.folder}/run-launcher.yaml logs {run_id}" in told
    # What a step prints reaches the worker's output through a process of Dagster's, which may come too late.
    assert "RUN_START" in told.partition("last lines:")[2]


def test_a_step_of_a_multiprocess_run_that_is_out_of_memory_fails_the_run(desk: Desk) -> None:
    run_id = desk.launch("hungry_multiprocess", {"run-launcher/template": "small"})

    desk.ends(run_id, as_="FAILURE")
    assert "MemoryError" in desk.told(run_id)


@pytest.mark.smoke
@BOTH
def test_a_running_run_is_canceled_with_all_that_it_started(desk: Desk, executor: str) -> None:
    run_id = desk.launch(f"holds_{executor}")
    desk.holds(run_id)

    begun = time.monotonic()
    asked = desk.launcher.terminate(run_id)

    assert asked
    assert time.monotonic() - begun < 2
    desk.ends(run_id, as_="CANCELED")
    assert eventually(lambda: desk.site.workers(run_id) == [])
    kinds = [each.event_type_value for each in _events(desk, run_id)]
    assert kinds.count("PIPELINE_CANCELING") == kinds.count("PIPELINE_CANCELED") == 1
    assert kinds.index("PIPELINE_CANCELING") < kinds.index("PIPELINE_CANCELED")


@pytest.mark.smoke
def test_a_worker_that_hears_no_signal_is_killed_when_its_grace_is_over(desk: Desk) -> None:
    run_id = desk.launch("stubborn_multiprocess")
    desk.holds(run_id)

    begun = time.monotonic()
    asked = desk.launcher.terminate(run_id)

    assert asked
    assert time.monotonic() - begun < 2
    desk.reconciled()
    assert desk.site.workers(run_id) == []
    assert desk.status(run_id) == "CANCELED"


def test_a_run_that_is_canceled_while_its_worker_starts_never_starts(desk: Desk) -> None:
    (desk.site.folder / "done" / "slow-start").touch()
    run_id = desk.launch("good_in_process")
    assert eventually(lambda: desk.site.workers(run_id) != [])

    asked = desk.launcher.terminate(run_id)
    desk.reconciled()

    assert asked
    assert desk.status(run_id) == "CANCELED"
    (desk.site.folder / "done" / "slow-start").unlink()
    assert desk.site.workers(run_id) == []
    assert desk.site.done(run_id) == []


def test_to_terminate_again_or_what_is_over_or_unknown_does_nothing(desk: Desk) -> None:
    ended = desk.launch("good_in_process")
    desk.ends(ended, as_="SUCCESS")

    assert desk.launcher.terminate(ended) is False
    assert desk.launcher.terminate("no-such-run") is False
    assert desk.status(ended) == "SUCCESS"


def test_a_run_is_canceled_although_its_worker_is_dead(desk: Desk) -> None:
    run_id = desk.launch("killed_in_process")
    desk.launcher.binding.launcher_of(run_id).wait(run_id)

    assert desk.launcher.terminate(run_id)
    assert desk.status(run_id) == "CANCELED"


@pytest.mark.smoke
def test_a_run_is_resumed_by_its_next_worker(make_site: Callable[..., Site]) -> None:
    site = make_site(run_monitoring={"enabled": True, "max_resume_run_attempts": 3})
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
        os.kill(int(site.done(run_id)[0]), signal.SIGKILL)
        assert eventually(lambda: desk.launcher.check_run_worker_health(desk.run(run_id)).status is WorkerStatus.FAILED)

        desk.reconciled()  # to report it is the monitor's, where it may resume
        assert desk.status(run_id) == "STARTED"
        desk.instance.resume_run(run_id, desk.workspace.create_request_context(), 1)
        desk.holds(run_id, times=2)
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        site.let_go(run_id)

        desk.ends(run_id, as_="SUCCESS")
        assert health.status is WorkerStatus.RUNNING
        assert _handle(desk, run_id).attempt == 1


def test_a_run_is_not_resumed_beside_a_worker_that_lives(make_site: Callable[..., Site]) -> None:
    site = make_site(run_monitoring={"enabled": True, "max_resume_run_attempts": 3})
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)

        with pytest.raises(DagsterLaunchFailedError, match="must have ended before"):
            desk.instance.resume_run(run_id, desk.workspace.create_request_context(), 1)
        assert len(desk.site.done(run_id)) == 1


def test_a_launch_that_is_repeated_starts_nothing(desk: Desk) -> None:
    run_id = desk.launch("holds_in_process")
    context = LaunchRunContext(desk.run(run_id), None)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: desk.launcher.launch_run(context), range(4)))
    desk.holds(run_id)
    desk.site.let_go(run_id)

    desk.ends(run_id, as_="SUCCESS")
    assert len(desk.site.done(run_id)) == 1


def test_many_runs_are_launched_at_once_by_one_object(desk: Desk) -> None:
    runs = [desk.create("good_in_process") for _ in range(8)]
    context = desk.workspace.create_request_context()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda run: desk.instance.launch_run(run.run_id, context), runs))

    for run in runs:
        desk.ends(run.run_id, as_="SUCCESS")
        assert len(desk.site.done(run.run_id)) == 1


def test_the_worker_needs_neither_our_package_nor_our_config(make_site: Callable[..., Site]) -> None:
    site = make_site(run_monitoring={"enabled": True, "max_resume_run_attempts": 3})
    with site.desk() as desk:
        run_id = desk.launch("tells_in_process")
        desk.ends(run_id, as_="SUCCESS")
        told = site.done(run_id, "told")

    assert told[:5] == ["DefaultRunLauncher", "True", "0", "False", "[]"]


def test_the_arguments_are_in_no_state_record_or_process_list(desk: Desk) -> None:
    run_id = desk.launch("holds_in_process")
    desk.holds(run_id)
    worker = next(each for each in desk.site.workers(run_id) if ARGS in each.environ())
    value = worker.environ()[ARGS]
    commands = "\n".join(" ".join(each.cmdline()) for each in desk.site.workers(run_id))
    assert desk.site.home is not None
    files = b"".join(path.read_bytes() for path in desk.site.home.rglob("*") if path.is_file())

    assert len(value) > 100
    assert value not in commands
    assert value.encode() not in files


def test_handle_place_and_digest_are_tags_and_each_step_is_an_event(desk: Desk) -> None:
    run_id = desk.launch("holds_in_process")
    tags = desk.run(run_id).tags
    handle = WorkerHandle.from_json(tags[HANDLE_TAG])
    desk.launcher.terminate(run_id)
    desk.ends(run_id, as_="CANCELED")
    events = {each.message: each.dagster_event.engine_event_data.metadata for each in _engine_events(desk, run_id)}
    launched = {key: value.value for key, value in events["[PulumiRunLauncher] Run worker launched"].items()}

    assert handle.run_id == run_id
    assert tags[PLACE_TAG] == handle.place
    assert tags[DIGEST_TAG] == f"process@{handle.digest}"
    assert launched["handle"] == handle.to_json()
    assert launched["template"] == f"process@{handle.digest[:12]}"
    assert desk.site.call(*str(launched["logs"]).split()[1:]).returncode == 0
    assert "[PulumiRunLauncher] Asked the run worker to end" in events


def test_a_worker_that_dagster_could_not_be_told_of_is_ended_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(run_id: str, new_tags: object) -> None:
        raise OSError(run_id, new_tags)

    run = desk.create("holds_in_process")
    monkeypatch.setattr(desk.instance, "add_run_tags", fails)
    with pytest.raises(OSError, match=run.run_id):
        desk.launcher.launch_run(LaunchRunContext(run, None))
    desk.reconciled()

    assert desk.site.workers(run.run_id) == []


def test_a_reexecuted_run_is_not_taken_for_its_parent(desk: Desk) -> None:
    parent = desk.launch("holds_in_process")
    desk.holds(parent)
    child = desk.create("good_in_process", {HANDLE_TAG: desk.run(parent).tags[HANDLE_TAG]})
    desk.instance.report_run_canceling(child)

    assert desk.launcher.terminate(child.run_id) is False
    assert desk.launcher.get_run_worker_debug_info(child) is None
    assert desk.launcher.binding.workspace.records.wish(stack_name(parent, 0)) is None
    assert desk.status(parent) == "STARTED"


@pytest.mark.smoke
def test_health_says_what_is_proven(desk: Desk) -> None:
    lives, killed = desk.launch("holds_in_process"), desk.launch("killed_in_process")
    desk.holds(lives)
    launcher = desk.launcher.binding.launcher_of(killed)
    launcher.wait(killed)
    running = desk.launcher.check_run_worker_health(desk.run(lives))
    failed = desk.launcher.check_run_worker_health(desk.run(killed))
    info = desk.launcher.get_run_worker_debug_info(desk.run(killed)) or ""

    assert running.status is WorkerStatus.RUNNING
    assert failed.status is WorkerStatus.FAILED
    assert "SIGKILL" in str(failed.msg)
    assert "Run worker: FAILED (SIGKILL) exit code 137" in info
    assert f"eject {killed}" in info


def test_a_worker_that_ended_well_without_a_word_has_failed(desk: Desk) -> None:
    run_id = desk.launch("good_in_process")
    desk.ends(run_id, as_="SUCCESS")
    desk.launcher.binding.launcher_of(run_id).wait(run_id)
    started = desk.run(run_id).with_status(DagsterRunStatus.STARTED)  # as the monitor has it, if it read too early

    health = desk.launcher.check_run_worker_health(started)

    assert health.status is WorkerStatus.FAILED
    assert "without telling Dagster" in str(health.msg)


@pytest.mark.parametrize(("grace", "status"), [(900, WorkerStatus.RUNNING), (0, WorkerStatus.UNKNOWN)])
def test_a_worker_that_cannot_be_asked_counts_as_running_for_a_while(
    make_site: Callable[..., Site], grace: int, status: WorkerStatus
) -> None:
    site = make_site({"unknown_grace_seconds": grace})
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
        records = desk.launcher.binding.workspace.records
        record = records.read(run_id)
        assert record is not None
        records.write(record.changed(place="host:elsewhere"))
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        elsewhere = desk.launcher.terminate(run_id)  # the wish is for whoever reconciles there
        records.write(record)

        assert health.status is status
        assert "elsewhere" in str(health.msg)
        assert elsewhere
        assert desk.reconciled() != []
        desk.ends(run_id, as_="CANCELED")


def test_a_run_that_nobody_knows_counts_as_running_for_a_while(desk: Desk) -> None:
    run = desk.create("good_in_process")

    assert desk.launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert desk.launcher.get_run_worker_debug_info(run) is None


def test_join_waits_for_what_was_launched(desk: Desk) -> None:
    run_id = desk.launch("good_in_process")

    desk.launcher.join()

    assert desk.status(run_id) == "SUCCESS"
    assert eventually(lambda: desk.site.workers(run_id) == [])


def test_only_the_ops_that_were_selected_are_executed(desk: Desk) -> None:
    run = desk.create("two", ops=("good",))
    desk.instance.launch_run(run.run_id, desk.workspace.create_request_context())

    desk.ends(run.run_id, as_="SUCCESS")
    assert len(desk.site.done(run.run_id)) == 1


def test_a_run_outlives_its_code_server_and_can_be_canceled_without_it(make_site: Callable[..., Site]) -> None:
    site = make_site()
    code = site.code
    with short_folder() as short, code_server(Path(short)) as site.code:
        site.write("workspace.yaml", {"load_from": [{"grpc_server": site.server}]})
        with site.desk() as desk:
            run_id = desk.launch("holds_in_process")
            desk.holds(run_id)
            unlaunched = desk.create("good_in_process")
    site.code = code
    site.write("workspace.yaml", {"load_from": [{"grpc_server": site.server}]})
    with site.desk() as desk:
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        desk.launcher.launch_run(LaunchRunContext(unlaunched, None))
        asked = desk.launcher.terminate(run_id)

        desk.ends(run_id, as_="CANCELED")
        desk.ends(unlaunched.run_id, as_="SUCCESS")
        assert health.status is WorkerStatus.RUNNING
        assert asked


def test_a_worker_that_cannot_open_the_instance_is_reported_with_what_it_said(make_site: Callable[..., Site]) -> None:
    """Its template gives it no variable that the instance's storage is configured by."""
    storage = {"sqlite": {"base_dir": {"env": "SITE_STORAGE"}}}
    site = make_site({"template": "closed"}, storage=storage)
    site.variables["SITE_STORAGE"] = str(site.folder / "storage")
    site.template("closed", inherit_env=False, env={"PATH": os.environ["PATH"]})
    with site.desk() as desk:
        run_id = desk.launch("good_in_process")
        desk.launcher.binding.launcher_of(run_id).wait(run_id)

        assert (run_id, "reported failed") in desk.reconciled()
        assert desk.status(run_id) == "FAILURE"
        assert "SITE_STORAGE" in desk.told(run_id).partition("last lines:")[2]


def test_a_launcher_without_an_instance_ends_nothing(engine: str) -> None:  # noqa: ARG001
    launcher = PulumiRunLauncher()

    assert launcher.terminate("a-run") is False
    launcher.join()
    launcher.dispose()


def _events(desk: Desk, run_id: str) -> list[Any]:
    return [each.dagster_event for each in desk.instance.all_logs(run_id) if each.dagster_event is not None]


def _engine_events(desk: Desk, run_id: str) -> list[Any]:
    entries = desk.instance.all_logs(run_id)
    return [each for each in entries if each.dagster_event is not None and each.dagster_event.is_engine_event]


def _handle(desk: Desk, run_id: str) -> WorkerHandle:
    return WorkerHandle.model_validate(json.loads(desk.run(run_id).tags[HANDLE_TAG]))
