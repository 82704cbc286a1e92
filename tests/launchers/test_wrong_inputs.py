"""What a person, a script or a machine gets wrong: one clear message, the documented exit code, nothing left."""

from __future__ import annotations

import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest
from arranged import (
    ROOT_ONLY,
    Arrange,
    as_stranger,
    file,
    filled,
    folder,
    home_at,
    kept,
    launched,
    limited,
    remounted_read_only,
    settings,
    variables,
    void,
    wished_nothing,
    without,
)
from other_user import CANNOT
from shell import FOREVER, Shell

RECORD: Final = (
    "kept/state/records/", "kept/state/templates/", "kept/state/names/", "kept/state/backend.json",
    "kept/state/salt.json", "kept/state/.pulumi/meta.yaml", "kept/keys/",
)  # fmt: skip
"""What a launch that failed may leave: its record, and what belongs to the backend."""
STAYS: Final = ("kept/state/wishes", "kept/state/.pulumi/history", "kept/logs")
"""What a termination may leave that could not be carried out: the run itself, and the wish."""
_JARGON: Final = re.compile(r"\bstacks?\b|\burn\b|passphrase|checkpoint|Traceback|pydantic", re.IGNORECASE)


@dataclass(frozen=True)
class Wrong:
    """One wrong input: what is called, how it exits, and a pattern of what it must say, the way out included.

    `leaves` are the beginnings of the names that it may leave; `lines` is how long the message may be.
    """

    words: tuple[str, ...]
    code: int
    says: str
    arrange: tuple[Arrange, ...] = ()
    leaves: tuple[str, ...] = ()
    lines: int = 1
    needs: str = ""
    about_key: bool = False


LAUNCH: Final = ("launch", "--run-id", "r", "--", "true")
TEMPLATE: Final = ("launch", "--run-id", "r", "-t", "./t.yaml", "--", "true")


def template(text: str | bytes) -> tuple[Arrange, ...]:
    return (file("t.yaml", text),)


def cli(text: str, mode: int = 0o755) -> tuple[Arrange, ...]:
    return (file("bin/pulumi", text, mode), settings("engine: {cli: bin/pulumi}\n"))


def says_version(version: str) -> tuple[Arrange, ...]:
    return cli(f"#!/bin/sh\necho v{version}\n")


