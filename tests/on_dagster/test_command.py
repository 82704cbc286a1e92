"""`run-launcher dagster reconcile` and `run-launcher dagster check`, called as a person calls them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster_site import Site

from launchers.dagster.check import OLDEST
from launchers.testing.contract import eventually

pytestmark = pytest.mark.parametrize("engine", ["warm"], indirect=True)
RECONCILE = ("dagster", "reconcile")


@pytest.mark.smoke
def test_reconcile_reports_a_run_and_removes_its_worker(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with site.desk() as desk:
        run_id = desk.launch("killed_in_process")
        desk.launcher.binding.launcher_of(run_id).wait(run_id)
        foreseen = json.loads(site.call(*RECONCILE, "--dry-run", "-o", "json").stdout)
        done = json.loads(site.call(*RECONCILE, "-o", "json").stdout)

        assert [(each["what"], each["done"]) for each in foreseen] == [("reported failed", False), ("removed", False)]
        assert [(each["subject"], each["what"]) for each in done] == [(run_id, "reported failed"), (run_id, "removed")]
        assert desk.status(run_id) == "FAILURE"
        assert site.stacks() == []


def test_reconcile_goes_on_and_shows_what_it_saw_to_prometheus(make_site: Callable[..., Site]) -> None:
    site = make_site()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with site.desk() as desk:
        ended = desk.launch("good_in_process")
        desk.launcher.binding.launcher_of(ended).wait(ended)
        starting = desk.create("good_in_process")
        (site.folder / "done" / "slow-start").touch()
        desk.instance.launch_run(starting.run_id, desk.workspace.create_request_context())
        words = (*RECONCILE, "--every", "100ms", "--metrics", str(port), "-o", "json")
        with site.process("reconcile", "run-launcher", *words) as process:

            def shown() -> str:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    return str(answer.read().decode())
                return ""

            assert eventually(lambda: 'run_launcher_launch_seconds{target="process",template="process"}' in shown())
            assert eventually(lambda: site.stacks() == [starting.run_id])
            values = dict(line.split() for line in shown().splitlines() if line.startswith("run_launcher_o"))
            unowned = dict(line.split() for line in shown().splitlines() if line.startswith("run_launcher_un"))
            (site.folder / "done" / "slow-start").unlink()
            process.send_signal(signal.SIGTERM)
            process.wait(30)

        assert float(values["run_launcher_oldest_starting_seconds"]) > 0
        assert float(unowned["run_launcher_unowned_objects"]) == 0
        desk.ends(starting.run_id, as_="SUCCESS")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--every", "0s"), "--every: the pause is longer than 0s"),
        (("--metrics", "9464"), "--metrics shows what each pass saw: say --every too"),
        (("--every", "1s", "--metrics", "localhost"), "'localhost' is no address"),
    ],
)
def test_reconcile_refuses_options_that_make_no_sense(
    make_site: Callable[..., Site], words: tuple[str, ...], told: str
) -> None:
    assert told in make_site().call(*RECONCILE, *words, code=2).stderr


def test_reconcile_says_that_dagster_home_is_missing(make_site: Callable[..., Site]) -> None:
    site = make_site()
    command = [str(Path(sys.executable).parent / "run-launcher"), *RECONCILE]
    environment = {name: value for name, value in site.environment.items() if name != "DAGSTER_HOME"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "DAGSTER_HOME" in done.stderr


# ---- check ----


def findings(site: Site) -> list[dict[str, str]]:
    """All that `check` finds."""
    told = json.loads(site.call("dagster", "check", "-o", "json", code=None).stdout)
    return list(told["findings"])


def checked(site: Site, *words: str, code: int = 1) -> dict[str, tuple[str, str]]:
    """What `check` found: name to level and text; of several of one name, the worst."""
    told = json.loads(site.call("dagster", "check", "-o", "json", *words, code=code).stdout)
    worst = sorted(told["findings"], key=lambda each: ["ok", "note", "broken"].index(each["level"]))
    return {each["name"]: (each["level"], each["value"]) for each in worst}


@pytest.mark.smoke
def test_nothing_is_broken_where_all_is_well(make_site: Callable[..., Site]) -> None:
    site = make_site(run_monitoring={"enabled": True}, run_queue={"max_user_code_failure_retries": 3})
    found = checked(site, code=0)

    assert {name for name, (level, _) in found.items() if level != "ok"} == set()
    assert found["template"] == ("ok", "process (target process)")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"run_launcher": {"module": "dagster", "class": "DefaultRunLauncher"}}, "run_launcher", "previous:\n      module"),
    (
        {"run_launcher": {"module": "dagster_docker", "class": "DockerRunLauncher", "config": {"image": "etl:1"}}},
        "run_launcher",
        "config: (what stands there now)",
    ),
    ({"run_launcher": {"module": "launchers", "class": "PulumiRunLauncher"}}, "run_launcher", "launchers.dagster"),
    ({"config": {"tempalte": "x"}}, "config", 'unexpected config entry "tempalte"'),
    ({"config": {"launch_timeout_seconds": "soon"}}, "config", "launch_timeout_seconds"),
    ({"config": {"launch_timeout_seconds": 0}}, "config", "it must be from 1"),
    ({"config": {"share": {"percent": 5}}}, "config", "`previous`, which is not there: add it"),
    ({"config": {"template": "smal"}}, "template", "did you mean 'small'?"),
    ({"config": {"config_file": "/nowhere/run-launcher.yaml"}}, "run-launcher.yaml", "there is no such"),
    ({"config": {"previous": {"module": "dagster_nowhere", "class": "X"}}}, "previous", "Install its package here"),
    ({"config": {"previous": {"module": "dagster", "class": "DefaultRunLauncher", "config": {"a": 1}}}}, "previous",
     'unexpected config entry "a"'),
    ({"run_monitoring": {"enabled": True, "start_timeout_seconds": 20}}, "run_monitoring", "make it longer"),
    ({"run_storage": {"module": "dagster._core.storage.runs", "class": "InMemoryRunStorage"},
      "event_log_storage": {"module": "dagster._core.storage.event_log", "class": "InMemoryEventLogStorage"},
      "schedule_storage": {"module": "dagster._core.storage.schedules", "class": "SqliteScheduleStorage",
                           "config": {"base_dir": "schedules"}}}, "storage", "in memory"),
    ({"run_monitorin": {}}, "file", "run_monitorin"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "name", "told"), WRONG)
def test_what_would_fail_is_told_with_what_to_write_instead(
    make_site: Callable[..., Site], wrong: dict[str, Any], name: str, told: str
) -> None:
    site = make_site()
    more = dict(wrong)
    site.config = more.pop("config", {})
    site.configure(**more)
    level, text = checked(site)[name]
    site.config = {}

    assert level == "broken"
    assert told in text


def test_what_to_write_can_be_copied_from_a_terminal(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.configure({"module": "dagster", "class": "DefaultRunLauncher"})
    lines = site.call("dagster", "check", code=1).stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.strip() == "run_launcher:")
    block = "\n".join(line[len(lines[begin]) - len("run_launcher:") :] for line in lines[begin : begin + 8])
    site.write("dagster/dagster.yaml", yaml.safe_load(block))

    assert checked(site, code=0)["previous"][0] == "ok"


def in_containers(site: Site, **keys: Any) -> None:  # noqa: ANN401 - YAML
    """Have the site's runs be containers, of a daemon that is not there."""
    site.config = {"template": "etl"}
    site.variables["DOCKER_HOST"] = "unix:///nowhere/docker.sock"
    site.template("etl", target="docker", image="etl:1", **keys)


