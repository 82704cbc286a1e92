"""The command line as a user calls it: the installed script, a home of its own, and what the kernel shows of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from stacks.setup import tools_folder

SCRIPT: Final = Path(sys.executable).parent / "run-launcher"
TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
FOREVER: Final = ("sleep", "600")


class CommandLine:
    """One user: a folder of all that is kept, a working folder, and the script."""

    def __init__(self, root: Path) -> None:
        self.home = root / "kept"
        self.temp = root / "temp"
        self.temp.mkdir()
        self.environment = {
            **os.environ,
            "RUN_LAUNCHER_HOME": str(self.home),
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "TMPDIR": str(self.temp),
        }
        for name in (
            "PYTHONUNBUFFERED",
            "PYTHONDONTWRITEBYTECODE",
        ):  # as users have it: the first hides buffered output
            self.environment.pop(name, None)

    def __call__(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code is what the test expects."""
        done = subprocess.run(
            [str(SCRIPT), *words],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def begin(
        self,
        *words: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        ignored: signal.Signals | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command as a shell does: in a process group of its own, `nohup` with a signal that is ignored."""
        before = None if ignored is None else signal.signal(ignored, signal.SIG_IGN)
        try:
            return subprocess.Popen(
                [str(SCRIPT), *words],
                env=self.environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                process_group=0,
            )
        finally:
            if ignored is not None:
                signal.signal(ignored, before)

    def launch(self, run_id: str, *command: str) -> None:
        """Launch a run without a word."""
        self("launch", "--run-id", run_id, "--", *command)

    def json(self, *words: str, code: int = 0, **environment: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        """What a command answers to a program."""
        return json.loads(self(*words, "-o", "json", code=code, **environment).stdout)

    def processes(self) -> list[psutil.Process]:
        """Every process of this user's runs, as the kernel shows them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                if process.pid != os.getpid() and any(str(self.home) in word for word in words):
                    found.append(process)
        return found

    def files_of(self, run_id: str) -> list[str]:
        """The files that carry a run's name, but for its record."""
        return [str(path) for path in self.home.rglob(f"{run_id}*") if "records" not in path.parts]

    def locks(self) -> list[str]:
        """What would keep the next command on a run waiting: Pulumi's locks, our claims and leases."""
        folders = ("state/.pulumi/locks", "state/claims", "state/leases", "work")
        return [str(path) for folder in folders for path in self.home.glob(f"{folder}/**/*") if not path.is_dir()]

    def worker(self, run_id: str) -> psutil.Process:
        """The process of a run's worker."""
        return psutil.Process(self.json("status", run_id)["handle"]["coordinates"]["pid"])


@contextmanager
def user_in(root: Path) -> Iterator[CommandLine]:
    """A user whose runs are all terminated at the end, and of whom no process and no temporary file is left then."""
    user = CommandLine(root)
    try:
        yield user
        runs = user("ps", "-o", "name").stdout.split() if user.home.exists() else []
        if runs:
            user("terminate", *runs)
        left = user.processes()
    finally:
        for process in user.processes():
            process.kill()
    assert left == []
    assert list(user.temp.iterdir()) == []


def read_until(stream: Any, text: str) -> str:  # noqa: ANN401 - a pipe
    """Read lines up to the one that holds a text."""
    seen = []
    for line in iter(stream.readline, b""):
        seen.append(line.decode())
        if text in seen[-1]:
            return "".join(seen)
    pytest.fail(f"{text!r} was never said, but: {seen}")


def until(look: Callable[[], object]) -> object:
    """Look until there is something; for what gives no event."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.005)
    pytest.fail("what was looked for never came")
