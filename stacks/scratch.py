"""The folder that a preview works in: one per preview, gone afterwards, and known by its name when its process died."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOCKET_LIMIT: Final = 90
"""Characters of a folder's path that still leave room for a Unix socket's name."""
_ROOM: Final = 30  # characters of the names below


@contextmanager
def preview_folder(work: Path) -> Iterator[Path]:
    """A folder of this preview's own, removed at its end.

    It is called `preview-<pid>-…` and lies below `work` if that is there: a preview makes no folder that stays. Else,
    and where that path is too long for a socket, it lies among temporary files.
    """
    prefix = f"preview-{os.getpid()}-"
    if work.is_dir() and _short(work):
        folder = tempfile.mkdtemp(prefix=prefix, dir=work)
    else:
        temporary = Path(tempfile.gettempdir())
        folder = tempfile.mkdtemp(
            prefix=f"run-launcher-{prefix}",
            dir=temporary if _short(temporary) else "/tmp",  # noqa: S108 - where all other names are long
        )
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _short(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= SOCKET_LIMIT - _ROOM
