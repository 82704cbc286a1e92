"""The command line as a user calls it: the installed script, the real engine, and the system asked what is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from command_line import FOREVER, CommandLine, read_until, until
from targets import take_engine

ASKED = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked"))
print("up")
while True:
    time.sleep(1)
"""
NEVER_SAID = re.compile(r"\bstack|\burn\b|passphrase|Traceback", re.IGNORECASE)


# ---- launch ----


@pytest.mark.smoke
def test_a_followed_launch_shows_exactly_what_the_worker_printed_and_then_how_it_ended(cli: CommandLine) -> None:
    done = cli("launch", "--follow", "--run-id", "etl", "--", "sh", "-c", "echo one; echo two >&2; printf end")

    assert done.stdout == "one\ntwo\nend"
    assert re.fullmatch(
        r"run etl launched as a process \(pid \d+\).*\nrun etl SUCCEEDED after \d+\.\d s\n", done.stderr
    )


def test_the_end_of_a_followed_worker_is_the_exit_code(cli: CommandLine) -> None:
    failed = cli("launch", "-f", "--run-id", "bad", "sh", "-c", "exit 3", code=10)
    cli("launch", "-f", "--exit-code-from-worker", "sh", "-c", "exit 3", code=3)
    cli("launch", "-f", "--exit-code-from-worker", "true", code=0)

    assert "run bad FAILED: exit code 3" in failed.stderr
    assert "run-launcher why bad" in failed.stderr


@pytest.mark.parametrize("follow", [(), ("--follow",)])
def test_rm_waits_for_the_end_and_leaves_only_the_record(cli: CommandLine, follow: tuple[str, ...]) -> None:
    done = cli("launch", "--rm", *follow, "--run-id", "gone", "--", "sh", "-c", "echo out; exit 3", code=10)

    assert ("out\n" in done.stdout) == bool(follow)
    assert cli.files_of("gone") == []
    assert cli.json("status", "gone")["exit_code"] == 3
    assert "nothing is kept" in cli("logs", "gone").stderr


def test_a_launch_answers_in_the_shape_that_was_asked_for(cli: CommandLine) -> None:
    launch = ("launch", "--run-id", "one", "--tag", "team=data")
    rows = cli(*launch, "--", "true").stdout.splitlines()
    again = cli(*launch, "-o", "json", "--", "true")
    data = json.loads(again.stdout)

    assert rows[0].split() == ["RUN", "STATE", "TARGET", "TEMPLATE", "AGE", "COMMAND"]
    assert rows[1].split()[0] == "one"
    assert cli(*launch, "-o", "name", "--", "true").stdout == "one\n"
    assert yaml.safe_load(cli(*launch, "-o", "yaml", "--", "true").stdout)["handle"] == data["handle"]
    assert {"run_id", "attempt", "created", "state", "exit_code", "handle", "command", "tags"} <= data.keys()
    assert (data["created"], data["tags"], data["handle"]["run_id"]) == (False, {"team": "data"}, "one")
    assert "nothing was started" in again.stderr


def test_options_after_the_command_are_the_commands_own(cli: CommandLine) -> None:
    program = "import sys; print(sys.argv[1:])"
    done = cli("launch", "-f", sys.executable, "-c", program, "--day", "1", "-o", "json", "--", "--help")

    assert done.stdout == "['--day', '1', '-o', 'json', '--', '--help']\n"


