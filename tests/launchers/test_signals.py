"""Ctrl-C, SIGTERM and SIGHUP on each command, at several moments, and what the kernel and the state show afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import pytest
import yaml
from command_line import FOREVER, SCRIPT, CommandLine, read_until, until

STUBBORN = ("sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.1; done')
TOLD = 'trap "echo asked" TERM; while :; do sleep 0.1; done'
ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def cli(cli: CommandLine) -> CommandLine:
    """The command line with the engine whose operations last long enough to be met in the middle."""
    cli.environment["RUN_LAUNCHER_ENGINE__KIND"] = "cli"
    return cli


@pytest.fixture
def patient(tmp_path: Path) -> str:
    """A template whose grace no test could wait for."""
    template = tmp_path / "patient.yaml"
    template.write_text("target: process\ngrace: 10m\n")
    return str(template)


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
    """Signal the command's group; returns its exit code and what it said, long before any patient grace is over."""
    os.killpg(process.pid, number)
    output, said = process.communicate(timeout=120)
    return process.returncode, (output or b"").decode(), (said or b"").decode()


# ---- launch ----


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize(
    "moment", ["state/claims/*/cut", "state/records/*/cut.json", "state/claims/*/cut~cli", "work/*/events"]
)
def test_an_interrupted_launch_leaves_nothing_but_its_record(
    cli: CommandLine, moment: str, number: signal.Signals
) -> None:
    cli("launch", "--run-id", "first", "--", "true")
    process = cli.begin("launch", "--run-id", "cut", "--", *FOREVER)
    until(lambda: list(cli.home.glob(moment)))
    code, _, said = interrupt(process, number)

    assert (code, "Traceback" in said) == (128 + number, False), said
    assert not [each for each in cli.processes() if "600" in each.cmdline()]
    if moment.endswith("/cut"):  # while a claim is taken, its file or lease may stay, held by nobody
        cli("reconcile")
    assert cli.locks() == []
    assert "cut" not in cli("ps").stdout
    assert not list(cli.home.glob("state/.pulumi/stacks/*/cut.json"))
    assert not list(cli.home.glob("runs/*/cut"))


_RECORDED: Final = """
import signal
from launchers.cli import main
from stacks.records import Records
written = Records.write_first

def interrupted(self, *words):
    written(self, *words)
    signal.raise_signal(signal.SIGINT)

Records.write_first = interrupted
main()
"""


