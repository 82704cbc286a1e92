"""Which runs a call means: names, prefixes, selectors; and what each command does with one, several or none."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command_line import FOREVER, CommandLine, read_until, user_in

OPENED = """
import os, sys
def note(event, args):
    if event == "open" and isinstance(args[0], str) and "/runs/" in args[0]:
        sys.stderr.write("opened " + args[0].split("/runs/")[1].split("/")[1] + "\\n")
sys.addaudithook(note)
from launchers.cli import main
main()
"""
"""Runs the command line, and names each run whose folder is looked into."""
OLD = "2020-01-01T00:00:00Z"


@pytest.fixture(scope="module")
def runs() -> Iterator[CommandLine]:
    """A user with runs in various states, the newest first: live, bad, good, a damaged record, gone."""
    with tempfile.TemporaryDirectory(prefix="rl-") as root, user_in(Path(root)) as user:
        clean = {name: value for name, value in user.environment.items() if not name.startswith(("XDG_", "PULUMI_"))}
        user.environment = {**clean, "HOME": root}
        template = Path(root) / "small.yaml"
        template.write_text('target: process\nenv: {PYTHONUNBUFFERED: "1"}\n')
        launch = ("launch", "--tag", "team=data", "--run-id")
        user(*launch, "gone", "--", "true")
        user("wait", "gone")
        user("terminate", "gone")
        user(*launch, "good", "--tag", "day=1", "-t", str(template), "--", "sh", "-c", "echo one; echo two")
        user(*launch, "bad", "--tag", "day=2", "--", "sh", "-c", "printf half; exit 3")
        user("launch", "--run-id", "live", "--tag", "team=ml", "--", "sh", "-c", "echo up; exec sleep 600")
        user("wait", "good", "bad", code=10)
        change(user, "live", wanted_at=OLD)
        yield user


def change(user: CommandLine, run_id: str, **fields: object) -> None:
    """Rewrite fields of a run's record, where no other way leads to a record like that."""
    (path,) = user.home.glob(f"state/records/*/{run_id}.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def names(user: CommandLine, *words: str) -> list[str]:
    return user("ps", "-o", "name", *words).stdout.split()


def looked_into(user: CommandLine, *words: str) -> set[str]:
    """The runs whose folders a command opens."""
    command = [sys.executable, "-c", OPENED, *words]
    done = subprocess.run(command, env=user.environment, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 8, 9, 10}, done.stderr
    return {line.split()[1] for line in done.stderr.splitlines() if line.startswith("opened ")}


# ---- the grammar ----


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["bad", "good", "live"]),
        (("--all",), ["bad", "gone", "good", "live"]),
        (("--state", "FAILED"), ["bad"]),
        (("--state", "running", "--state", "SUCCEEDED"), ["good", "live"]),
        (("--state", "SUCCEEDED", "-a"), ["gone", "good"]),
        (("--template", "small"), ["good"]),
        (("--template", "process"), ["bad", "live"]),
        (("--tag", "team"), ["bad", "good", "live"]),
        (("--tag", "team=data"), ["bad", "good"]),
        (("--tag", "team=data", "--tag", "day=2"), ["bad"]),
        (("--tag", "team="), []),
        (("--older", "1d"), ["live"]),
        (("--older", "0s"), ["bad", "good", "live"]),
        (("--older", "99999999d"), []),
        (("--newer", "1d"), ["bad", "good"]),
        (("--newer", "99999999d"), ["bad", "good", "live"]),
        (("--tag", "team", "--state", "FAILED", "--newer", "1d", "--template", "process"), ["bad"]),
        (("good", "live"), ["good", "live"]),
        (("live", "good", "live", "--state", "RUNNING"), ["live"]),
        (("gone",), ["gone"]),
        (("gone", "--state", "SUCCEEDED"), ["gone"]),
        (("@last", "--state", "RUNNING"), []),
        (("go", "--tag", "x"), None),
    ],
)
def test_a_selection_is_all_runs_that_match_among_those_named(
    runs: CommandLine, words: tuple[str, ...], expected: list[str] | None
) -> None:
    if expected is None:
        assert "'go' may be any of 2 runs: gone, good" in runs("ps", *words, code=2).stderr
    else:
        assert sorted(names(runs, *words)) == expected


def test_a_templates_digest_is_named_by_its_beginning(runs: CommandLine) -> None:
    digest = runs.json("status", "good")["digest"]

    assert names(runs, "--template", f"small@{digest[:6]}") == ["good"]
    assert names(runs, "--template", f"small@{'0' if digest[0] != '0' else '1'}") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--state", "RUNING"),
            "the states are STARTING, RUNNING, SUCCEEDED, FAILED, NOT_FOUND, UNKNOWN; did you mean",
        ),
        (("--state", ""), "the states are"),
        (("--tag", "=x"), "--tag =x: write NAME=VALUE, or NAME"),
        (("--template", ""), "write NAME"),
        (("--template", "@12"), "write NAME"),
        (("--template", "etl@xyz"), "hex digits"),
        (("--older", "soon"), "--older: 'soon' is no duration: write it like 30s"),
        (("--older", ""), "--older: '' is no duration"),
        (("--newer", "-1s"), "--newer: '-1s' is no duration"),
    ],
)
@pytest.mark.parametrize("command", ["ps", "why", "wait", "logs", "terminate"])
def test_a_wrong_selector_is_refused_with_the_words_that_are_valid(
    runs: CommandLine, command: str, words: tuple[str, ...], said: str
) -> None:
    done = runs(command, *words, *(["--yes"] if command == "terminate" else []), code=2)

    assert (said in done.stderr, done.stderr.count("\n"), done.stdout) == (True, 1, "")


