"""What is unusual, and valid: it just works, and leaves nothing either."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from arranged import FOUR_MB, Arrange, as_stranger, file, kept, launched, limited, settings, variables, without
from other_user import CANNOT
from shell import Shell

from stacks.setup import tools_folder

SAYS_OK: Final = ("sh", "-c", "echo ok")


@dataclass(frozen=True)
class Odd:
    """One odd situation: how it is arranged, what is launched, and a pattern of what the worker must print."""

    arrange: tuple[Arrange, ...] = ()
    command: tuple[str, ...] = SAYS_OK
    flags: tuple[str, ...] = ("--run-id", "r")
    prints: str = "ok\n"
    run_id: str = "r"
    needs: str = ""


def home(name: str) -> Arrange:
    def arrange(shell: Shell) -> None:
        shell.home = shell.root / name
        shell.environment["RUN_LAUNCHER_HOME"] = str(shell.home)

    return arrange


def works_in(path: str) -> Arrange:
    def arrange(shell: Shell) -> None:
        shell.cwd = Path(path)

    return arrange


def temp(name: str, mode: int | None = None) -> Arrange:
    def arrange(shell: Shell) -> None:
        place = shell.root / name
        if mode is not None:
            place.mkdir(parents=True)
            place.chmod(mode)
        shell.environment["TMPDIR"] = str(place)

    return arrange


def bare(shell: Shell) -> None:
    """Nothing in the environment but what says where things are kept."""
    shell.environment = {
        name: value for name, value in shell.environment.items() if name.startswith(("RUN_LAUNCHER_", "SHELL_"))
    }


ANOTHER_JOB: Final = {
    "PULUMI_BACKEND_URL": "https://api.example.invalid",
    "PULUMI_ACCESS_TOKEN": "pul-0000",
    "PULUMI_CONFIG_PASSPHRASE": "another",
    "PULUMI_CONFIG_PASSPHRASE_FILE": "/nowhere",
    "PULUMI_HOME": "/nowhere",
    "PULUMI_STACK": "another",
    "PULUMI_PARALLEL": "none",
    "PULUMI_DEBUG_PROVIDERS": "runworker:1",
    "PULUMI_IGNORE_AMBIENT_PLUGINS": "true",
    "PULUMI_EXPERIMENTAL": "1",
}
TABLE: Final = {
    "folders with the names of ours": Odd(
        tuple(file(f"{name}/__init__.py", "raise SystemExit(9)") for name in ("launchers", "programs", "stacks"))
    ),
    "modules with the names of others": Odd(
        tuple(file(f"{name}.py", "raise SystemExit(9)") for name in ("pulumi", "grpc", "json", "typing", "yaml"))
    ),
    "the variables of another Pulumi job": Odd(
        (variables(**ANOTHER_JOB),), ("sh", "-c", "env | grep -c PULUMI_ || echo ok"), prints="0\nok\n"
    ),
    "a Pulumi project of another job": Odd(
        (file("Pulumi.yaml", "name: another\nruntime: nodejs\n"), file("Pulumi.dev.yaml", "config: {a: b}\n"))
    ),
    "a user without a passwd entry and without HOME": Odd(
        (without("HOME"), variables(RUN_LAUNCHER_TOOLS=str(tools_folder())), as_stranger), needs=CANNOT
    ),
    "an empty environment": Odd((bare,), ("/bin/sh", "-c", "echo ok")),
    "no folder for temporary files": Odd((temp("gone"),)),
    "a closed folder for temporary files": Odd((temp("closed", 0o500), as_stranger), needs=CANNOT),
    "a long name of the folder for temporary files": Odd((temp("/".join(["t" * 100] * 3), 0o700),)),
    "a home with blanks and letters of all kinds": Odd((home("my räuns ✓ $HOME 'q' \"d\" & *;\\"),)),
    "a home with a newline would be refused, one with a comma not": Odd((home("a,b=c:d"),)),
    "a home with a long name": Odd((home("/".join(["h" * 200] * 4)),)),
    "a home that is a link": Odd((lambda shell: shell.home.symlink_to(shell.user),)),
    "a home that is the working folder": Odd((home("work"),)),
    "the root as working folder": Odd((works_in("/"),)),
    "a closed stdin": Odd((limited("exec <&-"),)),
    "a closed stdin and stderr": Odd((limited("exec <&- 2>&-"),)),
    "the locale C": Odd((variables(LC_ALL="C", LANG="C"),), ("printf", "%s\\n", "zähler ✓"), prints="zähler ✓\n"),
    "a mask that hides nothing": Odd((limited("umask 000"),)),
    "a mask that hides much from others": Odd((limited("umask 777"),)),
    "few open files": Odd((limited("ulimit -n 64"),)),
    "a small stack": Odd((limited("ulimit -s 512"),)),
    "no core files and a low priority": Odd((limited("ulimit -c 0; renice -n 19 $$ >/dev/null"),)),
    "ignored signals": Odd((limited("trap '' INT TERM HUP PIPE CHLD"),)),
    "a script without a first line": Odd((file("job.sh", "echo ok\n", 0o755),), ("./job.sh",)),
    "an id like an option": Odd(flags=("--run-id=-rf",), run_id="-rf"),
    "an id like a file of ours": Odd(flags=("--run-id=r.json",), run_id="r.json"),
    "an id like an attempt": Odd(flags=("--run-id=r.1",), run_id="r.1"),
    "an id that begins with a dot": Odd(flags=("--run-id=.r",), run_id=".r"),
    "an id of 100 characters": Odd(flags=(f"--run-id={'x' * 100}",), run_id="x" * 100),
    "a template with marks of another system": Odd(
        (file("t.yaml", "\ufefftarget: process\r\ngrace: 1s\r\n"),), flags=("--run-id", "r", "-t", "./t.yaml")
    ),
    "settings that say nothing": Odd((settings("# nothing\n"),)),
    "variables that say nothing": Odd(
        (variables(RUN_LAUNCHER_LAUNCH__TIMEOUT="", RUN_LAUNCHER_TEMPLATES__DEFAULT=""),)
    ),
    "output that is no text": Odd(command=("printf", r"\303\050 ok\n"), prints="\\xc3( ok\n"),
    "a state that was cut short, with the engine's own backup": Odd(
        (launched("s"), kept("state/.pulumi/stacks/*/s.json", '{"version":3,"checkpoint":{"st'))
    ),
}


@pytest.fixture
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="rl-odd-") as name:
        shell = Shell(Path(name))
        yield shell
        shell.put_right()
        assert shell.close() == []


@pytest.mark.parametrize("name", TABLE)
def test_what_is_odd_but_valid_just_works_and_leaves_nothing(name: str, shell: Shell) -> None:
    row = TABLE[name]
    if row.needs:
        pytest.skip(row.needs)
    for arrange in row.arrange:
        arrange(shell)
    before = shell.files()

    done = shell.call("launch", "--follow", *row.flags, "--", *row.command)
    again = shell.call("status", "-o", "name", "--", row.run_id)
    ended = shell.call("terminate", "-o", "name", "--", row.run_id)

    assert (done.returncode, again.returncode, ended.returncode) == (0, 0, 0), (done, again, ended)
    assert done.stdout == row.prints
    assert (again.stdout, ended.stdout) == (f"{row.run_id}\n", f"{row.run_id}\n")
    assert list(shell.processes()) == []
    real = shell.home.resolve().relative_to(shell.root.resolve())
    known = tuple(f"{real / each}/" for each in ("state", "keys", "logs"))
    new = [path for path, (mode, _) in shell.files().items() if path not in before and not stat.S_ISDIR(mode)]
    assert [path for path in new if not path.startswith(known)] == []
    locks = [path for path in shell.home.rglob("*") if path.is_file() and {"locks", "claims", "leases"} & {*path.parts}]
    assert locks == []
    ours = [path for path in shell.home.rglob("*") if path.is_file() and ".pulumi" not in path.parts]
    assert [path for path in ours if path.stat().st_mode & 0o077] == []
    assert shell.home.stat().st_mode & 0o077 == 0 or str(real) in before


def test_a_command_of_four_megabytes_arrives_where_the_system_lets_it(shell: Shell) -> None:
    limited(f"ulimit -s unlimited; {FOUR_MB}")(shell)
    done = shell.call("launch", "--rm", "--follow", "--run-id", "r", "--", "sh", "-c", 'echo "$#"', "sh")

    assert (done.stdout, done.returncode) == ("40\n", 0), done.stderr
