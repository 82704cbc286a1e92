"""The tools folder: changed by one process at a time, and each tool in it is there whole or not at all."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stacks.commands import Elapsed
from stacks.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOOLS_VARIABLE: Final = "RUN_LAUNCHER_TOOLS"

_PART: Final = "part-"
_ROOM: Final = 300 * 2**20
_POLL: Final = 0.1


@contextmanager
def changing(tools: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the tools folder alone, rid of what killed processes left; what its disk refuses is one SetupError."""
    try:
        tools.mkdir(parents=True, exist_ok=True)
        with _locked(tools / "lock", progress):
            for part in tools.glob(f"{_PART}*"):
                if part.is_dir():
                    shutil.rmtree(part, ignore_errors=True)
            _refuse_full_disk(tools)
            yield
    except OSError as error:
        message = (
            f"The tools folder {tools} cannot be used: {error}. "
            f"Make it writable, or name another one in {TOOLS_VARIABLE}."
        )
        raise SetupError(message) from error


def _refuse_full_disk(tools: Path) -> None:
    free = shutil.disk_usage(tools).free
    if free < _ROOM:
        message = (
            f"The disk of the tools folder {tools} has {free >> 20} MB left, and {_ROOM >> 20} MB are needed. "
            f"Make room, or name another folder in {TOOLS_VARIABLE}."
        )
        raise SetupError(message)


@contextmanager
def _locked(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on the file; the system drops it with the process, so none is ever stale."""
    elapsed = Elapsed(f"Waiting for another process that changes {path.parent}", progress)
    with path.open("a") as file:
        while not _try_lock(file.fileno()):
            elapsed.tick()
            time.sleep(_POLL)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Give an empty folder whose `root` becomes `destination` at once when the block ends well, and is gone otherwise.

    A process killed inside leaves a folder `part-*`, which nothing takes for good.
    """
    part = Path(tempfile.mkdtemp(prefix=_PART, dir=destination.parent))
    try:
        (part / "root" / "bin").mkdir(parents=True)
        (part / "tmp").mkdir()
        yield part
        # What is there did not work, or it would have been found.
        shutil.rmtree(destination, ignore_errors=True)
        (part / "root").rename(destination)
    finally:
        shutil.rmtree(part, ignore_errors=True)
