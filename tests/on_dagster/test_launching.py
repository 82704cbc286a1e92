"""Which template a run gets, what is refused and how, and the time limit of a launch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRun
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError
from dagster._core.launcher import LaunchRunContext
from dagster_site import LOCATION, Desk, Site, served_from
from servers import serving

from launchers.dagster.binding import DIGEST_TAG, TEMPLATE_TAG
from launchers.dagster.code_host import is_here
from launchers.templates import StaleTemplateWarning
from stacks.engine import stack_name
from stacks.errors import RunNotFoundError

pytestmark = pytest.mark.parametrize("engine", ["warm"], indirect=True)


def in_context(desk: Desk, run: DagsterRun, context: dict[str, Any] | None) -> DagsterRun:
    """The run as if its code location had a container context."""
    origin = run.job_code_origin
    assert origin is not None
    repository = origin.repository_origin._replace(container_context=context)
    changed = run._replace(job_code_origin=origin._replace(repository_origin=repository))
    assert desk.instance.get_run_by_id(run.run_id) is not None
    return changed


@pytest.mark.parametrize(
    ("tags", "context", "default", "chosen"),
    [
        ({TEMPLATE_TAG: "small"}, {"run_launcher": {"template": "large"}}, "process", "small"),
        ({}, {"run_launcher": {"template": "large"}, "k8s": {"namespace": "x"}}, "small", "large"),
        ({}, {"k8s": {"namespace": "x"}}, "small", "small"),
        ({}, None, None, "process"),
    ],
)
def test_a_template_is_chosen_by_tag_then_by_code_location_then_by_default(
    make_site: Callable[..., Site],
    tags: dict[str, str],
    context: dict[str, Any] | None,
    default: str | None,
    chosen: str,
) -> None:
    site = make_site({} if default is None else {"template": default})
    site.template("large")
    with site.desk() as desk:
        run = desk.create("good_in_process", tags)
        desk.launcher.launch_run(LaunchRunContext(in_context(desk, run, context), None))
        desk.ends(run.run_id, as_="SUCCESS")

        assert desk.run(run.run_id).tags[DIGEST_TAG].startswith(f"{chosen}@")


def test_a_template_that_was_changed_is_read_anew(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with site.desk() as desk:
        first = desk.launch("good_in_process")
        site.template("process", description="another one")
        second = desk.launch("good_in_process")
        for run_id in (first, second):
            desk.ends(run_id, as_="SUCCESS")

        assert desk.run(first).tags[DIGEST_TAG] != desk.run(second).tags[DIGEST_TAG]


@pytest.mark.parametrize(("tags", "chosen"), [({}, "large"), ({TEMPLATE_TAG: "small"}, "small")])
def test_a_route_chooses_where_the_run_does_not(
    make_site: Callable[..., Site], tags: dict[str, str], chosen: str
) -> None:
    site = make_site({"template": "process"})
    site.template("large", use={"code_locations": LOCATION})
    site.write("run-launcher.yaml", {
        "home": str(site.home), "engine": {"kind": site.engine},
        "routes": [
            {"tags": {"dagster/job": "other"}, "template": "nowhere"},
            {"tags": {"dagster/job": "good_*"}, "code_locations": LOCATION, "template": "large"},
        ],
    })  # fmt: skip
    with site.desk() as desk:
        run_id = desk.launch("good_in_process", tags)
        desk.ends(run_id, as_="SUCCESS")

        assert desk.run(run_id).tags[DIGEST_TAG].startswith(f"{chosen}@")


def test_a_template_of_another_code_location_is_refused_by_tag_by_digest_and_by_route(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    with site.desk() as desk:
        first = desk.launch("good_in_process", {TEMPLATE_TAG: "small"})
        desk.ends(first, as_="SUCCESS")
        site.template("small", owner="ml", use={"code_locations": "ml-*"})
        for name in ("small", desk.run(first).tags[DIGEST_TAG]):
            run = desk.create("good_in_process", {TEMPLATE_TAG: name})
            with pytest.raises(DagsterLaunchFailedError, match=r"template small is not for .* code location 'code'"):
                desk.launcher.launch_run(LaunchRunContext(run, None))

            assert site.workers(run.run_id) == []


def test_a_template_that_is_broken_by_now_is_used_as_it_was_and_the_run_is_told(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with site.desk() as desk:
        desk.ends(desk.launch("good_in_process", {TEMPLATE_TAG: "small"}), as_="SUCCESS")
        (site.folder / "templates" / "small.yaml").write_text("target: [", encoding="utf-8")
        with pytest.warns(StaleTemplateWarning):
            run_id = desk.launch("good_in_process", {TEMPLATE_TAG: "small"})
        desk.ends(run_id, as_="SUCCESS")

        assert "template small is broken, so its last good version is used" in desk.told(run_id)


@pytest.mark.parametrize(
    ("tags", "context", "reason"),
    [
        ({TEMPLATE_TAG: "smal"}, None, "no template 'smal'; did you mean 'small'?"),
        ({TEMPLATE_TAG: "/etc/passwd"}, None, "a run names a template, never a path"),
        ({TEMPLATE_TAG: "broken"}, None, r"templates/broken\.yaml:2: unknown key 'gracee'; did you mean 'grace'?"),
        ({TEMPLATE_TAG: "nowhere"}, None, "the working folder /nowhere is not there"),
        ({}, {"run_launcher": {"templates": "small"}}, "run_launcher takes `template: NAME`"),
        ({}, {"run_launcher": "small"}, "run_launcher takes `template: NAME`"),
    ],
)
def test_a_run_that_is_refused_fails_with_the_reason_and_leaves_nothing(
    make_site: Callable[..., Site], tags: dict[str, str], context: dict[str, Any] | None, reason: str
) -> None:
    site = make_site()
    site.template("broken", gracee="5s")
    site.template("nowhere", cwd="/nowhere")
    with site.desk() as desk:
        run = desk.create("good_in_process", tags)

        with pytest.raises(DagsterLaunchFailedError, match=reason.replace("?", r"\?")):
            desk.launcher.launch_run(LaunchRunContext(in_context(desk, run, context), None))
        assert desk.launcher.binding.workspace.records.read(run.run_id) is None


def test_what_was_refused_stands_in_the_runs_events(desk: Desk) -> None:
    run = desk.create("good_in_process", {TEMPLATE_TAG: "smal"})
    with pytest.raises(DagsterLaunchFailedError):
        desk.instance.launch_run(run.run_id, desk.workspace.create_request_context())

    assert desk.status(run.run_id) == "FAILURE"
    assert "did you mean 'small'?" in desk.told(run.run_id)


def test_a_process_is_refused_for_code_of_another_host(desk: Desk) -> None:
    run = desk.create("good_in_process")

    with pytest.raises(DagsterLaunchFailedError, match="code location far is served from code-far"):
        desk.launcher.launch_run(LaunchRunContext(served_from(run, "code-far.invalid"), None))
    with pytest.raises(RunNotFoundError):
        desk.launcher.binding.launcher_of(run.run_id)


def test_code_of_another_host_that_is_here_too_may_be_allowed(make_site: Callable[..., Site]) -> None:
    with make_site({"allow_remote_code": True}).desk() as desk:
        run = desk.create("good_in_process")
        desk.launcher.launch_run(LaunchRunContext(served_from(run, "code-far.invalid"), None))

        desk.ends(run.run_id, as_="SUCCESS")


@pytest.mark.parametrize(("host", "here"), [("localhost", True), ("127.0.0.1", True), ("192.0.2.7", False)])
def test_a_host_is_known_by_its_addresses(engine: str, host: str, here: bool) -> None:  # noqa: ARG001, FBT001
    assert is_here(host) is here


def test_nothing_starts_after_the_time_limit(desk: Desk) -> None:
    """Another command holds the claim on the run for as long as the launch may take."""
    workspace = desk.launcher.binding.workspace
    desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
    desk.limit(1)
    run = desk.create("good_in_process")
    begun = time.monotonic()
    with (
        workspace.backend.claims.hold(stack_name(run.run_id, 0), "a test", timedelta(0)),
        pytest.raises(DagsterLaunchFailedError),
    ):
        desk.launcher.launch_run(LaunchRunContext(run, None))
    took = time.monotonic() - begun

    assert took < 1 + 5
    assert desk.site.workers(run.run_id) == []
    assert desk.site.done(run.run_id) == []


def test_a_launch_that_hangs_is_left_behind_and_starts_nothing_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is still being brought when the time is over; nothing was begun, so Dagster may queue it again."""
    desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
    desk.limit(1)
    run = desk.create("good_in_process")
    monkeypatch.setattr("launchers.dagster.launching._MARGIN", 0.1)
    goes_on = threading.Event()
    engine = desk.launcher.binding.workspace.engine
    prepare = engine.prepare
    monkeypatch.setattr(engine, "prepare", lambda: (goes_on.wait(60), prepare()))
    with pytest.raises(DagsterUserCodeUnreachableError, match="nothing was begun within 1 s"):
        desk.launcher.launch_run(LaunchRunContext(run, None))
    goes_on.set()
    for each in threading.enumerate():
        if each.name == "run-launcher-launch":
            each.join(60)

    assert desk.site.workers(run.run_id) == []
    assert desk.site.done(run.run_id) == []


