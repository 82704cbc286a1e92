"""Runs of Dagster as containers of a real Docker Engine; what is left of them is asked of the daemon."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from dagster import DagsterEventType, DagsterRun
from dagster._core.errors import DagsterLaunchFailedError
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster_site import Site, code_server, served_from, short_folder
from dockerd import Daemon
from images import BUSYBOX, WORKER, mounts
from targets import take_engine

from launchers.testing.contract import eventually

HERE: Final = Path(__file__).parent
CONTEXT: Final[dict[str, Any]] = {
    "env_vars": ["OF_LOCATION=said"],
    "docker": {
        "env_vars": ["OF_LAUNCHER"],
        "container_kwargs": {"mem_limit": "1g", "pids_limit": 500},
    },
}


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> str:
    """The warm engine, where a test does not say otherwise."""
    return take_engine(request, getattr(request, "param", "warm"))


@pytest.fixture(scope="module")
def docker_code() -> Iterator[Path]:
    """The socket of a code server with an image and a container context."""
    context = {"DAGSTER_CURRENT_IMAGE": WORKER, "DAGSTER_CONTAINER_CONTEXT": json.dumps(CONTEXT)}
    with short_folder() as folder, code_server(Path(folder), HERE / "docker_jobs.py", **context) as address:
        yield address


@pytest.fixture
def nothing_stays(docker_host: Daemon) -> Iterator[list[str]]:
    """At the end, after the sites', the daemon has no container of the sites with these marks."""
    marks: list[str] = []
    yield marks
    with contextlib.closing(docker_host.client()) as client:
        for each in client.containers.list(all=True, filters={"name": "dagster-step-"}):
            if any(f"SITE_MARK={mark}" in each.attrs["Config"]["Env"] for mark in marks):
                each.remove(force=True)  # docker_executor leaves them
        left = [each.name for each in client.containers.list(all=True) if each.labels.get("site") in marks]
    assert left == []


@pytest.fixture
def make_docker_site(
    docker_host: Daemon, nothing_stays: list[str], make_site: Callable[..., Site], request: pytest.FixtureRequest
) -> Callable[..., Site]:
    """Makes sites whose runs are containers."""

    def make(jobs: str = "jobs") -> Site:
        made = make_site({"template": "etl"})
        if jobs == "docker_jobs":
            made.code, made.jobs = request.getfixturevalue("docker_code"), HERE / "docker_jobs.py"
            made.variables["OF_LAUNCHER"] = "here"
            made.write("workspace.yaml", {"load_from": [{"grpc_server": made.server}]})
        nothing_stays.append(made.mark)
        template(made, docker_host)
        return made

    return make


@pytest.fixture
def site(make_docker_site: Callable[..., Site]) -> Site:
    """One of them."""
    return make_docker_site()


def template(site: Site, daemon: Daemon, **keys: Any) -> None:  # noqa: ANN401 - YAML
    """The template of a container that finds all that this host has of Python, of the site, and the daemon."""
    shared = [site.folder, *([Path(daemon.url.removeprefix("unix://"))] if daemon.url.startswith("unix") else [])]
    volumes = [{"host": str(each.host), "mount": str(each.container), "read_only": True} for each in mounts()]
    site.template("etl", **{
        "target": "docker", "image": WORKER, "pull": "never", "network_mode": "host", "labels": {"site": site.mark},
        "volumes": [*volumes, *({"host": str(each), "mount": str(each)} for each in shared)],
        "env": {"SITE_FOLDER": str(site.folder / "done"), "DOCKER_HOST": daemon.url, "SITE_MARK": site.mark},
        **keys,
    })  # fmt: skip