@pytest.mark.parametrize("command", ["why", "wait", "logs", "terminate"])
def test_without_a_name_or_a_selector_nothing_is_meant(runs: CommandLine, command: str) -> None:
    for words in ((), ("--all",)):
        assert "name a run, or select runs with --state" in runs(command, *words, code=2).stderr


def test_a_selection_that_matches_nothing_is_told(runs: CommandLine) -> None:
    for command in ("why", "wait", "logs"):
        done = runs(command, "--state", "STARTING", "--tag", "x", code=6)
        assert done.stderr.startswith("run-launcher: no run here matches --state STARTING --tag x")
        assert done.stdout == ""
    ended = runs("terminate", "--tag", "x", "--yes")

    assert "none of these runs matches --tag x" in runs("why", "good", "--tag", "x", code=6).stderr
    assert runs("ps", "--tag", "x").stdout.split()[0] == "RUN"
    assert runs.json("ps", "--tag", "x") == []
    assert ("no run here matches --tag x" in ended.stderr, ended.stdout) == (True, "")
    assert runs.json("terminate", "--tag", "x", "--yes") == []


def test_a_target_is_asked_only_about_the_runs_of_which_something_is_to_be_known(runs: CommandLine) -> None:
    everything = {"live", "good", "bad"}

    assert looked_into(runs, "ps", "--template", "small") == {"good"}
    assert looked_into(runs, "wait", "--tag", "day=1") == {"good"}
    assert looked_into(runs, "terminate", "--template", "process", "--dry-run", "--newer", "1d") == {"bad"}
    assert looked_into(runs, "logs", "--template", "small", "-o", "json") == {"good"}
    assert looked_into(runs, "ps", "--state", "SUCCEEDED") == everything


def test_a_damaged_record_of_another_run_hinders_no_selection(runs: CommandLine) -> None:
    folder = runs.home / "state/records/00"
    folder.mkdir(exist_ok=True)
    record = folder / "torn.json"
    record.write_text("{")
    try:
        for command in ("ps", "why", "wait", "logs"):
            done = runs(command, "--tag", "day=1")
            assert ("torn.json is damaged" in done.stderr, "torn" in done.stdout) == (True, False)
        assert "torn.json is damaged" in runs("terminate", "--tag", "day=1", "--dry-run").stderr
        assert runs("status", "good", "--verbose").stderr == ""
    finally:
        record.unlink()


# ---- several runs ----


@pytest.mark.parametrize("command", ["status", "why", "wait"])
def test_one_name_gives_an_object_and_anything_else_a_list(runs: CommandLine, command: str) -> None:
    code = {"wait": 10}.get(command, 0)
    one = runs.json(command, "bad", code=code)
    many = runs.json(command, "good", "bad", code=code)
    twice = yaml.safe_load(runs(command, "bad", "bad", "-o", "yaml", code=code).stdout)

    assert one["run_id"] == "bad"
    assert [each["run_id"] for each in many] == ["good", "bad"]
    assert twice == [one]
    assert runs(command, "good", "bad", "-o", "name", code=code).stdout == "good\nbad\n"
    if command != "status":
        assert runs.json(command, "--state", "FAILED", code=code) == [one]
        assert runs.json(command, "bad", "--state", "FAILED", code=code) == [one]


def test_why_of_several_is_a_block_for_each(runs: CommandLine) -> None:
    first, second = runs("why", "--tag", "team=data").stdout.split("\n\n")

    assert first.startswith("run bad: FAILED")
    assert second.startswith("run good: SUCCEEDED")
    assert "| two" in second


def test_logs_of_several_name_the_run_before_each_line(runs: CommandLine) -> None:
    lines = runs("logs", "good", "bad").stdout.splitlines()
    told = [json.loads(line) for line in runs("logs", "bad", "-o", "json").stdout.splitlines()]

    assert lines == ["good | one", "good | two", "bad  | half"]
    assert told == [{"run_id": "bad", "attempt": 0, "line": "half"}]
    assert runs("logs", "--state", "FAILED").stdout == "half"


