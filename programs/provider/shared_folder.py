"""A folder that runs share: <home>/shared/<stack>/.

handover.json   whose it is and what it holds, written by the launcher before the folder is made; removed with it (0600)
content/        what workers see: files that are never written again (0500), or a durable folder that is theirs (0700)
part-*          content that is being built

Only the stack, of the backend, that the handover names makes and removes it. Beside them <home>/shared/place tells this
home from any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from programs.provider.folder import ForeignFolderError, check_folder, read_own, write_own

HANDOVER: Final = "handover.json"
CONTENT: Final = "content"
PLACE: Final = "place"
_PART: Final = "part-"
_PLACE: Final = re.compile(r"home:[0-9a-f]{32}")


@dataclass(frozen=True)
class FolderHandover:
    """What is handed over: the project/stack and the backend it belongs to, and its files; None for a durable one."""

    stack: str
    backend: str
    files: Mapping[str, str] | None

    @property
    def content(self) -> str:
        """What tells these files from others."""
        return "" if self.files is None else digest(self.files)


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 of files, by names and text."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


class SharedFolder:
    """One shared folder. Whoever changes it holds the claim of its stack; reading never changes anything."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def content(self) -> Path:
        """The folder that workers are told of."""
        return self.path / CONTENT

    def hand_over(self, handover: FolderHandover) -> None:
        """Say whose the folder is to be, and what it holds; it may be there already. Raises ForeignFolderError."""
        for folder in (self.path.parent, self.path):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_folder(folder)
        files = None if handover.files is None else dict(handover.files)
        data = {"v": 1, "stack": handover.stack, "backend": handover.backend, "files": files}
        write_own(self.path / HANDOVER, json.dumps(data).encode())

    def handed_over(self) -> FolderHandover | None:
        """What was handed over; None where nothing was. Raises ForeignFolderError for what somebody else wrote."""
        for folder in (self.path.parent, self.path):
            try:
                check_folder(folder)
            except FileNotFoundError:
                return None
        content = read_own(self.path / HANDOVER)
        try:
            data = None if content is None else json.loads(content)
            return None if data is None else FolderHandover(data["stack"], data["backend"], data["files"])
        except (ValueError, LookupError, TypeError) as error:
            message = f"{self.path / HANDOVER} is damaged"
            raise ForeignFolderError(message) from error

    def make(self, handover: FolderHandover) -> None:
        """Make the content, or take over what is there: a durable folder as it is, files if they are the same."""
        self._bury_parts()
        if handover.files is None:
            self.content.mkdir(mode=0o700, exist_ok=True)
            check_folder(self.content)
        elif not self._holds(handover.files):
            self._build(handover.files)

    def remove(self, *, data: bool) -> bool:
        """Remove the folder; False where a durable one is kept since it holds something and `data` does not give it up.

        Repeatable. What is no folder, and so not ours, is left alone.
        """
        if not self.path.is_dir():
            return True
        handover = self.handed_over()
        self._bury_parts()
        keeps = handover is None or handover.files is None
        with suppress(OSError):
            self.content.rmdir()
        if keeps and not data and os.path.lexists(self.content):
            return False
        _remove_tree(self.content)
        (self.path / HANDOVER).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self.path.rmdir()
        return True

    def measure(self) -> tuple[int, int]:
        """How many files the content has, and how many bytes they take."""
        sizes = [path.lstat().st_size for path in _files(self.content)]
        return len(sizes), sum(sizes)

    def _holds(self, files: Mapping[str, str]) -> bool:
        """True if the content is exactly these files."""
        found = {path.relative_to(self.content).as_posix(): path for path in _files(self.content)}
        return (
            not self.content.is_symlink()
            and self.content.is_dir()
            and found.keys() == files.keys()
            and all(
                not found[name].is_symlink() and found[name].read_bytes() == text.encode()
                for name, text in files.items()
            )
        )

    def _build(self, files: Mapping[str, str]) -> None:
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=self.path))
        try:
            for name, text in files.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                fd = os.open(part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400)
                with os.fdopen(fd, "wb") as file:
                    file.write(text.encode())
            for folder, _, _ in os.walk(part, topdown=False):
                Path(folder).chmod(0o500)
            if os.path.lexists(self.content):
                self.content.rename(self.path / f"{_PART}{uuid.uuid4().hex}")
            part.rename(self.content)
        finally:
            self._bury_parts()

    def _bury_parts(self) -> None:
        """Remove what whoever was killed here had begun."""
        for pattern in (f"{_PART}*", f"{HANDOVER}.*"):
            for part in self.path.glob(pattern):
                _remove_tree(part)


def _files(folder: Path) -> Iterator[Path]:
    """All below a folder that is no folder; links are not followed."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in [*names, *links])


def _remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all below it, also what its user made read-only."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):  # from above, so that each is open when it is entered
        Path(folder).chmod(0o700)
    shutil.rmtree(path)


# ---- which home it is ----


def read_place(folder: Path) -> str | None:
    """The id of the place that a folder of shared folders is; None where it has none yet. Raises ForeignFolderError."""
    try:
        text = (folder / PLACE).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    if not _PLACE.fullmatch(text):
        message = (
            f"{folder / PLACE} is damaged: restore it from a backup, or remove it where nothing is shared any more"
        )
        raise ForeignFolderError(message)
    return text


def keep_place(folder: Path) -> str:
    """The id of the place, made where there is none: of several at once, the first one stays."""
    known = read_place(folder)
    if known is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_folder(folder)
    part = folder / f"{PLACE}.{os.getpid()}.{uuid.uuid4().hex}"
    try:
        write_own(part, f"home:{uuid.uuid4().hex}".encode())
        with suppress(FileExistsError):
            os.link(part, folder / PLACE)
    finally:
        part.unlink(missing_ok=True)
    return read_place(folder) or keep_place(folder)