@pytest.mark.parametrize("engine", ["warm", "cli"], indirect=True)
def test_a_job_succeeds_in_a_container(site: Site) -> None:
    with site.desk() as desk:
        run_id = desk.launch("good_in_process")
        desk.ends(run_id, as_="SUCCESS")

        record = desk.launcher.binding.workspace.records.read(run_id)
        assert record is not None
        assert [word for word in record.command if sys.prefix in word] == []  # the image's own Python, not this one
        assert len(site.done(run_id)) == 1
        assert desk.run(run_id).tags["dagster/image"] == WORKER
        assert desk.run(run_id).tags["run-launcher/place"].startswith("docker:")


def test_a_canceled_run_ends_its_container_and_says_so_in_order(site: Site, docker_host: Daemon) -> None:
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
        asked = desk.launcher.terminate(run_id)
        desk.ends(run_id, as_="CANCELED")
        desk.reconciled()

        assert asked
        assert containers(docker_host, site) == []
        wanted = [DagsterEventType.RUN_CANCELING, DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_CANCELED]
        told = [each.dagster_event_type for each in desk.instance.all_logs(run_id)]
        assert [each for each in told if each in wanted] == wanted
        assert site.stacks() == []


def test_terminate_returns_at_once_and_the_daemon_enforces_the_grace(site: Site, docker_host: Daemon) -> None:
    with site.desk() as desk:
        run_id = desk.launch("stubborn_in_process")
        desk.holds(run_id)
        begun = time.monotonic()
        asked = desk.launcher.terminate(run_id)
        took = time.monotonic() - begun
        status = desk.status(run_id)

        assert asked
        assert took < 2
        assert status == "CANCELING"
        assert eventually(lambda: containers(docker_host, site) == [(run_id, "exited", 137)])
        assert 4 < time.monotonic() - begun < 12
        assert (run_id, "reported canceled") in desk.reconciled()
        assert containers(docker_host, site) == []


def test_a_crashed_worker_fails_its_run_with_the_exit_code(site: Site, docker_host: Daemon) -> None:
    with site.desk() as desk:
        run_id = desk.launch("exits_in_process")
        desk.launcher.binding.launcher_of(run_id).wait(run_id)
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        desk.reconciled()

        assert (health.status, "exit code 7" in str(health.msg)) == (WorkerStatus.FAILED, True)
        assert desk.status(run_id) == "FAILURE"
        assert containers(docker_host, site) == []


def test_a_run_that_is_out_of_memory_fails_and_why_says_so(site: Site, docker_host: Daemon) -> None:
    template(site, docker_host, resources={"memory": "320Mi"})
    with site.desk() as desk:
        run_id = desk.launch("hungry_in_process")
        desk.launcher.binding.launcher_of(run_id).wait(run_id)
        info = desk.launcher.get_run_worker_debug_info(desk.run(run_id))
        why = site.call("--config-file", "run-launcher.yaml", "why", run_id).stdout
        desk.reconciled()

        assert desk.status(run_id) == "FAILURE"
        assert "OOMKilled" in str(info)
        assert "OOMKilled" in why
        assert "OOMKilled" in desk.told(run_id)


def test_a_killed_worker_is_resumed_in_another_container(site: Site, docker_host: Daemon) -> None:
    with site.desk() as desk:
        run_id = desk.launch("holds_in_process")
        desk.holds(run_id)
        with contextlib.closing(docker_host.client()) as client:
            client.containers.get(f"run-{run_id}").kill()
        desk.launcher.binding.launcher_of(run_id).wait(run_id)
        health = desk.launcher.check_run_worker_health(desk.run(run_id))
        desk.instance.resume_run(run_id, desk.workspace.create_request_context(), 1)
        desk.holds(run_id, times=2)
        during = containers(docker_host, site)
        shown = [word for process in psutil.process_iter() for word in words_of(process)]
        site.let_go(run_id)
        desk.ends(run_id, as_="SUCCESS")

        assert health.status is WorkerStatus.FAILED
        assert [(name, state) for name, state, _ in during] == [(run_id, "running")]
        assert [word for word in shown if run_id in word and "InstanceRef" in word] == []