COMMANDS: Final = {
    "no command": Wrong(("launch",), 2, "a command is missing.*--like RUN"),
    "only the dashes of a command": Wrong(("launch", "--"), 2, "a command is missing.*--like RUN"),
    "an empty command": Wrong(("launch", "--", ""), 2, "needs a command"),
    "a command that is not there": Wrong(("launch", "--", "pyhton3"), 2, "no such command on PATH"),
    "a path that is not there": Wrong(("launch", "--", "./etl.sh"), 2, "no such file.*working folder"),
    "a folder as command": Wrong(("launch", "--", "./etl"), 2, "is a folder", (folder("etl"),)),
    "a file that may not be executed": Wrong(
        ("launch", "--", "./etl.sh"), 2, r"chmod \+x", (file("etl.sh", "#!/bin/sh\n"),)
    ),
    "a script whose interpreter is missing": Wrong(
        ("launch", "--run-id", "r", "--", "./etl.sh"),
        4,
        "did not start.*first line",
        (file("etl.sh", "#!/no/python\n", 0o755),),
        RECORD,
        lines=2,
    ),
    "a command that is no text": Wrong(("launch", "--", "echo", "a\udcff"), 2, "the command: .*not UTF-8.*in a file"),
    "a tag that is no text": Wrong(("launch", "--tag", "a=\udcff", "--", "true"), 2, "--tag: .*not UTF-8"),
    "a working folder whose name is no text": Wrong(
        ("launch", "--", "true"), 2, "not UTF-8.*another", (limited("cd \"$(printf 'f\\377')\""), folder("f\udcff"))
    ),
    "a home whose name is no text": Wrong(("--home", "h\udcff", "launch", "--", "true"), 2, "choose another"),
    "a variable of 4 MB": Wrong(
        ("launch", "--env-file", "e", "--", "true"), 2, "too long.*in a file", (file("e", "A=" + "x" * 4_000_000),)
    ),
    "a NUL in a variable": Wrong(
        ("launch", "--env-file", "e", "--", "true"), 2, "--env.*'A' cannot be", (file("e", "A=a\0b\n"),)
    ),
    "a variable file that is binary": Wrong(
        ("launch", "--env-file", "e", "--", "true"), 2, "e: it is not UTF-8", (file("e", b"\xff\xfe\0A"),)
    ),
    "a variable file that is not there": Wrong(
        ("launch", "--env-file", "e", "--", "true"), 2, "'e' does not exist", lines=4
    ),
    "a variable file that is a folder": Wrong(
        ("launch", "--env-file", "e", "--", "true"), 2, "'e' is a directory", (folder("e"),), lines=4
    ),
    "a variable that is not set": Wrong(("launch", "-e", "NOWHERE", "--", "true"), 2, "NOWHERE=VALUE"),
    "a variable without a name": Wrong(("launch", "-e", "=x", "--", "true"), 2, "'' cannot be an environment variable"),
    "a tag without a value": Wrong(("launch", "--tag", "team", "--", "true"), 2, "write NAME=VALUE"),
    "a working folder that was removed": Wrong(
        ("launch", "--", "true"),
        2,
        "working folder.*removed.*cd",
        (limited('mkdir gone; cd gone; rmdir "$PWD"'),),
    ),
}
IDS: Final = {
    f"the id {shown}": Wrong(("launch", "--run-id", run_id, "--", "true"), 2, "no run id: it takes 1 to 100 of")
    for shown, run_id in {
        "with a slash": "a/b",
        "that is empty": "",
        "of dots": "..",
        "of 101 characters": "x" * 101,
        "with a blank": "a b",
        "with a newline": "a\n",
        "in another alphabet": "zähler",
        "that leads out of its folder": "../../etc",
    }.items()
} | {
    "an attempt below zero": Wrong(
        ("launch", "--run-id", "r", "--attempt", "-1", "--", "true"), 2, "Invalid value for '--attempt'", lines=4
    ),
    "an attempt that is no number": Wrong(
        ("launch", "--run-id", "r", "--attempt", "one", "--", "true"), 2, "Invalid value for '--attempt'", lines=4
    ),
    "an attempt beyond all": Wrong(
        ("launch", "--run-id", "r", "--attempt", "1000000", "--", "true"), 2, "--attempt: .*less than 1000000"
    ),
    "an attempt of no run": Wrong(("launch", "--attempt", "1", "--", "true"), 2, "--attempt needs the --run-id"),
    "an attempt too far": Wrong(
        ("launch", "--run-id", "r", "--attempt", "2", "--", "true"), 4, "the next one is 1", (launched("r"),)
    ),
    "an attempt that is over": Wrong(
        (*LAUNCH[:3], "--attempt", "0", "--", "true"),
        4,
        "at attempt 1 already",
        (launched("r", then="wait"), lambda shell: void(shell.does(*LAUNCH[:3], "--attempt", "1", "--", "true"))),
    ),
    "the next attempt of a run that lives": Wrong(
        ("launch", "--run-id", "r", "--attempt", "1", "--", "true"),
        4,
        "terminate it first",
        (launched("r", *FOREVER),),
    ),
    "an id that another command has": Wrong(LAUNCH, 4, "differs: its command.*another id", (launched("r", "false"),)),
    "an id that another environment has": Wrong(
        ("launch", "--run-id", "r", "-e", "A=1", "--", "true"),
        4,
        "differs: its environment.*another id",
        (launched("r"),),
    ),
    "the id of a run that was terminated": Wrong(
        ("launch", "--run-id", "r", "--", *FOREVER),
        4,
        "as attempt 1, or under another id",
        (launched("r", *FOREVER, then="terminate"),),
    ),
}
OPTIONS: Final = {
    "a time limit that is no duration": Wrong((*LAUNCH[:3], "--timeout", "soon", "--", "true"), 2, "like 30s"),
    "a time limit of nothing": Wrong((*LAUNCH[:3], "--timeout", "0s", "--", "true"), 2, "longer than 0s"),
    "a time limit below zero": Wrong((*LAUNCH[:3], "--timeout", "-5s", "--", "true"), 2, "like 30s"),
    "a time limit that no launch can keep": Wrong(
        (*LAUNCH[:3], "--timeout", "1ms", "--", "true"), 9, "not launched within 0.001 s", (), RECORD, lines=2
    ),
    "a wait that is no duration": Wrong(("wait", "r", "--timeout", "1 hour"), 2, "--timeout: .*like 30s"),
    "an option that does not exist": Wrong(("launch", "--folow", "--", "true"), 2, "No such option.*--follow", lines=4),
    "a command that does not exist": Wrong(("lanch",), 2, "No such command 'lanch'.*launch", lines=4),
    "a shape that does not exist": Wrong(("ps", "-o", "xml"), 2, "'xml' is not one of", lines=4),
    "an output beside the worker's own": Wrong(("launch", "-f", "-o", "json", "--", "true"), 2, "leave --output away"),
    "an exit code that nobody waits for": Wrong(
        ("launch", "--exit-code-from-worker", "--", "true"), 2, "needs --follow or --rm"
    ),
    "no run": Wrong(("status",), 2, "Missing argument 'RUN'", lines=4),
    "a run that nobody knows": Wrong(("status", "nightly"), 6, "no run 'nightly'.*ps --all"),
    "a run that is nearly known": Wrong(("why", "nihgtly"), 6, "did you mean 'nightly'", (launched("nightly"),)),
    "a prefix of several runs": Wrong(
        ("terminate", "day"), 2, "any of 2 runs: day-1, day-2", (launched("day-1"), launched("day-2"))
    ),
    "the end of a run that nobody knows": Wrong(("terminate", "nightly"), 6, "no run 'nightly'"),
    "a wait for a run that nobody knows": Wrong(("wait", "nightly"), 6, "no run 'nightly'"),
    "output of a run that nobody knows": Wrong(("logs", "a/b"), 6, "no run 'a/b'"),
    "the last of no runs": Wrong(("status", "@last"), 6, "no run was launched here yet"),
}
TEMPLATES: Final = {
    "a template that is nearly known": Wrong(("launch", "-t", "proces", "--", "true"), 2, "did you mean 'process'"),
    "a template file that is not there": Wrong(
        ("launch", "-t", "t/smal.yaml", "--", "true"),
        2,
        "did you mean t/small.yaml",
        (file("t/small.yaml", "target: process\n"),),
    ),
    "a template that is a folder": Wrong(TEMPLATE, 2, "t.yaml: is a folder", (folder("t.yaml"),)),
    "a template that is binary": Wrong(TEMPLATE, 2, "t.yaml:1: .*UTF-8", template(b"\x7fELF\xff\0\1")),
    "an empty template": Wrong(TEMPLATE, 2, "t.yaml:1: .*needs at least a target", template("")),
    "a template that explodes": Wrong(
        TEMPLATE,
        2,
        r"t.yaml:\d+: .*more than \d+ values",
        template("a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))),
    ),
    "a key twice": Wrong(TEMPLATE, 2, "t.yaml:3: .*grace.*line 2", template("target: process\ngrace: 1s\ngrace: 2s\n")),
    "a key that does not exist": Wrong(
        TEMPLATE,
        2,
        "t.yaml:2: unknown key 'max_runtme'; did you mean 'max_runtime'",
        template("target: process\nmax_runtme: 1h\n"),
    ),
    "a unit that does not exist": Wrong(
        TEMPLATE, 2, "t.yaml:2: limits.memory.*512Mi", template("target: process\nlimits: {memory: 1GB}\n")
    ),
    "a duration below zero": Wrong(TEMPLATE, 2, "t.yaml:2: grace.*30s", template("target: process\ngrace: -5s\n")),
    "a limit of no length": Wrong(
        TEMPLATE, 2, "t.yaml:2: max_runtime.*leave max_runtime out", template("target: process\nmax_runtime: 0s\n")
    ),
    "a tab": Wrong(TEMPLATE, 2, "t.yaml:3: a tab .*spaces", template("target: process\nlimits:\n\tmemory: 1Gi\n")),
    "a number where text belongs": Wrong(
        TEMPLATE, 2, "t.yaml:2: env.A must be text: put 1 in quotes", template("target: process\nenv: {A: 1}\n")
    ),
    "a list where a mapping belongs": Wrong(
        TEMPLATE, 2, "t.yaml:2: env must be a mapping", template("target: process\nenv: [A=1]\n")
    ),
    "a target that is nearly known": Wrong(
        TEMPLATE, 2, "t.yaml:1: .*did you mean 'process'", template("target: proces\n")
    ),
    "a target that comes later": Wrong(TEMPLATE, 2, "t.yaml:1: unknown target 'nomad'", template("target: nomad\n")),
    "no target": Wrong(TEMPLATE, 2, "target is missing.*process", template("grace: 1s\n")),
    "a template with the other ending": Wrong(
        ("launch", "-t", "small", "--", "true"),
        2,
        "rename .*small.yml to small.yaml",
        (settings(""), file("templates/small.yml", "target: process\n")),
    ),
    "a folder that is relative": Wrong(
        TEMPLATE, 2, "t.yaml:2: cwd: .*absolute", template("target: process\ncwd: etl\n")
    ),
    "a folder that is not there": Wrong(
        TEMPLATE, 2, "the working folder /no/etl is not there", template("target: process\ncwd: /no/etl\n")
    ),
    "a secret that is not set": Wrong(
        TEMPLATE, 2, "secret KEY: .*has no NOWHERE", template("target: process\nsecrets: {KEY: {env: NOWHERE}}\n")
    ),
    "a secret whose file is not there": Wrong(
        TEMPLATE, 2, "secret KEY: cannot read /no/key", template("target: process\nsecrets: {KEY: {file: /no/key}}\n")
    ),
    "a secret in clear": Wrong(
        TEMPLATE,
        2,
        "t.yaml:2: secrets.KEY must be a mapping: {env} or {file}",
        template("target: process\nsecrets: {KEY: hunter2}\n"),
    ),
}
SETTINGS: Final = {
    "a setting that does not exist": Wrong(
        ("ps",),
        2,
        "run-launcher.yaml:1: unknown key 'lunch'; did you mean 'launch'",
        (settings("lunch: {timeout: 1m}\n"),),
    ),
    "settings with the other ending": Wrong(
        ("ps",), 2, "run-launcher.yml: rename it run-launcher.yaml", (file("run-launcher.yml", ""),)
    ),
    "settings that are no YAML": Wrong(("ps",), 2, r"run-launcher.yaml:\d: is no YAML", (settings("a: [1\n"),)),
    "a variable that does not exist": Wrong(
        ("ps",), 2, "did you mean 'RUN_LAUNCHER_LAUNCH__TIMEOUT'", (variables(RUN_LAUNCHER_LANCH__TIMEOUT="1m"),)
    ),
    "a variable that is no duration": Wrong(
        ("ps",), 2, "environment RUN_LAUNCHER_LAUNCH__TIMEOUT: .*30s", (variables(RUN_LAUNCHER_LAUNCH__TIMEOUT="soon"),)
    ),
    "a backend that is no URL": Wrong(("--backend", "state", "ps"), 2, "flag --backend: .*file:///folder"),
    "a backend of another kind": Wrong(("--backend", "ftp://host/x", "ps"), 2, "ftp:// is unknown.*file://"),
    "an engine of another kind": Wrong(("--engine", "terraform", "ps"), 2, "flag --engine: .*'auto'"),
    "two things wrong at once": Wrong(
        ("--engine", "terraform", "ps"), 2, "(?s)lunch.*flag --engine", (settings("lunch: 1\n"),), lines=2
    ),
    "a user without a home folder": Wrong(
        LAUNCH,
        2,
        "no home folder.*HOME.*RUN_LAUNCHER_HOME",
        (without("HOME", "RUN_LAUNCHER_HOME", "RUN_LAUNCHER_TOOLS"), as_stranger),
        needs=CANNOT,
    ),
}
ENGINES: Final = {
    "an engine that is not there": Wrong(
        LAUNCH, 2, "bin/pulumi.*Name one from", (settings("engine: {cli: bin/pulumi}\n"),)
    ),
    "an engine that may not be executed": Wrong(
        LAUNCH, 2, "cannot be executed: .*Name one from", cli("#!/bin/sh\n", 0o644)
    ),
    "an engine that is something else": Wrong(
        LAUNCH, 2, "tells no version.*Name one from", cli("#!/bin/sh\necho hi\n")
    ),
    "an engine that fails": Wrong(
        LAUNCH, 2, "exit code 7: broken.*Name one from", cli("#!/bin/sh\necho broken >&2; exit 7\n")
    ),
    "an engine that is too old": Wrong(LAUNCH, 2, "3.100.0: too old.*Name one from", says_version("3.100.0")),
    "an engine that is too new": Wrong(LAUNCH, 2, "4.0.0: too new.*Name one from", says_version("4.0.0")),
    "no engine and no way to bring one": Wrong(
        ("launch", "--", "/bin/true"),
        2,
        "(?s)No usable Pulumi CLI.*Any one of these helps",
        (
            variables(PATH="/nowhere", https_proxy="http://127.0.0.1:9"),
            lambda shell: shell.environment.update(RUN_LAUNCHER_TOOLS=f"{shell.root}/tools"),
        ),
        ("tools",),
        lines=16,
    ),
    "a tools folder that is a file": Wrong(
        ("launch", "--", "/bin/true"),
        2,
        "tools folder.*name another one in RUN_LAUNCHER_TOOLS",
        (variables(PATH="/nowhere", RUN_LAUNCHER_TOOLS="tools"), file("tools")),
        lines=2,
    ),
}
HOMES: Final = {
    "a home that is a file": Wrong(LAUNCH, 1, "RUN_LAUNCHER_HOME", (lambda shell: shell.home.touch(),)),
    "a home below a file": Wrong(("--home", "file/home", *LAUNCH), 1, "RUN_LAUNCHER_HOME", (file("file"),)),
    "a home that no URL can name": Wrong(("--home", "a#b", *LAUNCH), 2, "holds '#'.*choose another"),
    "a home whose name is too long": Wrong(("--home", "x" * 300, *LAUNCH), 1, "too long.*RUN_LAUNCHER_HOME"),
    "a home that leads in a circle": Wrong(
        ("--home", "circle", *LAUNCH),
        1,
        "RUN_LAUNCHER_HOME",
        (lambda shell: (shell.work / "circle").symlink_to("circle"),),
    ),
    "a home that only root may write to": Wrong(
        ("--home", "/var/lib/run-launcher-test", *LAUNCH),
        1,
        "Permission denied.*RUN_LAUNCHER_HOME",
        (as_stranger,),
        needs=CANNOT,
    ),
    "a read-only home": Wrong(
        LAUNCH, 1, "Read-only file system.*RUN_LAUNCHER_HOME", (home_at("-o", "ro"),), needs=ROOT_ONLY
    ),
    "a home that has become read-only": Wrong(
        ("launch", "--run-id", "s", "--", "true"),
        1,
        "Read-only file system.*RUN_LAUNCHER_HOME",
        (home_at("-o", "size=8m"), launched("r"), remounted_read_only),
        needs=ROOT_ONLY,
    ),
    "a disk that is full from the start": Wrong(
        LAUNCH, 1, "No space left.*make room", (home_at("-o", "size=64k"), filled()), needs=ROOT_ONLY
    ),
    "a disk without inodes": Wrong(
        LAUNCH, 1, "No space left.*make room", (home_at("-o", "nr_inodes=3"),), needs=ROOT_ONLY
    ),
}
KEYS: Final = {
    "a key that is another": Wrong(LAUNCH, 3, "not the one", (launched("s"), kept("keys/*", "other")), about_key=True),
    "a key that was emptied": Wrong(LAUNCH, 3, "key.*is empty", (launched("s"), kept("keys/*", "")), about_key=True),
    "a key that is gone": Wrong(LAUNCH, 3, "copy it there", (launched("s"), kept("keys/*", None)), about_key=True),
    "a key file that is not there": Wrong(
        LAUNCH, 3, "no/key.*(?:write|make|copy)", (settings("backend: {passphrase_file: no/key}\n"),), about_key=True
    ),
    "a key file that is empty": Wrong(
        LAUNCH, 3, "key .*is empty", (settings("backend: {passphrase_file: key}\n"), file("key", "\n")), about_key=True
    ),
    "a key file that is a folder": Wrong(
        LAUNCH, 3, "key.*directory", (settings("backend: {passphrase_file: key}\n"), folder("key")), about_key=True
    ),
    "a key file that is binary": Wrong(
        LAUNCH,
        3,
        "key.*(?:UTF-8|text)",
        (settings("backend: {passphrase_file: key}\n"), file("key", b"\xff\0")),
        about_key=True,
    ),
}
STATE: Final = "state/.pulumi/stacks/*/r.json"
HALF: Final = '{"version":3,"checkpoint":{"st'
BACKUP: Final = "is damaged.*restore it from a backup"
DAMAGES: Final = {
    f"{what} that says {how}": Wrong(
        words, 4, BACKUP, (launched("r", *command), kept(pattern, content)), (*RECORD, *STAYS)
    )
    for what, words, command, pattern in (
        ("a backend's identity", ("launch", "--", "true"), ("true",), "state/backend.json"),
        ("a salt", ("launch", "--", "true"), ("true",), "state/salt.json"),
        ("a record", ("status", "r"), ("true",), "state/records/*/r.json"),
        ("a template that was used", ("status", "r"), ("true",), "state/templates/*.json"),
        ("a worker's identity", ("terminate", "r"), FOREVER, "runs/*/r/worker.json"),
    )
    for how, content in {
        "nothing": "",
        "half": '{"v": 1, "id',
        "something else": '{"v": 1}',
        "no mapping": "[1]",
    }.items()
} | {
    "a state that says half": Wrong(("terminate", "r"), 4, BACKUP, (launched("r"), kept(STATE, HALF)), STAYS),
    "a state of the command line that says half, without its backup": Wrong(
        ("terminate", "r"),
        4,
        BACKUP,
        (
            variables(RUN_LAUNCHER_ENGINE__KIND="cli"),
            launched("r"),
            kept(f"{STATE}.bak", None),
            kept(STATE, HALF),
        ),
        STAYS,
    ),
    "a wish that says nothing": Wrong(
        ("launch", "--run-id", "r", "--", "true"),
        4,
        BACKUP,
        (launched("r"), wished_nothing),
    ),
}
TABLE: Final = COMMANDS | IDS | OPTIONS | TEMPLATES | SETTINGS | ENGINES | HOMES | KEYS | DAMAGES


@pytest.fixture
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="rl-wrong-") as folder:
        shell = Shell(Path(folder))
        yield shell
        shell.put_right()
        for path in shell.home.glob("state/records/*/*.json"):
            shell.call("terminate", path.stem)
        assert shell.close() == []


