"""Another user of the machine (uid 65534) reads no secret, and has no process of theirs run or ours ended.

Each attempt is really made by a process of that user, while a launch is in flight and while its run lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from other_user import CANNOT, NOBODY, as_user
from shell import FOREVER, SCRIPT, Shell
from targets import take_engine

from launchers import WorkerHandle, launcher_for
from launchers.settings import Config
from programs.provider.folder import Handover, RunFolder
from stacks.errors import EngineError

ATTACK: Final = Path(__file__).with_name("attack.py").read_text()
SECRETS: Final = ("s3cr3t-of-the-run", "s3cr3t-of-the-template", "s3cr3t-in-a-file")
pytestmark = [pytest.mark.skipif(bool(CANNOT), reason=CANNOT or "-")]


@dataclass
class Attacked:
    """A shell whose folders everybody may enter, as in a shared /tmp, and what the other user has there."""

    shell: Shell
    theirs: Path

    @property
    def evil(self) -> Path:
        """What a command of theirs would make."""
        return self.theirs / "evil"

    def harmful(self) -> dict[str, Any]:
        """Inputs of a worker with a handover that the other user wrote."""
        return {
            "runId": "r",
            "folder": str(self.theirs / "run"),
            "command": ["touch", str(self.evil)],
            "labels": {},
            "graceSeconds": 1,
        }

    def attack(self, *, ports: list[int]) -> dict[str, Any]:
        """Let the other user try everything; returns what came of it."""
        ours = [self.shell.home, *self.shell.home.rglob("*"), *self.shell.temp.rglob("*")]
        told = {
            "paths": [str(path) for path in ours],
            "pids": [each.pid for each in self.shell.processes()],
            "ports": ports,
            "sockets": [str(path) for path in ours if path.is_socket()],
            "secrets": [*SECRETS, *(path.read_text() for path in self.shell.home.glob("keys/*"))],
        }
        words = [sys.executable, "-c", ATTACK, str(self.theirs), json.dumps(self.harmful())]
        done = subprocess.run(
            as_user(NOBODY, words),
            env={"PATH": os.environ["PATH"]},
            cwd="/",
            input=json.dumps(told),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["uid"] == NOBODY
        return report

    def listening(self) -> dict[int, psutil.Process]:
        """The ports that our processes listen on."""
        return {
            each.laddr.port: process
            for process in self.shell.processes()
            for each in process.net_connections("inet")
            if each.status == psutil.CONN_LISTEN
        }


@pytest.fixture
def attacked() -> Iterator[Attacked]:
    with tempfile.TemporaryDirectory(prefix="rl-attacked-") as name:
        shell = Shell(Path(name))
        shell.root.chmod(0o755)
        theirs = shell.root / "theirs"
        run = RunFolder(theirs / "run")
        run.path.mkdir(parents=True)
        second = timedelta(seconds=1)
        meta = {"run_id": "r"}
        harmful = Handover(("touch", f"{theirs}/evil"), {}, "/", second, second, None, None, None, None, meta)
        run.hand_over(harmful)
        for path in (theirs, *theirs.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        (shell.user / "token").write_text(SECRETS[2])
        (shell.user / "token").chmod(0o600)
        shell.environment["TOKEN_OF_MINE"] = SECRETS[1]
        secrets = f"secrets: {{A: {{env: TOKEN_OF_MINE}}, B: {{file: {shell.user}/token}}}}"
        shell.write("t.yaml", f"target: process\ngrace: 1s\n{secrets}\noverrides: {{env: {{keys: C}}}}\n")
        attacked = Attacked(shell, theirs)
        yield attacked
        shell.put_right()
        for path in shell.home.glob("state/records/*/*.json"):
            shell.call("terminate", path.stem)
        assert shell.close() == []
        assert not attacked.evil.exists()


@pytest.fixture
def slow(attacked: Attacked) -> Iterator[Path]:
    """A program whose file the kernel does not open for execution while this process holds a lease on it."""
    program = attacked.shell.work / "slow"
    shutil.copy("/bin/sleep", program)
    fd = os.open(program, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel asks for the lease back: we do not answer
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield program
    os.close(fd)
    signal.signal(signal.SIGIO, before)


@pytest.fixture(params=["cli", "warm"])
def engine(request: pytest.FixtureRequest, attacked: Attacked) -> str:
    attacked.shell.environment["RUN_LAUNCHER_ENGINE__KIND"] = take_engine(request, request.param)
    return str(request.param)


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_during_a_launch_nothing_can_be_read_written_or_run(attacked: Attacked, engine: str, slow: Path) -> None:
    shell = attacked.shell
    shell.environment["C"] = SECRETS[0]
    words = ("launch", "--run-id", "r", "-t", "./t.yaml", "-e", "C", "--", str(slow), "600")
    with subprocess.Popen(
        [str(SCRIPT), *words],
        env=shell.environment,
        cwd=shell.work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as launch:
        until(lambda: list(shell.home.glob("runs/*/r/worker.json")) or launch.poll() is not None)
        assert launch.poll() is None
        listening = attacked.listening()
        report = attacked.attack(ports=list(listening))
        own = {port for port, process in listening.items() if process.pid == launch.pid}
        launch.terminate()
        launch.wait(60)

    assert (report["files"], report["processes"], report["secrets"], report["sockets"]) == ([], [], [], [])
    assert bool(own) == (engine == "cli")  # the warm engine reaches its launcher on sockets in a folder of its own
    engines = [set(report["ports"][str(port)].values()) for port in set(listening) - own]
    assert any(answers - {"PERMISSION_DENIED", "UNIMPLEMENTED", "UNAVAILABLE"} for answers in engines)  # it is reached
    for port in own:
        assert set(report["ports"][str(port)].values()) <= {"PERMISSION_DENIED", "UNIMPLEMENTED"}
        assert report["ports"][str(port)]["harmful /pulumirpc.ResourceProvider/Create"] == "PERMISSION_DENIED"
    assert not attacked.evil.exists()


def test_while_a_run_lives_nothing_can_be_read_or_written_and_no_port_is_open(attacked: Attacked, engine: str) -> None:  # noqa: ARG001 - each of them
    shell = attacked.shell
    shell.environment["C"] = SECRETS[0]
    shell.does("launch", "--run-id", "r", "-t", "./t.yaml", "-e", "C", "--", *FOREVER)
    report = attacked.attack(ports=list(attacked.listening()))

    assert (report["files"], report["processes"], report["secrets"], report["sockets"]) == ([], [], [], [])
    assert report["ports"] == {}


def test_the_plugin_of_a_plain_pulumi_answers_nobody_else(attacked: Attacked) -> None:
    """The engine that it serves is its parent: here this process, whose child the other user's is as well."""
    plugin = [str(SCRIPT.with_name("pulumi-resource-runworker"))]
    with subprocess.Popen(plugin, env=attacked.shell.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        report = attacked.attack(ports=[port])
        process.terminate()

    assert set(report["ports"][str(port)].values()) <= {"PERMISSION_DENIED", "UNIMPLEMENTED"}
    assert "OK" not in report["ports"][str(port)].values()
    assert not attacked.evil.exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_for_operations_that_another_user_laid_in_wait_is_refused(attacked: Attacked, kind: str) -> None:
    """A home with a long name has its operations in the folder for temporary files, whose names can be guessed."""
    shell = attacked.shell
    shell.environment["RUN_LAUNCHER_ENGINE__KIND"] = "cli"
    shell.home = shell.root / "/".join(["h" * 100] * 2)
    shell.environment["RUN_LAUNCHER_HOME"] = str(shell.home)
    shell.temp.chmod(0o1777)
    trap = shell.temp / f"run-launcher-{os.geteuid()}"
    make = f"mkdir -m 777 {trap}" if kind == "folder" else f"ln -s {attacked.theirs} {trap}"
    subprocess.run(as_user(NOBODY, ["sh", "-c", make]), check=True)
    refused = shell.call("launch", "--run-id", "r", "--", "true")

    assert refused.returncode == 4
    assert f"{trap} must be a folder that only this user can write to" in refused.stderr
    assert [path.name for path in attacked.theirs.iterdir()] == ["run"]
    assert list(shell.processes()) == []


def test_a_home_that_everybody_may_write_to_is_refused(attacked: Attacked) -> None:
    attacked.shell.home.mkdir()
    attacked.shell.home.chmod(0o777)
    refused = attacked.shell.call("launch", "--", "true")

    assert refused.returncode == 2
    assert f"chmod o-w {attacked.shell.home}" in refused.stderr
    assert list(attacked.shell.home.iterdir()) == []


def test_a_run_folder_that_another_user_made_is_not_used(attacked: Attacked) -> None:
    """As if it had been laid there while the home was open."""
    shell = attacked.shell
    shell.does("launch", "--run-id", "first", "--", "true")
    folder = shell.home / "runs" / "45" / "r"
    folder.parent.mkdir(mode=0o700)
    shutil.copytree(attacked.theirs / "run", folder)
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    refused = shell.call("launch", "--run-id", "r", "--", "touch", str(attacked.evil))

    assert refused.returncode == 4
    assert "only this user can write to" in refused.stderr
    assert not attacked.evil.exists()


def test_a_forged_handle_ends_no_process_of_the_forgers_choice(attacked: Attacked) -> None:
    shell = attacked.shell
    shell.does("launch", "--run-id", "r", "--", *FOREVER)
    record = json.loads(next(shell.home.glob("state/records/*/r.json")).read_text())
    worker = json.loads(next(shell.home.glob("runs/*/r/worker.json")).read_text())
    with subprocess.Popen(FOREVER) as victim:
        stat = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()
        identity = {"pid": victim.pid, "start_time": int(stat[19])}
        forged = {**worker, "shim": identity, "worker": identity}
        (attacked.theirs / "run" / "worker.json").write_text(json.dumps(forged))
        os.chown(attacked.theirs / "run" / "worker.json", NOBODY, NOBODY)
        where = {**identity, "start_time": str(identity["start_time"]), "folder": str(attacked.theirs / "run")}
        handle = WorkerHandle.model_validate({**record["handle"], "run_id": "forged", "coordinates": where})
        launcher = launcher_for(handle, config=Config(home=shell.home))
        for wait in (False, True):
            with pytest.raises(EngineError, match="only this user can write to"):
                launcher.terminate(handle, wait=wait)
        alive = victim.poll() is None
        victim.kill()

    assert alive
    for path in shell.home.glob("state/wishes/*/forged.json"):
        path.unlink()
