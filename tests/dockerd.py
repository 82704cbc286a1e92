"""A real Docker Engine for tests: dockerd in a temporary folder, shared by the processes of a session.

A keeper (dockerd_keeper.py) starts it and leaves nothing of it, however its users end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import dockerd_keeper
from dockerd_setup import PATH, UnavailableError, cannot, install
from images import bring

_KEEPER: Final = dockerd_keeper.__file__
_PREFIX: Final = "rld-"
_PATIENCE: Final = 120  # seconds for what takes one


@dataclass(frozen=True)
class Daemon:
    """A Docker Engine that answers."""

    url: str

    def client(self) -> Any:  # noqa: ANN401 - docker publishes no types
        """A fresh docker.DockerClient, which whoever asked for it closes."""
        import docker  # noqa: PLC0415 - only where Docker is tested

        return docker.DockerClient(base_url=self.url, timeout=60)


@dataclass(frozen=True)
class Dockerd(Daemon):
    """A Docker Engine of our own, which can be ended and started again."""

    folder: Path = field(kw_only=True)
    connection: socket.socket = field(kw_only=True, repr=False)

    @property
    def pid(self) -> int:
        """The process of dockerd, once it has started."""
        return int((self.folder / "docker.pid").read_text())

    @property
    def log(self) -> str:
        """What dockerd has said."""
        return (self.folder / "log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill dockerd with SIGKILL; returns when it is gone. Its containers live on."""
        self._ask("kill")

    def stop(self) -> None:
        """Stop dockerd in good order; returns when it is gone. Its containers live on if it restores them."""
        self._ask("stop")

    def start(self) -> None:
        """Start dockerd again on the same data; returns when it answers."""
        self._ask("start")

    def close(self) -> None:
        """Let go of it. With its last user everything of it ends; this returns when it has."""
        with self.connection, contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.connection.recv(100):
                pass

    def _ask(self, word: str) -> None:
        self.connection.sendall(word.encode())
        _hear(self.connection)


def absent() -> str | None:
    """Why there can be no daemon here, neither one of our own nor one that runs already; None if there can."""
    why = cannot()
    if why is None or theirs() is None:
        return why
    return None if shutil.which("busybox") else "no busybox to make images of (Debian: apt install busybox-static)"


def theirs() -> Daemon | None:
    """The daemon that the machine has, if it answers."""
    url = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    client = Daemon(url).client() if url.startswith("tcp://") or Path(url.removeprefix("unix://")).exists() else None
    if client is None:
        return None
    with contextlib.closing(client):
        try:
            client.ping()
        except Exception:  # noqa: BLE001 - whatever keeps it from answering
            return None
    return Daemon(url)


@contextmanager
def running(*options: str, live_restore: bool = True, size: str | None = None) -> Iterator[Dockerd]:
    """A daemon with the tests' images for the caller alone, its data on a disk of that size (`200m`) if one is given.

    The options are more of dockerd's own.
    """
    install()
    daemon = _begin(os.getpid(), options, live_restore=live_restore, size=size)
    with contextlib.closing(daemon):
        bring(daemon)
        yield daemon


@contextmanager
def in_session(note: Path) -> Iterator[Daemon]:
    """The one daemon of all processes that name the same file, with the tests' images.

    The first of them starts it, with the last it ends. The machine's own serves where we can start none.
    """
    with contextlib.ExitStack() as stack:
        with note.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            daemon = theirs() if cannot() else stack.enter_context(contextlib.closing(_shared(file)))
            if daemon is None:
                raise UnavailableError(cannot())
            bring(daemon)
        yield daemon


def _shared(file: IO[str]) -> Dockerd:
    """Join the daemon whose folder the file names, or begin one and write it there."""
    file.seek(0)
    folder = file.read()
    daemon = _join(Path(folder)) if folder else None
    if daemon is None:
        install()
        controller = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        daemon = _begin(controller, (), live_restore=True, size=None)
        file.truncate(0)
        file.write(str(daemon.folder))
    return daemon


def sweep() -> None:
    """Remove daemons whose keeper was killed."""
    for path in Path("/tmp").glob(f"{_PREFIX}*/lock"):  # noqa: S108 - see _begin
        with contextlib.suppress(OSError), path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dockerd_keeper.clean(path.parent)


def _begin(controller: int, options: Sequence[str], *, live_restore: bool, size: str | None) -> Dockerd:
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))  # a Unix socket's name is short
    disk, live = (["--size", size] if size else []), (["--live-restore"] if live_restore else [])
    with (folder / "new").open("w") as lock, (folder / "keeper.log").open("w+") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").rename(folder / "lock")  # locked since it has that name
        subprocess.run(
            [sys.executable, "-E", _KEEPER, folder, str(controller), str(lock.fileno()), *disk, *live, *options],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PATH": PATH},
        )
        daemon = None
        until = time.monotonic() + _PATIENCE
        while daemon is None and folder.exists() and time.monotonic() < until:
            daemon = _join(folder)
        if daemon is None:
            log.seek(0)
            message = f"the keeper of dockerd does not answer: {log.read()}"
            raise UnavailableError(message)
        return daemon


def _join(folder: Path) -> Dockerd | None:
    """Connect to the keeper of a daemon; None if it does not listen yet or any more."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    try:
        connection.connect(str(folder / "control"))
        _hear(connection)
    except (OSError, EOFError):
        connection.close()
        time.sleep(0.01)
        return None
    except UnavailableError:
        connection.close()
        raise
    return Dockerd(f"unix://{folder}/docker.sock", folder=folder, connection=connection)


def _hear(connection: socket.socket) -> None:
    heard = b""
    while not heard.endswith(b"\n"):
        part = connection.recv(1000)
        if not part:
            raise EOFError
        heard += part
    why = json.loads(heard)
    if why:
        raise UnavailableError(why)
