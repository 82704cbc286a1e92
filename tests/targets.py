"""One row per target: why it is absent here, a fresh launcher, and what the target itself shows, past our code."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from servers import Place

from launchers import WorkerHandle, WorkerStatus, load_launcher
from launchers.launcher import RunLauncher
from launchers.settings import BackendSettings, Config, EngineSettings
from programs.args import Run
from programs.process.template import ProcessTemplate
from programs.provider.worker import SHIM
from stacks.setup import tools_folder
from stacks.warm_setup import can_build, find_warm

KEPT: Final = ("state/records/", "state/templates/", "state/names/",
    "state/backend.json", "state/salt.json", "state/.pulumi/meta.yaml",
               "keys/", "logs/")  # fmt: skip
"""What may stay below a home once every run was terminated."""
_STATUS: Final = """
import sys
from launchers import WorkerHandle, launcher_for
handle = WorkerHandle.from_json(sys.argv[1])
print(launcher_for(handle).status(handle).model_dump_json())
"""
_numbers = itertools.count()


def take_engine(request: pytest.FixtureRequest, engine: str) -> str:
    """The engine's name, where it is chosen and can be had; else the test is skipped, or fails if it is required."""
    if engine not in (request.config.getoption("--engine") or [engine]):
        pytest.skip("not chosen with --engine")
    if engine == "warm" and find_warm(tools_folder()) is None and not can_build():
        required = engine in request.config.getoption("--require")
        (pytest.fail if required else pytest.skip)("the warm engine is absent, and there is no Go to build it")
    return engine


class ProcessRow:
    """The target `process`. Its workers are known by a variable in their environment, as the kernel shows it."""

    name = "process"
    absent: str | None = None

    def __init__(self, folder: Path, place: Place | None = None, engine: str = "auto") -> None:
        self.place = place
        self.engine = EngineSettings.model_validate({"kind": engine})
        self.home = folder / "home"
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._mark = f"row-{os.urandom(8).hex()}"
        self._held: list[int] = []

    def close(self) -> None:
        """Let go of what a test held."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def launcher(self, **template: object) -> RunLauncher[Any]:
        env = {"PYTHONUNBUFFERED": "1", "CONTRACT_ROW": self._mark}
        value = ProcessTemplate.model_validate({"env": env, "grace": "5s", **template})
        return load_launcher(value, config=self.config())

    def config(self) -> Config:
        if self.place is None:
            return Config(home=self.home, engine=self.engine)
        key = self.shared / "key"
        if not key.exists():
            key.write_text("a key that all hosts share")
        backend = BackendSettings(url=self.place.url, passphrase_file=key)
        return Config(home=self.home, engine=self.engine, backend=backend)

    def run(self, script: str, *words: str, run_id: str | None = None, **fields: Any) -> Run:  # noqa: ANN401 - Run's own
        return Run(id=run_id or f"run-{next(_numbers)}", command=("sh", "-c", script, "sh", *words), **fields)

    def another_process(self, code: str, *words: str) -> list[str]:
        backend = self.config().backend
        settings = {
            "RUN_LAUNCHER_HOME": self.home,
            "RUN_LAUNCHER_ENGINE__KIND": self.engine.kind,
            "RUN_LAUNCHER_BACKEND__URL": backend.url,
            "RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE": backend.passphrase_file,
        }
        told = [f"{name}={value}" for name, value in settings.items() if value is not None]
        return ["env", *told, sys.executable, "-c", code, *words]

    def alive(self, handle: WorkerHandle) -> bool:
        return bool(list(self._processes(handle.run_id)))

    def kill(self, handle: WorkerHandle) -> None:
        os.kill(int(str(handle.coordinates["pid"])), signal.SIGKILL)

    def executions(self, run_id: str) -> int:
        shims = [
            each
            for each in psutil.process_iter()
            if _command(each)[:1] == [str(SHIM)] and _command(each)[1:] == [str(self._folder(run_id))]
        ]
        return len(shims)

    def seen_elsewhere(self, handle: WorkerHandle) -> WorkerStatus | None:
        unshare = shutil.which("unshare")
        if unshare is None or os.geteuid() != 0:
            return None
        command = [unshare, "--pid", "--fork", *self.another_process(_STATUS, handle.to_json())]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return WorkerStatus.model_validate_json(done.stdout)

    def slow_start(self) -> tuple[str, ...] | None:
        """A program whose file the kernel does not open for execution while this process holds a lease on it."""
        if sys.platform != "linux":
            return None
        program = self.shared / "leased"
        shutil.copy("/bin/true", program)
        fd = os.open(program, os.O_RDWR)
        self._held.append(fd)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel asks for the lease back: we do not answer
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        return (str(program),)

    def public_traces(self) -> bytes:
        files = [path for path in self.home.rglob("*") if path.is_file()]
        processes = [os.fsencode(" ".join(_command(each))) for each in psutil.process_iter()]
        return b"\n".join([*(path.read_bytes() for path in files), *self._content().values(), *processes])

    def stacks(self) -> list[str]:
        if self.place is not None:
            keys = (Path(key) for key in self._content() if key.startswith(".pulumi/stacks/") and key.endswith(".json"))
            return sorted(key.name for key in keys)
        return sorted(path.name for path in self.home.glob("state/.pulumi/stacks/*/*.json"))

    def leftovers(self) -> list[str]:
        files = (path for path in self.home.rglob("*") if not path.is_dir())
        names = (str(path.relative_to(self.home)) for path in files)
        processes = (f"process {each.pid}: {_command(each)}" for each in self._processes(None))
        kept_there = (f"state/{key}" for key in self._content())
        return sorted([*(name for name in (*names, *kept_there) if not name.startswith(KEPT)), *processes])

    def _content(self) -> dict[str, bytes]:
        """What the backend's server shows, where the backend is not below the home."""
        return {} if self.place is None else self.place.content()

    def _folder(self, run_id: str) -> Path:
        return next(iter(self.home.glob(f"runs/*/{run_id}")), self.home / "absent")

    def _processes(self, run_id: str | None) -> Iterator[psutil.Process]:
        """What carries the row's mark or belongs to the run's folder, zombies not counted."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                environment = process.environ()
                marked = environment.get("CONTRACT_ROW") == self._mark
                if marked and run_id in (None, environment.get("RUN_LAUNCHER_RUN_ID")):
                    yield process
                elif any(word.startswith(str(self.home)) for word in process.cmdline()):
                    folder = self.home if run_id is None else self._folder(run_id)
                    if any(word.startswith(str(folder)) for word in process.cmdline()):
                        yield process


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


ROWS: Final = {row.name: row for row in (ProcessRow,)}