def away(home: Path) -> Callable[[], None]:
    """Take the backend's folder away; returns what brings it back."""
    state, elsewhere = home / "state", home / "elsewhere"
    state.rename(elsewhere)
    state.touch()

    def back() -> None:
        state.unlink()
        elsewhere.rename(state)

    return back


def test_a_launch_holds_while_the_backend_is_away(desk: Desk) -> None:
    assert desk.site.home is not None
    desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
    back = away(desk.site.home)
    timer = threading.Timer(1.5, back)
    timer.start()
    run_id = desk.launch("good_in_process")
    timer.join()

    desk.ends(run_id, as_="SUCCESS")
    assert len(desk.site.done(run_id)) == 1


def test_a_launch_fails_so_that_dagster_queues_the_run_again_when_the_backend_stays_away(desk: Desk) -> None:
    assert desk.site.home is not None
    desk.ends(desk.launch("good_in_process"), as_="SUCCESS")
    desk.limit(2)
    run = desk.create("good_in_process")
    back = away(desk.site.home)
    with pytest.raises(DagsterUserCodeUnreachableError, match="the backend did not answer for 2 s"):
        desk.launcher.launch_run(LaunchRunContext(run, None))
    back()
    desk.limit(30)

    desk.launcher.launch_run(LaunchRunContext(run, None))  # as the queue does
    desk.ends(run.run_id, as_="SUCCESS")
    assert len(desk.site.done(run.run_id)) == 1


