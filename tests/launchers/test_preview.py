"""A preview shows what a launch would make and where each value comes from; files and processes stay as they were."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from launchers import ProcessTemplate, Run, load_launcher
from launchers.settings import Config
from launchers.testing.contract import eventually
from stacks.errors import KeyMismatchError
from stacks.setup import tools_folder

SCRIPT: Final = Path(sys.executable).parent / "run-launcher"
TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
SMALL: Final = """\
target: process
description: Small reports
inherit_env: false
env: {PATH: /usr/bin:/bin, REGION: plain-v4lue}
secrets: {API_TOKEN: {env: MY_TOKEN}}
limits: {memory: 1Gi}
max_runtime: 1h
overrides: {env: {keys: [OWN, BOTH, FROM_FILE]}, limits.open_files: {max: 100}}
"""


class Place:
    """A user's folders, all below one: home, what is kept, temporary files, and where they work."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept = root / "kept"
        for name in ("home", "temp", "work/templates"):
            (root / name).mkdir(parents=True)
        self.work = root / "work"
        (self.work / "templates" / "small.yaml").write_text(SMALL)
        (self.work / "run-launcher.yaml").write_text("launch: {timeout: 45s}\n")
        self.environment = {
            **os.environ,
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "temp"),
            "RUN_LAUNCHER_HOME": str(self.kept),
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "MY_TOKEN": "t0ken-v4lue",
        }

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(SCRIPT), *words],
            cwd=self.work,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def preview(self, *words: str, code: int = 0, **environment: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        return json.loads(self("preview", "-o", "json", *words, code=code, **environment).stdout)

    def listing(self) -> dict[str, tuple[int, bytes]]:
        """Every file and folder, with its mode and content."""
        return {
            str(path.relative_to(self.root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in self.root.rglob("*")
        }

    def processes(self) -> list[int]:
        """Every process with this root in its words or environment, as the kernel shows it."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and str(self.root) in f"{process.cmdline()} {process.environ()}":
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def place(empty_home: Path) -> Iterator[Place]:  # noqa: ARG001 - nothing of this machine's user is read
    with tempfile.TemporaryDirectory(prefix="rl-") as root:
        made = Place(Path(root))
        yield made
        runs = made("ps", "-o", "name").stdout.split() if made.kept.exists() else []
        if runs:
            made("terminate", *runs)
        assert made.processes() == []


def origins(preview: Any) -> dict[str, str]:  # noqa: ANN401 - whatever JSON holds
    return {each["key"]: each["origin"] for each in preview["values"]}


def values(preview: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
    return {each["key"]: each["value"] for each in preview["values"]}


# ---- without an effect ----


def test_where_nothing_was_ever_launched_nothing_is_made(place: Place) -> None:
    before = place.listing()
    shown = place.preview("--run-id", "etl", "--", "sleep", "600")

    assert (shown["answer"], shown["run_id"], shown["attempt"]) == ("start", "etl", 0)
    assert shown["changes"] == [{"operation": "create", "type": "runworker:index:Process", "name": "worker"}]
    assert place.listing() == before
    assert place.processes() == []


def test_where_runs_are_kept_not_a_byte_changes(place: Place) -> None:
    place("launch", "--run-id", "other", "--", "true")
    place("wait", "other")
    before = place.listing()
    shown = [place.preview("--run-id", run_id, "--", "true")["answer"] for run_id in ("etl", "other")]

    assert shown == ["start", "nothing"]
    assert place.listing() == before


def test_a_key_that_is_configured_is_read_and_nothing_is_made_with_it(place: Place) -> None:
    key = place.root / "key"
    key.write_text("a key of ours")
    before = place.listing()
    place.preview("sleep", "600", RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE=str(key))

    assert place.listing() == before


def test_from_python_nothing_is_made(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    before = place.listing()
    launcher = load_launcher(ProcessTemplate(), config=Config(home=place.kept))
    changes = launcher.preview(Run(id="etl", command=("true",)))

    assert [each.operation for each in changes][-1] == "create"
    assert launcher.foresee(Run(id="etl", command=("true",))) is None
    assert place.listing() == before


def test_a_preview_that_was_killed_leaves_a_folder_with_its_name_and_no_process(place: Place) -> None:
    place("launch", "--run-id", "other", "--", "true")
    work = place.kept / "work"
    work.mkdir(exist_ok=True)
    command = [str(SCRIPT), "--engine", "cli", "preview", "sleep", "600"]  # the other one needs no folder
    with subprocess.Popen(command, env=place.environment, stdout=subprocess.DEVNULL) as process:
        while not list(work.glob("*/o/pid")):
            assert process.poll() is None
        process.kill()
    left = [path.name for path in work.iterdir()]

    assert [re.sub(r"-[^-]+$", "", name) for name in left] == [f"preview-{process.pid}"]
    assert eventually(lambda: place.processes() == [])


# ---- where each value comes from ----


def test_each_value_says_where_it_comes_from(place: Place) -> None:
    (place.work / "vars").write_text("FROM_FILE=x\nBOTH=x\n")
    options = ["-t", "small", "--run-id", "etl", "-e", "BOTH=y", "--env-file", "vars", "--tag", "team=data"]
    shown = place.preview(*options, "--", "sleep", "600", RUN_LAUNCHER_ENGINE__TIMEOUT="7m")

    wanted = {
        "run.id": "flag --run-id",
        "run.attempt": "default",
        "run.command": "command line",
        "run.tags.team": "flag --tag",
        "run.cwd": "caller",
        "template": "flag --template",
        "template.max_runtime": "templates/small.yaml:7",
        "template.limits.memory": "templates/small.yaml:6",
        "template.limits.open_files": "default",
        "template.keep.failed": "default",
        "env.REGION": "templates/small.yaml:4",
        "env.API_TOKEN": "templates/small.yaml:5",
        "env.BOTH": "flag --env",
        "env.FROM_FILE": "flag --env-file",
        "launch.timeout": "run-launcher.yaml:1",
        "engine.timeout": "environment RUN_LAUNCHER_ENGINE__TIMEOUT",
        "home": "environment RUN_LAUNCHER_HOME",
        "records.keep": "default",
    }
    told = origins(shown)
    assert {key: told.get(key) for key in wanted} == wanted
    assert values(shown)["template.file"] == "templates/small.yaml"
    assert values(shown)["template.max_runtime"] == "3600s"


def test_the_digest_and_the_place_are_those_that_the_launch_then_has(place: Place) -> None:
    words = ("-t", "small", "--run-id", "etl", "--", "sleep", "600")
    shown = values(place.preview(*words))
    launched = json.loads(place("launch", "-o", "json", *words).stdout)

    assert shown["template.digest"] == launched["digest"]
    assert shown["run.place"] == launched["handle"]["place"]
    assert shown["run.cwd"] == launched["cwd"]


def test_of_the_environment_only_names_are_shown(place: Place) -> None:
    hidden = ("t0ken-v4lue", "plain-v4lue", "own-v4lue", "inherited-v4lue")
    for template in ("small", "process"):
        for shape in ("table", "json", "yaml"):
            words = ("preview", "-t", template, "-o", shape, "-e", "OWN=own-v4lue", "--", "sleep", "600")
            said = place(*words, INHERITED="inherited-v4lue").stdout

            assert [value for value in hidden if value in said] == []
            assert "env.OWN" in said
    assert origins(place.preview("sleep", "600", INHERITED="x"))["env.INHERITED"] == "caller"
    assert "env.PULUMI_X" not in origins(place.preview("sleep", "600", PULUMI_X="x"))


# ---- what the launch would answer ----


def test_a_taken_id_is_answered_as_the_launch_would(place: Place) -> None:
    place("launch", "--run-id", "etl", "--", "sleep", "600")
    again = place.preview("--run-id", "etl", "--", "sleep", "600")
    other = place.preview("--run-id", "etl", "--", "sleep", "601", code=4)
    next_one = place.preview("--run-id", "etl", "--attempt", "1", "--", "sleep", "600", code=4)
    refused = place("launch", "--run-id", "etl", "--", "sleep", "601", code=4).stderr

    assert [again["answer"], other["answer"], next_one["answer"]] == ["nothing", "refused", "refused"]
    assert other["message"] in refused
    assert "nothing would be started" in again["message"]
    assert "must have ended" in next_one["message"]


def test_the_next_attempt_of_an_ended_run_would_be_launched(place: Place) -> None:
    place("launch", "--run-id", "etl", "--", "false")
    place("wait", "etl", code=10)
    before = place.listing()

    assert place.preview("--run-id", "etl", "--attempt", "1", "--", "false")["answer"] == "start"
    assert place.listing() == before


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (("--", "no-such-command"), "no such command on PATH"),
        (("-t", "absent", "--", "true"), "no template 'absent'"),
        (("-t", "small", "--", "true"), "has no MY_TOKEN"),
        (("--attempt", "1", "--", "true"), "--attempt needs the --run-id"),
        (("--run-id", "a/b", "--", "true"), "--run-id"),
    ],
)
def test_what_cannot_be_launched_is_refused_with_the_code_of_the_launch(
    place: Place, words: tuple[str, ...], word: str
) -> None:
    del place.environment["MY_TOKEN"]
    before = place.listing()
    said = [place(command, *words, code=2).stderr for command in ("preview", "launch")]

    assert word in said[0]
    assert said[0] == said[1]
    assert place.listing() == before


def test_a_key_that_is_wrong_or_missing_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_LAUNCHER_TOOLS", str(TOOLS))
    absent = str(place.root / "absent")
    place("preview", "true", code=3, RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE=absent)
    place("launch", "--run-id", "other", "--", "true")
    (key,) = place.kept.glob("keys/*")
    right = key.read_text()
    key.write_text("another")
    said = place("preview", "true", code=3).stderr
    with pytest.raises(KeyMismatchError):
        load_launcher(ProcessTemplate(), config=Config(home=place.kept)).preview(Run(id="etl", command=("true",)))
    key.write_text(right)

    assert "is not the one that the backend" in said