def test_the_worst_end_decides_how_wait_exits(runs: CommandLine) -> None:
    went_on = runs("wait", "good", "bad", "live", "--timeout", "100ms", code=9)

    assert runs("wait", "good", "gone").returncode == 0
    assert "1 of 3 runs go on after 0:00:00.100000: live (RUNNING)" in went_on.stderr
    assert [line.split()[1] for line in went_on.stdout.splitlines() if line.startswith("run ")] == [
        "good",
        "bad",
        "live",
    ]
    place = runs.json("status", "bad")["handle"]["place"]
    change(runs, "good", place="host:elsewhere")
    try:
        assert runs("wait", "good", "gone", code=4).stdout.count("UNKNOWN") == 1
        assert runs("wait", "good", "bad", code=10).returncode == 10
    finally:
        change(runs, "good", place=place)


# ---- what changes something ----


def test_wait_and_logs_follow_all_runs_to_their_ends(cli: CommandLine) -> None:
    for run_id in ("a", "b"):
        script = f"echo up {run_id}; while ! [ -e go-{run_id} ]; do sleep 0.05; done; echo over {run_id}"
        cli("launch", "--run-id", run_id, "--tag", "x=1", "--", "sh", "-c", script)
    waiting = cli.begin("wait", "--tag", "x", "-o", "json")
    follows = cli.begin("logs", "-f", "--tag", "x")
    read_until(follows.stdout, "up")
    read_until(follows.stdout, "up")
    Path("go-b").touch()
    first = read_until(follows.stdout, "over")
    assert waiting.poll() is None
    Path("go-a").touch()

    assert first == "b | over b\n"
    assert follows.communicate(timeout=60)[0] == b"a | over a\n"
    assert {each["state"] for each in json.loads(waiting.communicate(timeout=60)[0])} == {"SUCCEEDED"}
    assert (waiting.returncode, follows.returncode) == (0, 0)


def test_terminate_by_selector_needs_a_word_and_ends_only_what_was_selected(cli: CommandLine) -> None:
    for run_id, tag in (("a", "x=1"), ("b", "x=2"), ("c", "y=1")):
        cli("launch", "--run-id", run_id, "--tag", tag, "--", *FOREVER)
    workers = {run_id: cli.worker(run_id) for run_id in "abc"}
    refused = cli("terminate", "--tag", "x", code=2)
    shown = cli.json("terminate", "--tag", "x", "--dry-run")
    assert all(worker.is_running() for worker in workers.values())
    ended = cli.json("terminate", "--tag", "x", "--yes")

    assert "--yes" in refused.stderr
    assert [(each["run_id"], each["state"]) for each in shown] == [("b", "RUNNING"), ("a", "RUNNING")]
    assert [(each["run_id"], each["left"]) for each in ended] == [("b", 0), ("a", 0)]
    assert [run_id for run_id, worker in workers.items() if worker.is_running()] == ["c"]
    assert cli.json("terminate", "c", "--state", "SUCCEEDED") == []
    assert workers["c"].is_running()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 8), ("no\n", 8)])
def test_on_a_terminal_terminate_shows_what_was_selected_and_asks(cli: CommandLine, answer: str, code: int) -> None:
    cli("launch", "--run-id", "asked", "--tag", "x=1", "--", *FOREVER)
    worker = cli.worker("asked")
    said, exited = on_a_terminal(cli, "terminate", "--tag", "x", answer=answer)

    assert "asked   RUNNING" in said.split("[y/N]")[0]
    assert exited == code
    assert worker.is_running() == (code != 0)


def on_a_terminal(cli: CommandLine, *words: str, answer: str) -> tuple[str, int]:
    """Type an answer when the command asks; returns what the terminal shows, and the exit code."""
    ours, theirs = pty.openpty()
    process = cli.begin(*words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
            if said.endswith(b"] "):
                os.write(ours, answer.encode())
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return said.decode(), process.wait(60)


def test_a_run_whose_end_was_begun_is_as_over_as_one_that_was_terminated(cli: CommandLine) -> None:
    cli.launch("begun", *FOREVER)
    worker = cli.worker("begun")
    cli("terminate", "--no-wait", "begun")
    psutil.wait_procs([worker], timeout=60)
    cli("terminate", "begun")

    assert "was terminated" in cli("launch", "--run-id", "begun", "--", *FOREVER, code=4).stderr


def test_an_error_is_one_line_of_json_for_a_program(runs: CommandLine) -> None:
    def problem(*words: str, code: int) -> Any:  # noqa: ANN401 - whatever JSON holds
        done = runs(*words, code=code)
        assert done.stdout == ""
        return json.loads(done.stderr)

    stranger = problem("status", "stranger", "-o", "json", code=6)
    wrong = problem("wait", "--state", "x", "-o", "yaml", code=2)

    assert (stranger["error"], stranger["exit_code"], stranger["repair"]) == ("RunNotFoundError", 6, "user")
    assert (stranger["retryable"], stranger["started"]) == (False, "no")
    assert "the states are" in wrong["message"]
    went_on = runs("wait", "live", "--timeout", "0s", "-o", "json", code=9)
    assert (json.loads(went_on.stdout)["state"], json.loads(went_on.stderr)["retryable"]) == ("RUNNING", True)
    assert json.loads(runs("status", os.fsdecode(b"caf\xe9"), "-o", "json", code=6).stderr)["exit_code"] == 6