def test_what_a_container_could_not_reach_or_does_not_know_is_told(make_site: Callable[..., Site]) -> None:
    site = make_site()
    in_containers(site)
    site.variables["PATH"], site.variables["PULUMI_HOME"] = "/nowhere", "/nowhere"
    site.configure()
    found = checked(site)
    postgres = {"postgres_db": {"username": "etl", "password": {"env": "SECRET"}, "hostname": "localhost",
                                "db_name": "etl"}}  # fmt: skip
    site.configure(storage={"postgres": postgres})
    told = [each["value"] for each in findings(site) if each["name"] == "storage"]
    in_containers(site, network_mode="host", secrets={"SECRET": {"env": "SECRET"}})
    well = [each["value"] for each in findings(site) if each["name"] == "storage"]
    site.config = {}

    folder = site.folder / "dagster"
    assert f"add to its volumes {{host: {folder}" in found["storage"][1]
    assert found["docker"][0] == "broken"
    assert "`pulumi plugin install resource docker 5." in found["plugin"][1]
    assert "there is no Docker daemon at unix:///nowhere/docker.sock" in found["docker"][1]
    assert "launch_timeout_seconds (30)" in found["image"][1]
    assert [each for each in told if "secrets: {SECRET: {env: SECRET}}" in each]
    assert [each for each in told if "it is at localhost" in each]
    assert well == []


