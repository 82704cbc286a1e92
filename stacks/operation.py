"""One operation of the `pulumi` command line: its folder, its servers, its process, and what it reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from stacks.engine import Provider, StackName
from stacks.errors import (
    ClaimLostError,
    EngineError,
    ForkedError,
    KeyMismatchError,
    StackLockedError,
    Started,
    TimeLimitError,
)
from stacks.plugins import attached, executables, variables
from stacks.processes import await_exit
from stacks.program_server import serve_program

if TYPE_CHECKING:
    from stacks.setup import Cli

_NOWHERE: Final = {"pulumi-python": 1, "pulumi-nodejs": 1}
"""Dynamic providers run code that their caller sends, and any local user can call the engine: they lead to a port where
nothing listens, instead of to the scripts that lie beside the CLI."""
_ASSURE: Final = 1.0  # seconds between two looks whether the operation may go on
_PATIENCE: Final = 10.0  # seconds that a cancelled process gets to write its state
_ROOM: Final = 2**20  # bytes; a disk with less room is why an operation could not even say what was wrong
_ALLOW: Final = threading.BoundedSemaphore(max(4, 2 * (os.cpu_count() or 1)))
"""At most so many processes of the command line at once: each takes 100 MB and half a second of CPU."""
_NOTE_AND_RUN: Final = (
    'read -r stat 2>/dev/null </proc/self/stat; printf "%s %s\\n" "$$" "$stat" >"$0" || exit 70; '
    'read -r go || exit 71; exec "$@" </dev/null'
)
_first_use: list[int] = []


@dataclass(frozen=True)
class Report:
    """What an operation said of itself: the steps it took as (operation, URN), and its errors."""

    steps: tuple[tuple[str, str], ...]
    errors: tuple[str, ...]
    text: str


@dataclass
class Operation:
    """The folder of one operation and everything that lives as long as it does.

    `on_started` is told the process's pid before the engine is run in it, `on_killed` after it was killed; `assure`
    raises where the operation must not go on; `hide` takes secrets out of what the engine says.
    """

    cli: Cli
    folder: Path
    environment: dict[str, str]
    note: Path
    on_killed: Callable[[int], None] = field(default=lambda _: None)
    on_started: Callable[[int], None] = field(default=lambda _: None)
    assure: Callable[[], None] = field(default=lambda: None)
    hide: Callable[[str], str] = field(default=lambda text: text)

    @property
    def project(self) -> Path:
        """Where the process runs."""
        return self.folder / "project"

    @property
    def settings(self) -> Path:
        """The file of the stack's settings, which the process may complete."""
        return next(iter(self.project.glob("Pulumi.*.yaml")), self.project / "absent")

    def declare(self, stack: StackName, config: Mapping[str, object], salt: str | None) -> None:
        """Write the project and the stack's settings, readable by this user alone."""
        project = {"name": stack.project, "runtime": "python"}
        settings: dict[str, object] = {"config": dict(config)} if config else {}
        if salt:
            settings["encryptionsalt"] = salt
        _write(self.project / "Pulumi.yaml", yaml.safe_dump(project))
        _write(self.project / f"Pulumi.{stack.stack}.yaml", yaml.safe_dump(settings))

    def serving(self, program: Callable[[], None]) -> AbstractContextManager[str]:
        """Serve an inline program while this operation runs; yields its address."""
        return serve_program(program, self.folder / "program.sock")

    def run(
        self, arguments: Sequence[str], providers: Sequence[Provider] = (), timeout: timedelta | None = None
    ) -> Report:
        """Run the process to its end and return its report; raises EngineError or one of its children.

        Past the time limit, and when this thread is interrupted, the process is cancelled, then killed.
        """
        with ExitStack() as inside:
            serving = {each.package: inside.enter_context(each.serve()) for each in attached(providers)}
            ports = {**_NOWHERE, **{package: server.port for package, server in serving.items()}}
            attached_to = ",".join(f"{package}:{port}" for package, port in ports.items())
            folders = dict.fromkeys(str(path.parent) for path in executables(providers).values())
            environment = {
                **self.environment,
                **variables(providers),
                "PATH": os.pathsep.join([*folders, self.environment["PATH"]]),
                "PULUMI_DEBUG_PROVIDERS": attached_to,
            }
            command = [
                "/bin/sh",
                "-c",
                _NOTE_AND_RUN,
                str(self.note),
                str(self.cli.path),
                "--non-interactive",
                *arguments,
            ]
            events = self.folder / "events"
            command += ["--event-log", str(events), "--color", "never"]
            with _ALLOW, (self.folder / "output").open("w+b") as output:
                process = subprocess.Popen(
                    command,
                    cwd=self.project,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                )
                for server in serving.values():
                    server.admit(process.pid)
                try:
                    self._let_go(process)
                    in_time = self._await(process, timeout)
                finally:
                    if process.returncode is not None and process.returncode < 0:
                        self.on_killed(process.pid)
                output.seek(0)
                text = self.hide(output.read().decode(errors="replace"))
            report = _read_report(events, text, self.hide)
            if not in_time:
                message = f"the engine was not done after {_in_words(timeout)} and was stopped"
                raise TimeLimitError(message, started=Started.UNKNOWN, details=text)
            if process.returncode != 0:
                raise failure(process.returncode, report, shutil.disk_usage(self.folder).free)
            return report

    def _let_go(self, process: subprocess.Popen[bytes]) -> None:
        """Have the engine run in the process once those who might take over know of it; else nothing runs in it."""
        assert process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        try:
            with process.stdin as pipe, suppress(BrokenPipeError):  # it has failed already, and says why
                self.on_started(process.pid)
                pipe.write(b"go\n")
        except BaseException:
            end_process(process)
            raise

    def _await(self, process: subprocess.Popen[bytes], timeout: timedelta | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        try:
            while True:
                left = _ASSURE if deadline is None else min(_ASSURE, deadline - time.monotonic())
                if await_exit(process, max(0.0, left)):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self.assure()
            end_process(process)
        except ClaimLostError:  # whoever has taken over must not meet it
            process.kill()
            process.wait()
            raise
        except BaseException:
            end_process(process)
            raise
        return False


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Cancel a process, and kill it if it will not end."""
    process.send_signal(signal.SIGTERM)
    try:
        await_exit(process, _PATIENCE)
    finally:  # whoever interrupts the waiting must not leave it at work: nothing would guard the stack any more
        process.kill()
        process.wait()


@contextmanager
def operation(cli: Cli, folder: Path, environment: Mapping[str, str], note: Path | None = None) -> Iterator[Operation]:
    """A fresh folder for one operation, removed at its end; what an earlier one left there is removed first."""
    refuse_fork()
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_foreign(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    (folder / "project").mkdir()
    path = os.pathsep.join([*map(str, cli.extra_path), str(cli.path.parent), os.environ.get("PATH", os.defpath)])
    own = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    nobody = {"HOME": str(folder / "home"), "USER": str(os.geteuid())}  # Go asks for both where passwd has no entry
    fixed = {
        "PATH": path,
        "PULUMI_HOME": str(folder / "home"),
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DEBUG_COMMANDS": "1",  # or the flag --event-log is not known
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_DIY_BACKEND_NO_LEGACY_WARNING": "1",
        "PULUMI_DIY_BACKEND_DISABLE_CHECKPOINT_BACKUPS": "1",
        "GOGC": "off",
        "GOMEMLIMIT": "512MiB",
    }
    try:
        yield Operation(cli, folder, {**nobody, **own, **fixed, **environment}, note or folder / "pid")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise EngineError for a folder that somebody else made or can write to: what stands in it would steer us."""
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        message = f"{folder} must be a folder that only this user can write to: remove it, or choose another home"
        raise EngineError(message)


def refuse_fork() -> None:
    """Raise ForkedError in a process that was forked after the engine's first use: gRPC's threads stayed behind."""
    if not _first_use:
        _first_use.append(os.getpid())
    if _first_use[0] != os.getpid():
        message = (
            "this process was forked from one that had already launched something, and gRPC does not work across a "
            "fork: launch from the parent, or start processes with the method 'spawn'"
        )
        raise ForkedError(message)


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _read_report(events: Path, text: str, hide: Callable[[str], str]) -> Report:
    steps, errors = [], []
    with suppress(FileNotFoundError):
        for line in events.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                break  # it was killed, or the disk was full
            step = event.get("resourcePreEvent")
            if step:
                steps.append((str(step["metadata"]["op"]), str(step["metadata"]["urn"])))
            diagnostic = event.get("diagnosticEvent")
            if diagnostic and diagnostic["severity"] == "error":
                errors.append(hide(str(diagnostic["message"]).strip()))
    return Report(tuple(steps), tuple(errors), text)


def failure(code: int, report: Report, free: int) -> EngineError | KeyMismatchError:
    """The error for an operation that failed: `code` is its process's, `free` the bytes that its disk has left."""
    text = "\n".join([*report.errors, report.text])
    if "incorrect passphrase" in text:
        message = "the key of the backend is not the one that this run was launched with; nothing was done"
        return KeyMismatchError(message, details=text)
    if "currently locked" in text:
        message = "another Pulumi command works on this run; try again when it is done"
        return StackLockedError(message, details=text)
    if "no space left on device" in text.lower() or (free < _ROOM and not report.text):
        return EngineError("the disk that holds the state is full: make room, then try again", details=text)
    first = next((line for line in report.errors if line), "") or _last_line(report.text)
    if code < 0:
        first = f"its process was ended by {signal.Signals(-code).name}"
    return EngineError(f"the engine failed: {first}", started=Started.UNKNOWN, details=text)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return (errors or lines or ["it said nothing"])[0 if errors else -1]


def _in_words(value: timedelta | None) -> str:
    return f"{value.total_seconds():g} s" if value else "no time"
