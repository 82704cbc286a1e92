"""One row per target: why it is absent here, a fresh launcher, and what the target itself shows, past our code."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil
import pytest
from docker.errors import NotFound
from dockerd import Daemon
from servers import Place

from launchers import WorkerHandle, WorkerStatus, load_launcher
from launchers.factory import make_workspace
from launchers.launcher import HasLogs, RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import BackendSettings, Config, EngineSettings
from programs.args import Run
from programs.docker.template import DockerTemplate
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


def terminate_all(launcher: RunLauncher[Any]) -> None:
    """Terminate every run that the launcher's backend has a record of."""
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(launcher.terminate, launcher.workspace.records.ids()))


class Row:
    """A home of its own, and what is there past our code whatever the target."""

    name: ClassVar[str]
    orders_streams: ClassVar[bool]

    def __init__(self, folder: Path, place: Place | None = None, engine: str = "auto") -> None:
        self.place = place
        self.engine = EngineSettings.model_validate({"kind": engine})
        self.home = folder / "home"
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._mark = f"row-{os.urandom(8).hex()}"

    def close(self) -> None:
        """Let go of what a test held."""

    def config(self) -> Config:
        if self.place is None:
            return Config(home=self.home, engine=self.engine)
        key = self.shared / "key"
        if not key.exists():
            key.write_text("a key that all hosts share")
        backend = BackendSettings(url=self.place.url, passphrase_file=key)
        return Config(home=self.home, engine=self.engine, backend=backend)

    def run(self, script: str, *words: str, run_id: str | None = None, **fields: Any) -> Run:  # noqa: ANN401 - Run's own
        return Run(
            id=run_id or f"run-{os.getpid()}-{next(_numbers)}", command=("sh", "-c", script, "sh", *words), **fields
        )

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
        kept_there = (f"state/{key}" for key in self._content())
        return sorted([*(name for name in (*names, *kept_there) if not name.startswith(KEPT)), *self._living()])

    def _living(self) -> Iterator[str]:
        """What the target itself shows of this row, in words."""
        raise NotImplementedError

    def _content(self) -> dict[str, bytes]:
        """What the backend's server shows, where the backend is not below the home."""
        return {} if self.place is None else self.place.content()


class ProcessRow(Row):
    """The target `process`. Its workers are known by a variable in their environment, as the kernel shows it."""

    name = "process"
    orders_streams = True

    def __init__(self, folder: Path, place: Place | None = None, engine: str = "auto") -> None:
        super().__init__(folder, place, engine)
        self._held: list[int] = []

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()

    def launcher(self, **template: object) -> RunLauncher[Any]:
        env = {"PYTHONUNBUFFERED": "1", "CONTRACT_ROW": self._mark}
        value = ProcessTemplate.model_validate({"env": env, "grace": "5s", **template})
        return load_launcher(value, config=self.config())

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

    def refused(self) -> tuple[str, ...]:
        broken = self.shared / "broken"
        broken.write_text("#!/no/such/interpreter\n")
        broken.chmod(0o755)
        return (str(broken),)

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

    def limits_kept(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _living(self) -> Iterator[str]:
        return (f"process {each.pid}: {_command(each)}" for each in self._processes(None))

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


class DockerRow(Row):
    """The target `docker`. Its workers are known by their labels, as the daemon shows them."""

    name = "docker"
    orders_streams = False

    def __init__(self, folder: Path, daemon: Daemon, engine: str = "auto") -> None:
        super().__init__(folder, engine=engine)
        self.client = daemon.client()

    def close(self) -> None:
        self.client.close()

    def launcher(self, **template: object) -> RunLauncher[Any]:
        fields = {
            "image": "busybox:local",
            "env": {"CONTRACT_ROW": self._mark},
            "labels": {"contract-row": self._mark},
            "volumes": [{"mount": str(self.shared), "host": str(self.shared)}],
            "grace": "5s",
            **template,
        }
        return load_launcher(DockerTemplate.model_validate(fields), config=self.config())

    def container(self, handle: WorkerHandle) -> Any:  # noqa: ANN401 - docker publishes no types
        """The worker as the daemon has it."""
        return self.client.containers.get(str(handle.coordinates["container"]))

    def output(self, run_id: str) -> bytes:
        """What the launcher shows of a run's output."""
        launcher = self.launcher()
        assert isinstance(launcher, HasLogs)
        return b"".join(launcher.logs(launcher.record(run_id)))

    def alive(self, handle: WorkerHandle) -> bool:
        with suppress(NotFound):
            return bool(self.container(handle).attrs["State"]["Running"])
        return False

    def kill(self, handle: WorkerHandle) -> None:
        self.container(handle).kill()

    def executions(self, run_id: str) -> int:
        labels = [f"run-launcher/run-id={run_id}", f"contract-row={self._mark}"]
        return len(self.client.containers.list(all=True, filters={"label": labels}))

    def seen_elsewhere(self, handle: WorkerHandle) -> WorkerStatus | None:  # noqa: ARG002 - see test_docker.py
        return None

    def refused(self) -> tuple[str, ...]:
        return ("/no/such/executable",)

    def slow_start(self) -> tuple[str, ...] | None:
        return None

    @contextmanager
    def limits_kept(self) -> Iterator[None]:
        over, reconciler = threading.Event(), Reconciler(make_workspace(self.config()))

        def reconcile() -> None:
            while not over.wait(0.2):
                assert [each.error for each in reconciler.once() if each.error] == []

        with ThreadPoolExecutor() as threads:
            passes = threads.submit(reconcile)
            try:
                yield
            finally:
                over.set()
                passes.result()

    def _living(self) -> Iterator[str]:
        mine = {"label": [f"contract-row={self._mark}"]}
        for each in self.client.containers.list(all=True, filters=mine):
            yield f"container {each.name}: {each.status}"
        backend = self.home / "state" / "backend.json"
        if backend.exists():
            made = {"label": [f"run-launcher/backend={json.loads(backend.read_text())['id']}"]}
            for each in (*self.client.networks.list(filters=made), *self.client.volumes.list(filters=made)):
                yield f"{type(each).__name__} {each.name}"


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


TARGETS: Final = (ProcessRow.name, DockerRow.name)