def test_the_code_locations_image_is_used_where_the_template_opens_it(site: Site, docker_host: Daemon) -> None:
    template(site, docker_host, image=BUSYBOX, overrides={"image": {"enum": [BUSYBOX, WORKER]}})
    with site.desk() as desk:
        run = desk.create("good_in_process")
        desk.launcher.launch_run(LaunchRunContext(of_location(run, WORKER), None))
        desk.ends(run.run_id, as_="SUCCESS")

        assert desk.run(run.run_id).tags["dagster/image"] == WORKER


def test_the_templates_own_image_is_used_where_it_is_locked_and_the_run_is_told(
    site: Site,
) -> None:
    with site.desk() as desk:
        run = desk.create("good_in_process")
        desk.launcher.launch_run(LaunchRunContext(of_location(run, BUSYBOX), None))
        desk.ends(run.run_id, as_="SUCCESS")

        assert desk.run(run.run_id).tags["dagster/image"] == WORKER
        assert f"image {BUSYBOX}: the template keeps {WORKER}" in desk.told(run.run_id)


def test_an_image_beyond_the_templates_bound_is_refused_and_leaves_nothing(site: Site, docker_host: Daemon) -> None:
    template(site, docker_host, overrides={"image": {"glob": "python:*"}})
    with site.desk() as desk:
        run = desk.create("good_in_process")

        with pytest.raises(DagsterLaunchFailedError, match=r"image 'busybox:local' .*python:"):
            desk.launcher.launch_run(LaunchRunContext(of_location(run, BUSYBOX), None))
        assert containers(docker_host, site) == []


def test_a_code_location_of_docker_run_launcher_is_taken_over_or_told_where_its_settings_belong(
    make_docker_site: Callable[..., Site], docker_host: Daemon
) -> None:
    site = make_docker_site("docker_jobs")
    template(site, docker_host, image=BUSYBOX, overrides={"image": {"any": True}, "env": {"keys": ["OF_*"]}})
    with site.desk() as desk:
        run_id = desk.launch("whole")
        desk.ends(run_id, as_="SUCCESS")

        assert site.done(run_id)[0].split()[1:] == ["said", "here", "whole"]
        told = desk.told(run_id)
        assert "docker.container_kwargs.mem_limit: resources.memory" in told
        assert "docker.container_kwargs.pids_limit: no field" in told


def test_steps_of_docker_executor_have_what_their_worker_has(
    make_docker_site: Callable[..., Site], docker_host: Daemon
) -> None:
    site = make_docker_site("docker_jobs")
    template(site, docker_host, overrides={"env": {"keys": ["OF_*"]}})
    with site.desk() as desk:
        run_id = desk.launch("steps")
        desk.ends(run_id, as_="SUCCESS")

        assert len({line.split()[0] for line in site.done(run_id)}) == 2


def test_code_that_is_served_from_another_host_is_no_matter_to_a_container(site: Site) -> None:
    with site.desk() as desk:
        run = desk.create("good_in_process")
        desk.launcher.launch_run(LaunchRunContext(served_from(run, "code-far.invalid"), None))
        desk.ends(run.run_id, as_="SUCCESS")


def containers(daemon: Daemon, site: Site) -> list[tuple[str, str, int]]:
    """The containers of a site's runs: run, state, exit code."""
    with contextlib.closing(daemon.client()) as client:
        found = client.containers.list(all=True, filters={"label": f"site={site.mark}"})
        states = [(each.labels["run-launcher/run-id"], each.attrs["State"]) for each in found]
    return sorted((run_id, state["Status"], state["ExitCode"]) for run_id, state in states)


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def of_location(run: DagsterRun, image: str) -> DagsterRun:
    """The run as if its code location had an image."""
    origin = run.job_code_origin
    assert origin is not None
    repository = origin.repository_origin._replace(container_image=image)
    return run._replace(job_code_origin=origin._replace(repository_origin=repository))
