"""A run's folder: what is handed over to the shim, and what the shim leaves there.

handover      what to start, written by the program, read once by the shim and removed (0600; it holds values)
worker.json   identity of the shim and of the worker, written exclusively before the command starts
output.log    what the worker printed, both streams in order
exit.json     how it ended
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from stacks.errors import DamagedFileError

MAGIC: Final = "run-launcher-handover-1"
HANDOVER: Final = "handover"
IDENTITY: Final = "worker.json"
OUTPUT: Final = "output.log"
EXIT: Final = "exit.json"

T = TypeVar("T")


@dataclass(frozen=True)
class Handover:
    """Everything that the shim needs to start a worker; `meta` is kept word for word in worker.json."""

    command: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    grace: timedelta
    start_timeout: timedelta
    max_runtime: timedelta | None
    memory: int | None
    cpu_time: timedelta | None
    open_files: int | None
    meta: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The words in the order in which the shim reads them, each ended by a NUL."""
        words = [
            MAGIC,
            json.dumps(self.meta),
            self.cwd,
            _milliseconds(self.grace),
            _milliseconds(self.start_timeout),
            _milliseconds(self.max_runtime),
            str(self.memory or 0),
            str(int(self.cpu_time.total_seconds()) if self.cpu_time else 0),
            str(self.open_files or 0),
            str(len(self.command)),
            *self.command,
            str(len(self.environment)),
            *(f"{name}={value}" for name, value in self.environment.items()),
        ]
        return b"".join(os.fsencode(word) + b"\0" for word in words)


def _milliseconds(value: timedelta | None) -> str:
    return str(round(value.total_seconds() * 1000)) if value else "0"


@dataclass(frozen=True)
class Identity:
    """One process, so that a reused pid is never taken for it; `start_time` is in the platform's own unit."""

    pid: int
    start_time: int


@dataclass(frozen=True)
class WorkerRecord:
    """What worker.json says."""

    boot_id: str
    pid_namespace: int
    shim: Identity
    worker: Identity
    started_at: datetime
    meta: dict[str, Any]


@dataclass(frozen=True)
class ExitRecord:
    """What exit.json says; either `exit_code` or `signal` is set. `max_rss` in bytes, `cpu_time` of all descendants."""

    exit_code: int | None
    signal: int | None
    reason: str
    stage: str
    error: int
    ended_at: datetime
    max_rss: int
    cpu_time: timedelta


class ForeignFolderError(Exception):
    """The folder or a file in it is not ours alone: somebody else could have written what stands there."""


_FOREIGN: Final = "{} was not written by this user"


def check_folder(path: Path) -> None:
    """Raise ForeignFolderError unless the folder is a real one that only this user can write to."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        message = f"{path} is not a folder that only this user can write to"
        raise ForeignFolderError(message)


def write_own(path: Path, content: bytes) -> None:
    """Replace a file, readable by this user alone, whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.{id(content):x}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_own(path: Path) -> bytes | None:
    """A file that this user alone could read and write; None where it is not there. Raises ForeignFolderError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(file.fileno())
        content = file.read()
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise ForeignFolderError(_FOREIGN.format(path))
    return content


class RunFolder:
    """The folder of one attempt. Reading never changes anything; a file that is not there reads as None."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Make the folder for this user alone; it may be there already. Raises ForeignFolderError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        self.check()

    def check(self) -> None:
        """Raise ForeignFolderError unless the folder is a real one that only this user can write to."""
        check_folder(self.path)

    def hand_over(self, handover: Handover) -> None:
        """Lay down what to start, readable by this user alone, whole or not at all."""
        write_own(self.path / HANDOVER, handover.to_bytes())

    def handed_over(self) -> tuple[str, ...] | None:
        """The command that was handed over and not yet started. Raises ForeignFolderError."""
        content = read_own(self.path / HANDOVER)
        if content is None:
            return None
        words = content.split(b"\0")
        if words[0] != MAGIC.encode():
            raise ForeignFolderError(_FOREIGN.format(self.path / HANDOVER))
        count = int(words[9])
        return tuple(os.fsdecode(word) for word in words[10 : 10 + count])

    def worker(self) -> WorkerRecord | None:
        """The identity of the worker that was started here."""
        return _read(self.path / IDENTITY, _worker)

    def ending(self) -> ExitRecord | None:
        """How the worker ended."""
        return _read(self.path / EXIT, _ending)

    def close(self) -> None:
        """Make sure that nothing starts here any more; raises FileExistsError where a worker did."""
        data = {"v": 1, "closed": True}
        part = self.path / f"closed.{os.getpid()}.{id(data):x}"
        part.write_text(json.dumps(data), encoding="utf-8")
        try:
            os.link(part, self.path / IDENTITY)
        finally:
            part.unlink()

    @property
    def output(self) -> Path:
        """Where the worker's output is."""
        return self.path / OUTPUT


def _worker(data: dict[str, Any]) -> WorkerRecord | None:
    if data.get("closed"):
        return None
    return WorkerRecord(
        boot_id=data["boot_id"],
        pid_namespace=data["pid_namespace"],
        shim=_identity(data["shim"]),
        worker=_identity(data["worker"]),
        started_at=_time(data["started_at"]),
        meta=data["meta"],
    )


def _identity(data: dict[str, Any]) -> Identity:
    return Identity(data["pid"], data["start_time"])


def read_ending(archive: Path) -> ExitRecord | None:
    """How a worker ended whose output was archived; kept beside it."""
    return _read(ending_path(archive), _ending)


def ending_path(archive: Path) -> Path:
    """Where it is kept how a worker ended whose output was archived, whatever its target."""
    return archive.with_suffix(".exit.json")


def discard(archive: Path) -> None:
    """Remove an archived output and how its worker ended; repeatable."""
    archive.unlink(missing_ok=True)
    ending_path(archive).unlink(missing_ok=True)


def _ending(data: dict[str, Any]) -> ExitRecord:
    return ExitRecord(
        exit_code=data["exit_code"],
        signal=data["signal"],
        reason=data["reason"],
        stage=data["stage"],
        error=data["errno"],
        ended_at=_time(data["ended_at"]),
        max_rss=data["max_rss"],
        cpu_time=timedelta(milliseconds=data["cpu_ms"]),
    )


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    """What is built of the JSON in a file; None for one that is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return build(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedFileError(str(path)) from error


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
