"""Somebody at a shell: the installed `run-launcher`, folders of their own, and the system asked what is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import psutil

from stacks.setup import tools_folder

SCRIPT: Final = Path(sys.executable).parent / "run-launcher"
TOOLS: Final = tools_folder()  # asked before a test has a home of its own, so that no test brings an engine again
MARK: Final = "SHELL_OF_A_TEST"
FOREVER: Final = ("sleep", "600")
_LIMIT: Final = 120.0  # seconds


class Shell:
    """A user with an empty home. Tests change `environment`, `cwd` and `before` to arrange their case.

    `before` is put before the command: what runs it, say as another user. `at_end` puts right what was arranged, so
    that runs can be ended; `last` undoes the rest.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.user, self.work, self.temp = root / "user", root / "work", root / "temp"
        for folder in (self.user, self.work, self.temp):
            folder.mkdir()
        self.home = root / "kept"
        self.cwd = self.work
        self.before: list[str] = []
        self.at_end, self.last = ExitStack(), ExitStack()
        self._mark = os.urandom(8).hex()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PULUMI_", "PYTHON", "XDG_"))}
        self.environment = {
            **{name: value for name, value in own.items() if not name.startswith("RUN_LAUNCHER_")},
            "HOME": str(self.user),
            "RUN_LAUNCHER_HOME": str(self.home),
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "TMPDIR": str(self.temp),
            MARK: self._mark,
        }

    def call(self, *words: str, executable: Sequence[str] = (str(SCRIPT),)) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; bytes that are no text come back as their codes."""
        return subprocess.run(
            [*self.before, *executable, *words],
            env=self.environment,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
            timeout=_LIMIT,
        )

    def does(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that must succeed."""
        done = self.call(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, name: str, text: str | bytes, mode: int = 0o644) -> Path:
        """A file in the working folder."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file and folder of this user: mode and content, as far as it is one."""
        found = {}
        for path in self.root.rglob("*"):
            with suppress(OSError):
                plain = path.is_file() and not path.is_symlink()
                found[str(path.relative_to(self.root))] = (path.lstat().st_mode, path.read_bytes() if plain else b"")
        return found

    def processes(self) -> Iterator[psutil.Process]:
        """Everything that runs for this user, as the kernel shows it."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = " ".join(process.cmdline())
                if f"{self.root}/" in words or process.environ().get(MARK) == self._mark:
                    yield process

    def put_right(self) -> None:
        """Undo what was arranged, as far as it keeps runs from being ended."""
        self.at_end.close()
        self.before, self.cwd = [], self.work

    def close(self) -> list[str]:
        """Undo the rest; returns the processes that were still there, which it ends."""
        with self.last:
            left = [f"process {each.pid}: {each.cmdline()}" for each in self.processes()]
            for each in self.processes():
                with suppress(psutil.Error):
                    each.kill()
        return left