@pytest.mark.parametrize("name", TABLE)
def test_a_wrong_input_is_answered_by_one_clear_message_and_leaves_nothing(name: str, shell: Shell) -> None:
    row = TABLE[name]
    if row.needs:
        pytest.skip(row.needs)
    for arrange in row.arrange:
        arrange(shell)
    before, there = shell.files(), {each.pid for each in shell.processes()}

    done = shell.call(*row.words)
    after, now = shell.files(), {each.pid for each in shell.processes()}
    assert done.returncode == row.code, done
    assert done.stdout == ""
    assert re.search(row.says, done.stderr), done.stderr
    assert done.stderr.rstrip("\n").count("\n") < row.lines, done.stderr
    assert all(len(line) < 600 for line in done.stderr.splitlines())
    assert row.about_key or not _JARGON.search(re.sub(r"\S*/\S*", "a path", done.stderr)), done.stderr
    assert now <= there
    new = [path for path in after if path not in before and not path.startswith(row.leaves or "-")]
    assert [path for path in new if not (path.startswith("kept") and stat.S_ISDIR(after[path][0]))] == []
    assert set(before) <= set(after) or row.words[0] == "terminate"


@pytest.mark.skipif(ROOT_ONLY != "", reason=ROOT_ONLY)
def test_a_disk_that_fills_at_any_moment_of_a_launch(shell: Shell) -> None:
    """Each try has some pages more, so that the disk is full some writes later, until there is room for all."""
    home_at("-o", "size=4m")(shell)
    launched("s")(shell)
    for room in range(0, 2**20, 12 * 1024):
        filled(room)(shell)
        before = shell.files()
        done = shell.call("launch", "--run-id", "r", "--", *FOREVER)
        if done.returncode == 0:
            break
        new = [path for path, (mode, _) in shell.files().items() if path not in before and not stat.S_ISDIR(mode)]
        assert (done.returncode in {1, 4}, done.stdout) == (True, "")
        assert re.search("(No space left|full).*make room", done.stderr), done.stderr
        assert [path for path in new if not path.startswith(RECORD)] == []
        assert list(shell.processes()) == []
        shell.at_end.close()
    else:
        pytest.fail("it never had enough")
    shell.at_end.close()
    assert "r" in shell.does("terminate", "r", "-o", "name").stdout


