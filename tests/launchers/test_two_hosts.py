"""Two hosts that share a backend: each with pid, network and host name of its own, and a home of its own.

They look at, launch and terminate each other's runs. The kernel is asked from outside, where all processes show.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from hosts import Host, needs_hosts

from launchers.testing.contract import eventually

pytestmark = needs_hosts
SCRIPT = 'echo once >>"$1"; sleep 600'


@dataclass
class Pair:
    """Two hosts, and what the kernel shows of their workers."""

    a: Host
    b: Host
    lines: Path
    mark: str

    def launch(self, host: Host, run_id: str, *options: str) -> dict[str, Any]:
        words = ("launch", "--run-id", run_id, *options, "-o", "json", "--", "sh", "-c", SCRIPT, "sh", str(self.lines))
        done = host.run(*words)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def workers(self) -> list[int]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TWO_HOSTS") == self.mark and process.name() in {"sh", "sleep"}:
                    found.append(process.pid)
        return found

    def executions(self) -> int:
        return len(self.lines.read_text().split()) if self.lines.exists() else 0


@pytest.fixture(params=["file", "postgres"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    url = f"file://{tmp_path}/shared" if request.param == "file" else request.getfixturevalue("postgres_place").url
    key, mark = tmp_path / "key", os.urandom(8).hex()
    key.write_text("the same on both")
    hosts = []
    for name in ("etl-1", "etl-2"):
        settings = {
            "RUN_LAUNCHER_HOME": str(tmp_path / name),
            "RUN_LAUNCHER_BACKEND__URL": url,
            "RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE": str(key),
            "TWO_HOSTS": mark,
        }
        hosts.append(Host(name, settings))
    pair = Pair(hosts[0], hosts[1], tmp_path / "lines", mark)
    try:
        yield pair
        for host in hosts:
            for run in host.json("ps"):
                host.run("terminate", run["run_id"])
        for host in hosts:
            host.run("reconcile")
        left = [pair.workers(), [run["run_id"] for run in pair.a.json("ps")]]
    finally:
        for host in hosts:
            host.halt()
    assert left == [[], []]


def test_each_sees_that_the_others_run_is_there_and_where_to_ask(pair: Pair) -> None:
    pair.launch(pair.a, "r")

    seen = pair.b.json("status", "r")
    waited = pair.b.run("wait", "r")

    assert (seen["state"], pair.a.json("status", "r")["state"]) == ("UNKNOWN", "RUNNING")
    assert "etl-1" in seen["message"]
    assert [run["state"] for run in pair.b.json("ps")] == ["UNKNOWN"]
    assert waited.returncode == 4


def test_launching_the_others_run_again_starts_nothing(pair: Pair) -> None:
    first = pair.launch(pair.a, "r")

    again = pair.launch(pair.b, "r")

    assert (first["created"], again["created"]) == (True, False)
    assert again["handle"] == first["handle"]
    assert eventually(lambda: pair.executions() == 1)


def test_launched_on_both_at_once_it_is_one_worker(pair: Pair) -> None:
    for number in range(3):
        words = ("launch", "--run-id", f"r{number}", "-o", "json", "--", "sh", "-c", SCRIPT, "sh", str(pair.lines))
        with pair.a.begin(*words) as one, pair.b.begin(*words) as two:
            answers = [json.loads(each.communicate(timeout=120)[0]) for each in (one, two)]

        assert sorted(each["created"] for each in answers) == [False, True]
        assert answers[0]["handle"] == answers[1]["handle"]
        assert eventually(lambda: pair.executions() == number + 1)  # noqa: B023 - it is asked in this very round


def test_thirty_launches_at_once_from_both_never_go_above_a_limit(pair: Pair, tmp_path: Path) -> None:
    config = tmp_path / "limits.yaml"
    config.write_text("limits: {templates: {process: {concurrent_runs: 5}}}\n")
    for host in (pair.a, pair.b):
        host.settings["RUN_LAUNCHER_CONFIG_FILE"] = str(config)
    command = ("--timeout", "150s", "--", "sh", "-c", SCRIPT, "sh", str(pair.lines))
    begun = [
        host.begin("launch", "--run-id", f"{host.name}-{number}", *command)
        for number in range(15)
        for host in (pair.a, pair.b)
    ]
    said = [each.communicate(timeout=200)[1] for each in begun]

    codes = [each.returncode for each in begun]
    assert (codes.count(0), codes.count(5)) == (5, 25), said
    assert eventually(lambda: pair.executions() == 5)
    refused = next(text for text, code in zip(said, codes, strict=True) if code == 5)
    assert "template process has 5 of 5 runs in use (limits.templates.process.concurrent_runs, " in refused
    assert f"{config.name}:1" in refused


def test_a_wish_to_end_it_is_carried_out_where_it_lives(pair: Pair) -> None:
    pair.launch(pair.a, "r")

    asked = pair.b.run("terminate", "r")
    alive = pair.workers()
    elsewhere = pair.b.json("reconcile")
    done = pair.a.json("reconcile")

    assert asked.returncode == 4
    assert "etl-1" in asked.stderr
    assert alive != []
    assert elsewhere == []
    assert [(each["subject"], each["what"]) for each in done] == [("r", "terminated")]
    assert pair.workers() == []
    assert pair.b.json("status", "r")["reason"] == "terminated"


def test_a_launch_in_flight_on_the_other_host_is_never_broken(pair: Pair) -> None:
    """Its launcher and its engine stand still, so that there is nothing to see of them but what they hold."""
    words = ("launch", "--run-id", "r", "-o", "json", "--", "sh", "-c", SCRIPT, "sh", str(pair.lines))
    with pair.a.begin("--engine", "cli", *words) as launch:
        assert eventually(lambda: _engines(launch.pid) != [])
        (launcher,) = psutil.Process(launch.pid).children()
        frozen = [launcher, *_engines(launch.pid)]
        for process in frozen:
            process.suspend()
        try:
            again = pair.b.run("launch", "--run-id", "r", "--timeout", "2s", *words[3:])
            ended = pair.b.run("terminate", "r", "--no-wait")
            repaired = pair.b.json("reconcile")
        finally:
            for process in [*frozen, psutil.Process(launch.pid)]:  # nsenter stops with its child
                with suppress(psutil.Error):
                    process.resume()
        launch.wait(120)

    assert again.returncode == 4, again.stderr
    assert "launch by process" in again.stderr
    assert ended.returncode == 4  # the wish is recorded: the launch itself carries it out
    assert repaired == []
    assert launch.returncode == 8
    assert pair.executions() <= 1
    assert eventually(lambda: pair.workers() == [])


def _engines(launcher: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        children = psutil.Process(launcher).children(recursive=True)
        return [each for each in children if each.name().startswith("pulumi")]
    return []


def test_a_launch_that_died_on_the_other_host_starts_no_second_worker(pair: Pair) -> None:
    words = ("launch", "--run-id", "r", "--", "sh", "-c", SCRIPT, "sh", str(pair.lines))
    with pair.a.begin(*words) as launch:
        assert eventually(pair.lines.exists)
        children = psutil.Process(launch.pid).children()
        for process in children or [psutil.Process(launch.pid)]:
            process.send_signal(signal.SIGKILL)
        launch.wait(60)
    recorded = pair.a.json("status", "r")["handle"]

    again = pair.b.run(*words)
    mended = pair.a.json("reconcile")

    if recorded is None:  # else it died after its work was done
        assert again.returncode == 4, again.stderr
        assert "etl-1" in again.stderr
        assert ("r", "mended") in [(each["subject"], each["what"]) for each in mended]
    assert pair.executions() == 1
    assert pair.a.json("status", "r")["state"] == "RUNNING"


def test_a_run_of_a_host_that_is_gone_can_be_given_up(pair: Pair) -> None:
    pair.launch(pair.a, "r")
    refused = pair.a.run("terminate", "r", "--abandon")
    pair.a.halt()
    assert eventually(lambda: pair.workers() == [])
    given_up = pair.b.run("terminate", "r", "--abandon")
    status = pair.b.json("status", "r")
    pair.a.boot()

    assert (refused.returncode, given_up.returncode) == (2, 0)
    assert (status["state"], status["reason"]) == ("FAILED", "abandoned")
