"""All that a run should not leave behind, past our own bookkeeping: asked of the kernel and of the files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from targets import ProcessRow

from stacks.warm_server import ENGINES


def left(row: ProcessRow) -> dict[str, list[str]]:
    """All that should not be there any more; the names of what should, records and archives, are the row's."""
    ENGINES.close()
    home = row.home
    state = home / "state"
    return {
        "workers and files": row.leftovers(),
        "stacks": row.stacks(),
        "locks": _files(state / ".pulumi" / "locks"),
        "backups": [*_files(state / ".pulumi" / "backups"), *_files(state, "*.bak")],
        "run folders": [str(path) for path in home.glob("runs/*/*")],
        "work folders": [str(path) for path in home.glob("work/*")],
        "temporary files": _files(Path(tempfile.gettempdir())),
    }


def nothing() -> dict[str, list[str]]:
    """What `left` says when nothing is."""
    names = ("workers and files", "stacks", "locks", "backups", "run folders", "work folders", "temporary files")
    return {name: [] for name in names}


def _files(folder: Path, pattern: str = "*") -> list[str]:
    return [str(path) for path in folder.rglob(pattern) if not path.is_dir()]