def test_the_runs_environment_comes_from_files_flags_and_the_caller(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "run.env"
    file.write_text('# comment\n\nA=from file\nB="as it is"\nC\n')
    program = "import json, os; print(json.dumps({name: os.environ.get(name) for name in 'ABCDE'}))"
    words = ("launch", "-f", "--env-file", str(file), "-e", "A=from flag", "-e", "D", "-e", "E=a=b c", "--")
    done = cli(*words, sys.executable, "-c", program, C="caller's C", D="caller's D")

    assert json.loads(done.stdout) == {
        "A": "from flag",
        "B": '"as it is"',
        "C": "caller's C",
        "D": "caller's D",
        "E": "a=b c",
    }


def test_an_id_is_launched_once_and_refused_with_another_command(cli: CommandLine) -> None:
    cli.launch("once", "true")
    refused = cli("launch", "--run-id", "once", "--", "false", code=4)
    cli("wait", "once")
    second = json.loads(cli("launch", "--run-id", "once", "--attempt", "1", "-o", "json", "--", "true").stdout)

    assert "differs: its command" in refused.stderr
    assert (second["created"], second["attempt"]) == (True, 1)


def test_a_first_launch_needs_no_set_up_and_writes_below_its_home_only(cli: CommandLine, tmp_path: Path) -> None:
    cli.launch("first", "true")

    assert sorted(path.name for path in cli.home.parent.iterdir()) == ["kept", "temp"]
    assert [*(tmp_path / "work").iterdir(), *(tmp_path / "home").iterdir()] == []


# ---- Ctrl-C ----


def test_ctrl_c_of_a_followed_launch_says_so_and_terminates(cli: CommandLine) -> None:
    process = cli.begin("launch", "--follow", "--run-id", "held", "--", "sh", "-c", "echo up; exec sleep 600")
    read_until(process.stdout, "up")
    worker = psutil.Process(cli.json("status", "held")["handle"]["coordinates"]["pid"])
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"terminating run held" in said
    assert b"0 left" in said
    assert not worker.is_running()
    assert cli.processes() == []
    assert cli.json("status", "held")["reason"] == "terminated"


def test_what_a_worker_prints_while_it_is_terminated_is_shown(cli: CommandLine) -> None:
    program = 'trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.1; done'
    process = cli.begin("launch", "--follow", "--", "sh", "-c", program)
    read_until(process.stdout, "up")
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)

    assert output.endswith(b"bye\n")
    assert process.returncode == 130


def test_a_second_ctrl_c_leaves_the_run_to_end_by_itself(cli: CommandLine, tmp_path: Path) -> None:
    template = tmp_path / "slow.yaml"
    template.write_text('target: process\ngrace: 5s\nenv: {PYTHONUNBUFFERED: "1"}\n')
    process = cli.begin("launch", "-f", "-t", str(template), "--run-id", "slow", "--", sys.executable, "-c", ASKED)
    read_until(process.stdout, "up")
    worker = psutil.Process(cli.json("status", "slow")["handle"]["coordinates"]["pid"])
    os.killpg(process.pid, signal.SIGINT)
    read_until(process.stdout, "asked")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert b"left run slow to end by itself" in said
    assert worker.is_running()
    assert psutil.wait_procs([worker], timeout=30)[1] == []


def test_ctrl_c_in_the_middle_of_a_launch_leaves_nothing_but_the_record(cli: CommandLine) -> None:
    cli("launch", "true")
    process = cli.begin("launch", "--run-id", "cut", "--", *FOREVER)
    until(lambda: list(cli.home.glob("state/records/*/cut.json")))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130, said
    assert not [each for each in cli.processes() if "600" in each.cmdline()]
    assert cli("ps").stdout.count("cut") == 0
    assert cli.json("status", "cut")["state"] == "FAILED"


# ---- which run ----


def test_a_run_is_named_by_id_unique_prefix_or_last(cli: CommandLine) -> None:
    for run_id in ("day-1", "day-10", "night"):
        cli.launch(run_id, "true")

    assert cli.json("status", "day-1")["run_id"] == "day-1"
    assert cli.json("status", "ni")["run_id"] == "night"
    assert cli.json("status", "@last")["run_id"] == "night"
    assert "day-1, day-10" in cli("status", "day", code=2).stderr
    assert "did you mean 'night'?" in cli("status", "nihgt", code=6).stderr


def test_a_stranger_is_not_found(cli: CommandLine) -> None:
    for command in ("status", "logs", "why", "wait", "terminate"):
        assert cli(command, "stranger", code=6).stderr.startswith("run-launcher: no run 'stranger'")
    for name in ("@last", "", "..", "a/b", "a\nb", "../one"):
        assert cli("status", name, code=6).stderr.startswith("run-launcher: no run ")


# ---- looking ----


def test_ps_lists_the_newest_first_and_runs_that_are_gone_only_when_asked(cli: CommandLine) -> None:
    cli.launch("gone", "true")
    cli("terminate", "gone")
    cli.launch("kept", "true")
    cli("wait", "kept")
    cli.launch("live", *FOREVER)

    assert cli("ps", "-o", "name").stdout.split() == ["live", "kept"]
    assert [row.split()[:2] for row in cli("ps", "--all").stdout.splitlines()[1:]] == [
        ["live", "RUNNING"],
        ["kept", "SUCCEEDED"],
        ["gone", "SUCCEEDED"],
    ]
    assert [(each["run_id"], each["removed"]) for each in cli.json("ps", "--all")] == [
        ("live", False),
        ("kept", False),
        ("gone", True),
    ]
    assert [each["state"] for each in yaml.safe_load(cli("ps", "-o", "yaml").stdout)] == ["RUNNING", "SUCCEEDED"]


