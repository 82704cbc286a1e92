"""Folders for a while: gone afterwards, and known by their names when their process died."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stacks.processes import maker, maker_died

SOCKET_LIMIT: Final = 90
"""Characters of a folder's path that still leave room for a Unix socket's name."""
_ROOM: Final = 30  # characters of a preview's folder
_SOCKETS: Final = "run-launcher-engine-"
_SOCKETS_ROOM: Final = 46  # characters of a name that begins like that


def temporary_files() -> Path:
    """The folder for temporary files that Python would find; its own search leaves a file there if it is killed."""
    named = (tempfile.tempdir, *map(os.environ.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp")  # noqa: S108
    folders = (Path(str(name)).absolute() for name in named if name)
    return next((each for each in folders if each.is_dir() and os.access(each, os.W_OK | os.X_OK)), Path.cwd())


@contextmanager
def preview_folder(work: Path) -> Iterator[Path]:
    """A folder of this preview's own, removed at its end.

    It is called `preview-<pid>-…` and lies below `work` if that is there: a preview makes no folder that stays. Else,
    and where that path is too long for a socket, it lies among temporary files.
    """
    prefix = f"preview-{os.getpid()}-"
    if work.is_dir() and _short(work, _ROOM):
        folder = tempfile.mkdtemp(prefix=prefix, dir=work)
    else:
        temporary = temporary_files()
        folder = tempfile.mkdtemp(
            prefix=f"run-launcher-{prefix}",
            dir=temporary if _short(temporary, _ROOM) else "/tmp",  # noqa: S108 - where all other names are long
        )
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def socket_folder() -> Path:
    """A folder among temporary files for this process's sockets, which its user alone can enter.

    Whoever asks removes it; whoever asks next, those of processes that were killed.
    """
    temporary = temporary_files()
    place = temporary if _short(temporary, _SOCKETS_ROOM) else Path("/tmp")  # noqa: S108 - where all other names are long
    for folder in place.glob(f"{_SOCKETS}*"):
        if maker_died(folder.name.removeprefix(_SOCKETS)):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SOCKETS}{maker()}-", dir=place))


def _short(folder: Path, room: int) -> bool:
    return len(os.fsencode(folder)) <= SOCKET_LIMIT - room