def test_a_launch_that_is_interrupted_while_its_record_is_written_takes_it_back(cli: CommandLine) -> None:
    words = ("launch", "--run-id", "cut", "--", *FOREVER)
    done = subprocess.run(
        [sys.executable, "-c", _RECORDED, *words], env=cli.environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 130, done.stderr
    assert cli.json("status", "cut")["state"] == "FAILED"
    assert cli.locks() == []


def test_an_interrupt_before_anything_is_begun_leaves_nothing(cli: CommandLine) -> None:
    process = cli.begin("launch", "--run-id", "cut", "--", *FOREVER)
    until(lambda: signal.SIGTERM in caught(process.pid))
    code, output, said = interrupt(process, signal.SIGTERM)

    assert (code, output) == (143, "")
    assert "Traceback" not in said
    assert cli("ps", "-o", "name").stdout == ""


def caught(pid: int) -> set[int]:
    """The signals that a process has handlers for, as the kernel shows them."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_a_second_interrupt_of_a_launch_leaves_the_rest_to_the_next_command(cli: CommandLine) -> None:
    cli("launch", "--run-id", "first", "--", "true")
    process = cli.begin("launch", "--run-id", "cut", "--", *FOREVER)
    until(lambda: list(cli.home.glob("state/claims/*/cut~cli")))
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)

    assert process.returncode in {130, 143}
    assert b"Traceback" not in said
    cli("terminate", "cut")
    assert cli.locks() == []
    assert not [each for each in cli.processes() if "600" in each.cmdline()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_followed_launch_terminates_its_run_when_it_is_asked_to_leave(
    cli: CommandLine, number: signal.Signals
) -> None:
    process = cli.begin("launch", "--follow", "--run-id", "held", "--", "sh", "-c", "echo up; exec sleep 600")
    read_until(process.stdout, "up")
    worker = cli.worker("held")
    code, _, said = interrupt(process, number)

    assert code == 128 + number
    assert "terminating run held" in said
    assert not worker.is_running()
    assert cli.locks() == []
    assert cli.json("status", "held")["removed"] is True


def test_a_followed_launch_whose_terminal_is_closed_terminates_its_run(cli: CommandLine) -> None:
    ours, theirs = pty.openpty()
    process = cli.begin("launch", "-f", "--run-id", "held", "--", "sh", "-c", "echo up; exec sleep 600",
                        stdin=theirs, stdout=theirs, stderr=theirs)  # fmt: skip
    os.close(theirs)
    said = b""
    while b"up" not in said:
        said += os.read(ours, 65536)
    worker = cli.worker("held")
    os.close(ours)  # from here on every write of the command fails
    os.killpg(process.pid, signal.SIGHUP)  # what the kernel sends to a session's foreground

    assert process.wait(120) == 129
    assert not worker.is_running()
    assert cli.json("status", "held")["removed"] is True


def test_a_signal_that_the_caller_ignores_stays_ignored(cli: CommandLine) -> None:
    script = "echo up; while ! [ -e go ]; do sleep 0.05; done"
    process = cli.begin("launch", "-f", "--", "sh", "-c", script, ignored=signal.SIGHUP)
    read_until(process.stdout, "up")
    os.killpg(process.pid, signal.SIGHUP)
    Path("go").touch()

    assert process.communicate(timeout=120)[0] == b""
    assert process.returncode == 0


def test_an_interrupt_while_an_ended_run_is_removed_says_what_is_left(cli: CommandLine) -> None:
    script = "echo up; while ! [ -e go ]; do sleep 0.05; done"
    process = cli.begin("launch", "--rm", "-f", "--run-id", "brief", "--", "sh", "-c", script)
    read_until(process.stdout, "up")
    claim = next(cli.home.glob("state/claims")) / "29" / "brief"
    claim.parent.mkdir(exist_ok=True)
    with claim.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another command on this run would: the removal waits for it
        Path("go").touch()
        read_until(process.stderr, "SUCCEEDED")
        code, _, said = interrupt(process)
    claim.unlink()

    assert code == 130
    assert "run-launcher terminate brief" in said
    cli("terminate", "brief")
    assert cli.locks() == []


# ---- looking ----


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize("words", [("wait", "live"), ("wait", "--tag", "x"), ("logs", "-f", "live"),
                                   ("logs", "-f", "live", "other")])  # fmt: skip
def test_who_looks_leaves_and_the_run_goes_on(cli: CommandLine, words: tuple[str, ...], number: signal.Signals) -> None:
    for run_id in {"live", words[-1]} - {"x"}:
        cli("launch", "--run-id", run_id, "--tag", "x=1", "--", "sh", "-c", "echo up; exec sleep 600")
    worker = cli.worker("live")
    process = cli.begin(*words)
    for _ in words[2:] if words[0] == "logs" else ():
        read_until(process.stdout, "up")
    if words[0] == "wait":
        until(lambda: signal.SIGTERM in caught(process.pid))
    code, output, said = interrupt(process, number)

    assert (code, output, said) == (128 + number, "", "")
    assert worker.is_running()


DROPPED = """
import importlib, os, signal, sys, time, weakref
from launchers.commands.interrupts import Interrupted, listen, noticed

class Thing:
    pass

listen()
try:
    with noticed():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT) or time.sleep(0.1))
        del thing  # as importlib's own callbacks do, this one drops what is raised in it
        print("went on", flush=True)
        time.sleep(60)
except Interrupted as interrupted:
    sys.exit(0 if not interrupted.repeated else 3)
