"""The place of one benchmark: a temporary folder, an environment of its own, and nothing left at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from stacks.errors import SetupError
from stacks.setup import Cli, ensure_cli, ensure_language_host, tools_folder
from stacks.warm_server import ENGINES
from stacks.warm_setup import ensure_warm

BIN: Final = Path(sys.executable).parent
WORKER: Final = ("sleep", "600")
_MARK: Final = "BENCHMARK_MARK"
_HIDDEN: Final = ("PULUMI_", "RUN_LAUNCHER_", "TF_", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")


class CommandError(Exception):
    """A measured command failed; what it said is the message."""


@dataclass(frozen=True)
class Place:
    """Where everything is made, and the engine that our ways and Pulumi's share."""

    folder: Path
    cli: Cli
    say: Callable[[str], None]

    def home(self, name: str) -> Path:
        """A folder for one way; its runs, state and keys are below it."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        return home

    def run(self, command: list[str], cwd: Path, **environment: str) -> None:
        """Run a command to its end, as a user would; raises CommandError."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            message = f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
            raise CommandError(message)


@contextmanager
def place(say: Callable[[str], None]) -> Iterator[Place]:
    """A place that is gone at the end, with every process that carries its mark, however the block is left."""
    tools, mark = tools_folder().absolute(), secrets.token_hex(8)
    cli = _engine(tools, say)
    with tempfile.TemporaryDirectory(prefix="rl-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        changed = {
            _MARK: mark,
            "HOME": str(folder),
            "PATH": os.pathsep.join(map(str, [BIN, *cli.extra_path, cli.path.parent, *os.get_exec_path()])),
            "RUN_LAUNCHER_TOOLS": str(tools),
            "TMPDIR": str(folder / "tmp"),
            "CHECKPOINT_DISABLE": "1",  # terraform and Pulumi ask nobody whether they are the newest
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }
        with _environment(changed):
            tempfile.tempdir = None  # asked again, with the new TMPDIR
            try:
                yield Place(folder, cli, say)
            finally:
                ENGINES.close()
                _end(mark, say)
                shutil.rmtree(folder, ignore_errors=True)
    tempfile.tempdir = None


def _engine(tools: Path, say: Callable[[str], None]) -> Cli:
    cli = ensure_cli(tools, say)
    with suppress(SetupError):
        ensure_warm(tools, say)
    with suppress(SetupError):
        return ensure_language_host(cli, tools, say)
    return cli


@contextmanager
def _environment(changed: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(_HIDDEN)]:
        del os.environ[name]
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(mark: str, say: Callable[[str], None]) -> None:
    """Kill what carries the mark until nothing does; a benchmark that ran to its end leaves nothing to kill."""
    ended = 0
    while left := _marked(mark):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        ended += len(psutil.wait_procs(left, timeout=10)[0])
    if ended:
        say(f"{ended} processes were still running, and are ended now")


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == mark:
                found.append(process)
    return found