def test_an_empty_ps_is_a_header_and_nothing_for_programs(cli: CommandLine) -> None:
    assert cli("ps").stdout.split()[0] == "RUN"
    assert cli.json("ps") == []
    assert cli("ps", "-o", "name").stdout == ""
    assert not cli.home.exists()


def test_status_and_logs_answer_for_a_run_that_is_gone(cli: CommandLine) -> None:
    cli.launch("gone", "sh", "-c", "echo said; exit 3")
    cli("wait", "gone", code=10)
    cli("terminate", "gone")

    assert "1 object, 0 left" in cli("status", "gone").stdout
    assert cli("logs", "gone").stdout == "said\n"


def test_logs_are_followed_until_the_worker_ends(cli: CommandLine) -> None:
    cli.launch("talks", "sh", "-c", "echo up; while ! [ -e go ]; do sleep 0.05; done; echo over")
    process = cli.begin("logs", "--follow", "talks")
    read_until(process.stdout, "up")
    Path("go").touch()

    assert process.communicate(timeout=60)[0] == b"over\n"
    assert process.returncode == 0


def test_a_reader_that_goes_away_is_no_error(cli: CommandLine) -> None:
    cli.launch("long", "seq", "1", "200000")
    cli("wait", "long")
    process = cli.begin("logs", "long")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None

    assert process.stderr.read() == b""
    assert process.wait(60) == 141
    process.stderr.close()


def test_wait_tells_how_a_run_ended_or_that_it_goes_on(cli: CommandLine) -> None:
    cli.launch("good", "true")
    cli.launch("bad", "sh", "-c", "exit 3")
    cli.launch("live", *FOREVER)

    assert cli.json("wait", "good")["state"] == "SUCCEEDED"
    assert cli.json("wait", "bad", code=10)["exit_code"] == 3
    assert "goes on" in cli("wait", "live", "--timeout", "100ms", code=9).stderr


def test_why_shows_end_command_folder_and_last_lines(cli: CommandLine) -> None:
    cli.launch("bad", "sh", "-c", "seq 1 30; kill -9 $$")
    cli("wait", "bad", code=10)
    text, data = cli("why", "bad").stdout, cli.json("why", "bad")

    assert "FAILED: ended by SIGKILL" in text
    assert str(Path.cwd()) in text
    assert "| 30" in text
    assert data["last_lines"] == [str(number) for number in range(11, 31)]
    assert data["command"] == ["sh", "-c", "seq 1 30; kill -9 $$"]


def test_looking_loads_no_engine(cli: CommandLine) -> None:
    cli.launch("one", "true")
    program = (
        "import sys\nfrom launchers.cli import main\n"
        "try: main()\nfinally: sys.stderr.write(' '.join(sorted(m.split('.')[0] for m in sys.modules)))"
    )

    def loaded(*words: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=cli.environment, capture_output=True, text=True, check=True
        )
        return set(done.stderr.split())

    engine = {"pulumi", "grpc", "google", "s3fs", "psycopg", "rich"}
    assert not loaded("status", "one") & engine
    assert not loaded("ps") & engine
    assert not loaded("--help") & (engine | {"pydantic", "psutil", "yaml"})
    assert not loaded("--version") & (engine | {"pydantic", "psutil", "yaml", "typer"})


# ---- terminate ----


def test_terminate_ends_several_runs_and_may_be_repeated(cli: CommandLine) -> None:
    cli.launch("one", *FOREVER)
    cli.launch("two", *FOREVER)
    ended = cli.json("terminate", "one", "two", "one")

    assert [(each["run_id"], each["reason"], each["left"], each["done"]) for each in ended] == [
        ("one", "terminated", 0, True),
        ("two", "terminated", 0, True),
    ]
    assert cli.processes() == []
    assert cli("terminate", "one", "-o", "name").stdout == "one\n"