def test_the_settings_of_docker_run_launcher_are_told_as_a_templates(make_site: Callable[..., Site]) -> None:
    site = make_site()
    config = {"networks": ["etl"], "container_kwargs": {"mem_limit": "1g", "auto_remove": True}}
    site.configure({"module": "dagster_docker", "class": "DockerRunLauncher", "config": config})
    found = checked(site)

    assert "template: docker" in found["run_launcher"][1]
    assert "- networks: networks" in found["template"][1]
    assert "- container_kwargs.mem_limit: resources.memory" in found["template"][1]
    assert "- container_kwargs.auto_remove: no field: `keep` says" in found["template"][1]


NOTES: list[tuple[dict[str, Any], str, str]] = [
    ({"run_monitoring": {"enabled": False}}, "run_monitoring", "run_monitoring: {enabled: true}"),
    ({"run_monitoring": {"enabled": True, "max_resume_run_attempts": 3}}, "run_monitoring", "--no-deps"),
    ({}, "run_queue", "run_queue: {max_user_code_failure_retries: 3}"),
]


@pytest.mark.parametrize(("more", "name", "told"), NOTES)
def test_what_is_worth_knowing_is_a_note(
    make_site: Callable[..., Site], more: dict[str, Any], name: str, told: str
) -> None:
    site = make_site(**more)
    level, text = checked(site, code=0)[name]

    assert level == "note"
    assert told in text


def test_code_locations_that_no_worker_could_load_are_told(make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site()
    (tmp_path / "code" / "stacks").mkdir(parents=True)
    (tmp_path / "code" / "stacks" / "__init__.py").touch()
    file = tmp_path / "workspace.yaml"
    locations = [
        {"grpc_server": {"host": "192.0.2.7", "port": 4000, "location_name": "far"}},
        {"grpc_server": {"host": "localhost", "port": 4000, "location_name": "near"}},
        {"python_file": {"relative_path": "code/jobs.py", "working_directory": "code"}},
    ]
    file.write_text(yaml.safe_dump({"load_from": locations}))
    found = checked(site, "-w", str(file))

    assert found["far"][0] == "broken"
    assert "192.0.2.7" in found["far"][1]
    assert "near" not in found
    assert "hides run-launcher's package 'stacks'" in found["hidden package"][1]


def test_the_oldest_dagster_is_the_one_that_is_tested(engine: str) -> None:  # noqa: ARG001
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["optional-dependencies"]["dagster"] == [f"dagster>={OLDEST}"]


def test_a_file_that_is_not_there_is_told(make_site: Callable[..., Site]) -> None:
    assert "there is no such file" in checked(make_site(), "nowhere/dagster.yaml")["file"][1]
