"""Small JSON files below one URL: a local folder, an object store, or a table of a database."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from stacks.errors import DamagedFileError
from stacks.location import Location
from stacks.processes import maker, maker_died


class Store(Protocol):
    """Reads and writes whole files by relative path; a write is seen whole or not at all."""

    def read(self, path: str) -> bytes | None:
        """The content; None for a file that is not there."""

    def write(self, path: str, content: bytes) -> None:
        """Replace the content."""

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there; False if it is, whoever made it first.

        A store that cannot know takes one with this very content for what this call has made.
        """

    def delete(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""

    def clear(self, path: str) -> None:
        """Delete a folder with all that is in it; nothing happens where there is none."""

    def together(self, *calls: Callable[[], object]) -> None:
        """Make calls of which none needs another's effect: at once where each is a way of its own."""

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; empty for one that is not there."""

    def age(self, path: str) -> timedelta | None:
        """How long ago a file was written, by the store's own clock; None for a file that is not there."""


class LocalStore:
    """A folder of this host."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        """See Store."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / path).read_bytes()
        return None

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        target = self.root / path
        with self._part(target, content) as part:
            part.replace(target)

    def create(self, path: str, content: bytes) -> bool:
        """See Store."""
        target = self.root / path
        with self._part(target, content) as part:
            try:
                os.link(part, target)
            except FileExistsError:
                return False
        return True

    def delete(self, path: str) -> None:
        """See Store."""
        target = self.root / path
        with suppress(NotADirectoryError):
            target.unlink(missing_ok=True)
            _bury_parts(target.parent)

    def clear(self, path: str) -> None:
        """See Store."""
        target = self.root / path
        if target.is_dir() and not target.is_symlink():
            for child in target.iterdir():
                if child.is_dir() and not child.is_symlink():
                    self.clear(f"{path}/{child.name}")
                else:
                    self.delete(f"{path}/{child.name}")
            with suppress(FileNotFoundError):
                target.rmdir()

    def together(self, *calls: Callable[[], object]) -> None:
        """See Store."""
        for call in calls:
            call()

    def names(self, path: str) -> list[str]:
        """See Store."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(each.name for each in (self.root / path).iterdir() if not each.name.endswith(".part"))
        return []

    def age(self, path: str) -> timedelta | None:
        """See Store. A file that is made now tells the time, which a file server may see otherwise than this host."""
        with suppress(FileNotFoundError, NotADirectoryError):
            written = (self.root / path).stat().st_mtime
            with self._part(self.root / path, b"") as probe:
                return timedelta(seconds=probe.stat().st_mtime - written)
        return None

    @contextmanager
    def _part(self, target: Path, content: bytes) -> Iterator[Path]:
        """The content in a file beside the target, for this user alone; what is still there at the end is removed."""
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _bury_parts(target.parent)
        part = target.with_name(f".{maker()}-{uuid.uuid4().hex[:8]}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            yield part
        finally:
            part.unlink(missing_ok=True)


def _bury_parts(folder: Path) -> None:
    """Remove what a process of this place that was killed while it wrote had begun in a folder."""
    with suppress(FileNotFoundError):
        for each in folder.iterdir():
            if each.name.startswith(".") and each.name.endswith(".part") and maker_died(each.name[1:]):
                each.unlink(missing_ok=True)


def open_store(location: Location) -> Store:
    """The store at a URL."""
    if location.folder is not None:
        return LocalStore(location.folder)
    from stacks.reach import Reached  # noqa: PLC0415 - a local backend needs none of what follows

    if location.scheme == "postgres":
        from stacks.postgres_store import PostgresStore  # noqa: PLC0415

        return Reached(PostgresStore(location), location)
    from stacks.object_store import ObjectStore  # noqa: PLC0415

    return Reached(ObjectStore(location), location)


def read_json(store: Store, path: str, *keys: str) -> dict[str, Any] | None:
    """The JSON object in a file, which has these keys; None for a file that is not there."""
    content = store.read(path)
    if content is None:
        return None
    try:
        data: dict[str, Any] = json.loads(content)
    except ValueError as error:
        raise DamagedFileError(path) from error
    if not isinstance(data, dict) or any(key not in data for key in keys):
        raise DamagedFileError(path)
    return data


def write_json(store: Store, path: str, data: object) -> None:
    """Replace a file by a JSON object."""
    store.write(path, json.dumps(data, indent=1).encode())


def walk(store: Store, folder: str) -> Iterator[tuple[str, str]]:
    """Every (shard, name) of a folder that is sorted by shards."""
    for shard in store.names(folder):
        for name in store.names(f"{folder}/{shard}"):
            yield shard, name