@pytest.mark.skipif(ROOT_ONLY != "", reason=ROOT_ONLY)
def test_a_worker_ends_on_a_full_disk_and_the_rest_once_there_is_room(shell: Shell) -> None:
    home_at("-o", "size=4m")(shell)
    launched("r", *FOREVER)(shell)
    filled()(shell)

    refused = shell.call("terminate", "r")
    ended = psutil.wait_procs(shell.processes(), timeout=60)[1] == []
    shell.at_end.close()

    assert (refused.returncode, ended) == (1, True)
    assert "make room" in refused.stderr
    assert "SIGTERM" in shell.does("status", "r").stdout or "terminated" in shell.does("status", "r").stdout
    shell.does("terminate", "r")


def test_a_command_of_four_megabytes_is_refused_before_any_effect(shell: Shell) -> None:
    """From Python: a shell cannot pass on so much, as long as the limit of its stack is the usual one."""
    code = "from launchers import Run, load_launcher; load_launcher().launch(Run.new(['echo', 'x' * 4_000_000]))"
    done = shell.call(executable=(sys.executable, "-c", code))

    assert re.search("UsageError: .*too long.*pass large values in a file$", done.stderr.rstrip()), done.stderr[-500:]
    assert not shell.home.exists()


@pytest.mark.parametrize("name", ["programs", "stacks"])
def test_a_folder_of_the_users_with_the_name_of_ours_is_named(shell: Shell, name: str) -> None:
    shell.write(f"{name}/__init__.py", "")
    code = "from launchers import Run, load_launcher; load_launcher('process').launch(Run.new(['true']))"
    done = shell.call(executable=(sys.executable, "-c", code))

    assert done.returncode == 1
    assert done.stdout == ""
    assert str(shell.work / name) in done.stderr
    assert "rename that folder, or start from another one" in done.stderr
    assert not shell.home.exists()
    assert f"{shell.work / name} hides run-launcher's package" in shell.call("doctor").stdout


def test_there_are_at_least_forty() -> None:
    assert len({(row.words, row.says) for row in TABLE.values()}) >= 40
    assert {row.code for row in TABLE.values()} >= {1, 2, 3, 4, 6, 9}