def test_terminate_knows_all_runs_before_it_ends_the_first(cli: CommandLine) -> None:
    cli.launch("one", *FOREVER)
    cli("terminate", "one", "stranger", code=6)

    assert cli.json("status", "one")["state"] == "RUNNING"


def test_terminate_without_waiting_has_the_worker_end(cli: CommandLine) -> None:
    cli.launch("one", *FOREVER)
    worker = psutil.Process(cli.json("status", "one")["handle"]["coordinates"]["pid"])
    ended = cli.json("terminate", "--no-wait", "one")

    assert ended[0]["done"] is False
    assert psutil.wait_procs([worker], timeout=30)[1] == []


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launch", "--run-id", "a b", "--", "true"), "--run-id: 'a b' is no run id"),
        (("launch", "--run-id", "", "--", "true"), "--run-id: '' is no run id"),
        (("launch", "--", ""), "the command: a run needs a command"),
        (("launch", "--", "no-such-command"), "no such command on PATH"),
        (("launch", "--attempt", "1", "--", "true"), "--attempt needs the --run-id"),
        (("launch", "-t", "proces", "--", "true"), "did you mean 'process'?"),
        (("launch", "--tag", "team", "--", "true"), "--tag team: write NAME=VALUE"),
        (("launch", "-e", "NOT_THERE", "--", "true"), "your environment has no NOT_THERE"),
        (("launch", "-e", "=x", "--", "true"), "--env: '' cannot be an environment variable"),
        (("launch", "--timeout", "soon", "--", "true"), "'soon' is no duration"),
        (("launch", "--follow", "-o", "name", "--", "true"), "leave --output away"),
        (("launch", "--exit-code-from-worker", "--", "true"), "needs --follow or --rm"),
        (("wait", "any", "--timeout", "-1s"), "no duration"),
        (("--backend", "ftp://x", "ps"), "ftp"),
    ],
)
def test_a_wrong_call_is_one_clear_line_and_changes_nothing(
    cli: CommandLine, words: tuple[str, ...], said: str
) -> None:
    done = cli(*words, code=2)

    assert done.stdout == ""
    assert done.stderr.startswith("run-launcher: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not NEVER_SAID.search(done.stderr)
    assert not cli.home.exists()


@pytest.mark.parametrize("words", [("launch", "--no-such-option"), ("frob",), ("ps", "-o", "xml"), ("status",)])
def test_what_typer_refuses_is_a_usage_error(cli: CommandLine, words: tuple[str, ...]) -> None:
    assert "Usage: run-launcher" in cli(*words, code=2).stderr


def test_another_key_is_refused_before_any_work(cli: CommandLine) -> None:
    cli.launch("one", "true")
    (key,) = (cli.home / "keys").iterdir()
    own = key.read_text()
    key.write_text("another")
    refused = cli("launch", "--run-id", "two", "--", "true", code=3)
    key.write_text(own)

    assert not NEVER_SAID.search(refused.stderr.replace(key.name, ""))
    assert cli("ps", "--all", "-o", "name").stdout.split() == ["one"]


def test_a_damaged_record_is_named_and_hides_no_other_run(cli: CommandLine) -> None:
    cli.launch("one", "true")
    cli.launch("two", "true")
    (record,) = cli.home.glob("state/records/*/one.json")
    content = record.read_text()
    record.write_text("{")
    asked, listed = cli("status", "one", code=4), cli("ps", "-o", "name")
    record.write_text(content)

    assert "one.json is damaged" in asked.stderr
    assert (listed.stdout.split(), "one.json is damaged" in listed.stderr) == (["two"], True)


def test_an_unexpected_error_is_one_line_and_its_origin_is_told_on_request(cli: CommandLine) -> None:
    cli.launch("one", "true")
    (record,) = cli.home.glob("state/records/*/one.json")
    content = record.read_text()
    record.unlink()
    record.mkdir()  # nobody expects a folder there
    short, long = cli("status", "one", code=1).stderr, cli("status", "one", "-v", code=1).stderr
    record.rmdir()
    record.write_text(content)

    assert short.count("\n") == 1
    assert "-v shows" in short
    assert "Traceback" in long


# ---- this machine ----


def test_version_and_help_answer(cli: CommandLine) -> None:
    assert re.fullmatch(r"run-launcher \d+\.\d+\.\d+\n", cli("--version").stdout)
    assert cli("-v", "--version").stdout == cli("--version").stdout
    assert "terminate" in cli("--help").stdout
    assert "--exit-code-from-worker" in cli("launch", "--help").stdout


def test_config_shows_each_value_and_its_origin(cli: CommandLine) -> None:
    Path("run-launcher.yaml").write_text("launch: {timeout: 2m}\n")
    settings = {each["key"]: each for each in cli.json("config", "--show-origin")}
    rows = cli("config", "--show-origin").stdout.splitlines()

    assert settings["home"] == {
        "key": "home",
        "value": str(cli.home),
        "origin": "environment RUN_LAUNCHER_HOME",
    }
    assert "run-launcher.yaml:1" in settings["launch.timeout"]["origin"]
    assert rows[0].split() == ["SETTING", "VALUE", "ORIGIN"]
    assert yaml.safe_load(cli("config", "-o", "yaml").stdout)["launch.timeout"] == "120s"
    assert cli.json("--home", "elsewhere", "config")["home"] == str(Path.cwd() / "elsewhere")


def test_doctor_tells_what_is_used_and_names_ignored_variables_without_their_values(cli: CommandLine) -> None:
    cli.launch("one", "true")
    done = cli("doctor", PULUMI_HOME="/not/to/be/shown")
    data = cli.json("doctor")
    findings = {each["name"]: each for each in data["findings"]}

    assert data["ok"] is True
    assert {"engine", "tools", "home", "backend", "key", "template", "place", "free disk"} <= findings.keys()
    assert str(cli.home) in findings["key"]["value"]
    assert "PULUMI_HOME" in done.stdout
    assert "/not/to/be/shown" not in done.stdout
    assert "nothing is broken" in done.stdout


def test_doctor_finds_what_hides_our_packages_and_what_is_wrong_in_the_configuration(cli: CommandLine) -> None:
    Path("stacks").mkdir()
    Path("stacks/__init__.py").touch()
    Path("programs").mkdir()  # without a module in it, it hides nothing
    hidden = cli("doctor", code=1).stdout
    Path("run-launcher.yaml").write_text("lunch: {timeout: 2m}\n")
    wrong = cli.json("doctor", code=1)
    Path("run-launcher.yaml").unlink()

    assert "hides run-launcher's package 'stacks'" in hidden
    assert "'programs'" not in hidden
    assert [each["name"] for each in wrong["findings"] if each["level"] == "broken"] == [
        "configuration",
        "hidden package",
    ]


@pytest.mark.parametrize("kind", ["warm", "cli", "auto"])
def test_doctor_and_setup_tell_which_engine_is_used_and_why(
    request: pytest.FixtureRequest, cli: CommandLine, kind: str
) -> None:
    used = take_engine(request, "warm" if kind == "auto" else kind)
    why = "it is there" if kind == "auto" else "as configured"
    setup = cli.json("setup", RUN_LAUNCHER_ENGINE__KIND=kind)
    findings = {each["name"]: each["value"] for each in cli.json("doctor", RUN_LAUNCHER_ENGINE__KIND=kind)["findings"]}

    assert (setup["kind"], setup["why"]) == (used, why)
    assert findings["engine"].startswith(f"{used}, /")
    assert findings["engine"].endswith(f"({why})")


def test_setup_tells_where_the_command_line_is(cli: CommandLine) -> None:
    data = cli.json("setup")

    assert Path(data["path"]).name == "pulumi"
    assert data["origin"] in {"path", "installed", "built"}
    assert data["version"] in cli("setup").stdout


def test_setup_path_holds_all_that_a_pulumi_run_by_hand_needs(cli: CommandLine) -> None:
    (path,) = cli("setup", "--path").stdout.splitlines()

    needed = ("pulumi", "pulumi-language-python", "pulumi-resource-runworker")
    assert all(shutil.which(name, path=path) for name in needed)


def test_the_demo_shows_a_whole_life_and_leaves_nothing(cli: CommandLine) -> None:
    done = cli("demo")
    told = [
        "engine ready",
        "launched as a process (pid ",
        'handle: {"v":1',
        "status: RUNNING",
        "| step 1 of 3",
        "| step 3 of 3",
        "SUCCEEDED after",
        "0 left",
        "left: nothing",
        "Next: run-launcher launch --follow -- python your_script.py",
    ]
    places = [done.stdout.index(each) for each in told]

    assert places == sorted(places)
    assert not cli.home.exists()