def test_a_database_that_is_away_is_a_backend_that_is_away(
    make_site: Callable[..., Site], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("postgres")  # or the reason why there is none here
    site = make_site()
    with serving("postgres") as server:
        key = site.folder / "key"
        key.write_text("a key that all hosts share")
        backend = {"url": server.place().url, "passphrase_file": str(key)}
        site.write("run-launcher.yaml", {"home": str(site.home), "engine": {"kind": "warm"}, "backend": backend})
        with site.desk() as desk:
            first = desk.launch("good_in_process")
            desk.launcher.binding.launcher_of(first).wait(first)
            desk.reconciled()
            desk.limit(2)
            run = desk.create("good_in_process")
            server.stop()
            with pytest.raises(DagsterUserCodeUnreachableError, match="the backend did not answer"):
                desk.launcher.launch_run(LaunchRunContext(run, None))

            assert desk.site.workers(run.run_id) == []
    site.write("run-launcher.yaml", {"home": str(site.home), "engine": {"kind": "warm"}})


def test_an_instance_that_no_worker_can_reach_is_refused(desk: Desk) -> None:
    from dagster import DagsterInstance  # noqa: PLC0415 - beside the other one

    from launchers.dagster import PulumiRunLauncher  # noqa: PLC0415

    with DagsterInstance.ephemeral() as instance:
        launcher = PulumiRunLauncher(settings=desk.launcher.settings)
        launcher.register_instance(instance)
        with pytest.raises(DagsterLaunchFailedError, match="set DAGSTER_HOME"):
            launcher.launch_run(LaunchRunContext(desk.create("good_in_process"), None))


def limited(site: Site, **limits: object) -> None:
    """At most one run at once."""
    one = {"templates": {"process": {"concurrent_runs": 1}}, **limits}
    site.write("run-launcher.yaml", {"home": str(site.home), "engine": {"kind": site.engine}, "limits": one})


def test_a_run_above_a_limit_fails_with_the_reason(make_site: Callable[..., Site]) -> None:
    site = make_site()
    limited(site)
    with site.desk() as desk:
        first = desk.launch("holds_in_process")
        desk.holds(first)
        run = desk.create("good_in_process")
        with pytest.raises(DagsterLaunchFailedError, match=rf"has 1 of 1 runs in use .*run-launcher.yaml.*run {first}"):
            desk.launcher.launch_run(LaunchRunContext(run, None))

        assert desk.launcher.binding.workspace.records.read(run.run_id) is None


def test_a_run_that_waits_for_room_is_launched_when_there_is_some_and_else_queued_again(
    make_site: Callable[..., Site],
) -> None:
    site = make_site()
    limited(site, when_full="wait")
    with site.desk() as desk:
        first = desk.launch("holds_in_process")
        desk.holds(first)
        desk.limit(2)
        run = desk.create("good_in_process")
        with pytest.raises(DagsterUserCodeUnreachableError, match=r"no room for 2 s, .*has 1 of 1 runs in use"):
            desk.launcher.launch_run(LaunchRunContext(run, None))
        desk.limit(60)
        timer = threading.Timer(1, lambda: site.let_go(first))
        timer.start()
        desk.launcher.launch_run(LaunchRunContext(run, None))  # as the queue does
        timer.join()

        desk.ends(first, as_="SUCCESS")
        desk.ends(run.run_id, as_="SUCCESS")