"""


def test_an_interrupt_that_hits_a_callback_of_the_interpreter_is_raised_again() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, check=False, timeout=30)

    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


# ---- terminate ----


@pytest.mark.parametrize("number", ASKING)
def test_an_interrupted_terminate_leaves_at_once_and_the_run_goes_on_ending(
    cli: CommandLine, patient: str, number: signal.Signals
) -> None:
    cli("launch", "-t", patient, "--run-id", "stubborn", "--", *STUBBORN)
    worker = cli.worker("stubborn")
    process = cli.begin("terminate", "stubborn")
    until(lambda: list(cli.home.glob("state/wishes/*/stubborn.json")))
    code, output, said = interrupt(process, number)

    assert (code, output) == (128 + number, "")
    assert said == (
        "run stubborn is asked to end, and ends by itself\n  run-launcher terminate stubborn   removes what is left\n"
    )
    assert worker.is_running()
    assert cli.locks() == []
    worker.kill()
    assert [each["left"] for each in cli.json("terminate", "stubborn")] == [0]


def test_a_terminate_that_is_interrupted_while_it_removes_is_finished_by_the_next(cli: CommandLine) -> None:
    cli.launch("one", *FOREVER)
    process = cli.begin("terminate", "one")
    until(lambda: list(cli.home.glob("state/claims/*/one~cli")))
    code, _, said = interrupt(process)

    assert (code, "Traceback" in said) == (130, False)
    assert "run-launcher terminate one" in said
    assert cli.processes() == []
    assert [(each["reason"], each["left"]) for each in cli.json("terminate", "one")] == [("terminated", 0)]
    assert cli.locks() == []


def test_an_interrupted_terminate_of_several_has_asked_all_of_them(cli: CommandLine, patient: str) -> None:
    for run_id in ("a", "b"):
        cli("launch", "-t", patient, "--run-id", run_id, "--", "sh", "-c", TOLD)
    workers = [cli.worker("a"), cli.worker("b")]
    process = cli.begin("terminate", "a", "b")
    until(lambda: len(list(cli.home.glob("state/wishes/*/*.json"))) == 2)
    code, _, said = interrupt(process, signal.SIGTERM)

    assert code == 143
    assert "run-launcher terminate a b" in said
    until(lambda: all("asked" in cli("logs", run_id).stdout for run_id in ("a", "b")))
    assert [worker.is_running() for worker in workers] == [True, True]
    for worker in workers:
        worker.kill()
    assert [each["reason"] for each in cli.json("terminate", "a", "b")] == ["terminated", "terminated"]


def test_the_stack_of_a_worker_in_its_grace_is_held_by_nobody(cli: CommandLine, patient: str) -> None:
    cli("launch", "-t", patient, "--run-id", "stubborn", "--", *STUBBORN)
    worker = cli.worker("stubborn")
    process = cli.begin("terminate", "stubborn")
    until(lambda: list(cli.home.glob("state/wishes/*/stubborn.json")))
    names = []
    for each in cli.processes():
        with suppress(psutil.NoSuchProcess):
            names.append(each.name())

    assert (cli.locks(), {"pulumi", "run-launcher-engine"} & {*names}) == ([], set())
    worker.kill()
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 0
    assert cli.processes() == []


# ---- stdout ----


def test_a_followed_launch_whose_reader_goes_away_leaves_its_run_and_says_so(cli: CommandLine) -> None:
    process = cli.begin("launch", "-f", "--run-id", "read", "--", "sh", "-c", "while echo y; do sleep 0.05; done")
    read_until(process.stdout, "y")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    process.stderr.close()

    assert process.wait(60) == 141
    assert "left run read running\n  run-launcher terminate read" in said
    assert cli.json("status", "read")["state"] == "RUNNING"


@pytest.mark.parametrize("words", [("ps",), ("logs", "one"), ("status", "one", "-o", "json"), ("config",), ("doctor",)])
def test_a_full_or_closed_stdout_is_told_in_a_line(cli: CommandLine, words: tuple[str, ...]) -> None:
    cli.launch("one", "echo", "word")
    with Path("/dev/full").open("wb") as full:
        process = cli.begin(*words, stdout=full.fileno())
        said = process.communicate(timeout=60)[1].decode()
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- >&-', str(SCRIPT), *words],
        env=cli.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert process.returncode == 1
    assert "cannot write to standard output: No space left on device" in said
    assert "Traceback" not in said
    assert "Exception" not in said
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_locale_without_unicode_gets_codes_and_yaml_that_is_read_back(cli: CommandLine) -> None:
    cli("launch", "--run-id", "one", "--tag", "stadt=Köln", "--", "printf", "ö 5")
    cli.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    assert yaml.safe_load(cli("status", "one", "-o", "yaml").stdout)["tags"] == {"stadt": "Köln"}
    assert cli("ps", "--tag", "stadt").stdout.splitlines()[1].startswith("one")
    assert r"stadt=K\xf6ln" in cli("status", "one").stdout
    assert cli("logs", "one").stdout == "ö 5"


@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_no_colour_at_all(cli: CommandLine, colour: dict[str, str]) -> None:
    cli.launch("one", "true")
    cli.environment |= {"TERM": "xterm-256color", **colour}
    for words in (("ps",), ("status", "one"), ("why", "stranger"), ("--help",), ("launch", "--no-such-option")):
        ours, theirs = pty.openpty()
        process = cli.begin(*words, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        process.wait(60)

        assert shown
        assert b"\x1b" not in shown


# ---- where a signal may hit ----

HIT = """
import os, signal
from pydantic import BaseModel, field_serializer
from launchers.commands.interrupts import Interrupted, listen, noticed
class Value(BaseModel):
    word: str
    @field_serializer("word")
    def hit(self, word: str) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return word
listen()
try:
    with noticed():
        Value(word="x").model_dump_json()
except Interrupted as interrupted:
    print(interrupted.exit_code, interrupted.repeated)
"""


def test_a_signal_that_a_library_takes_for_an_error_of_its_own_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", HIT], capture_output=True, text=True, check=True)

    assert done.stdout == "143 False\n"
