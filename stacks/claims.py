"""Who works on a run stack: one at a time, and proof when somebody is gone.

On a file backend a claim is a file that its holder keeps locked: the kernel lets go of it when the holder dies,
whatever the cause, in every container that shares the folder. What a dead holder left in the file says which command
line process it had started. Beside it each launcher process keeps one owner lease while it works (leases.py), for
those who cannot see its process. Backends without file locks have claims of their own kind (lease_claims.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol

from stacks.engine import StackName
from stacks.errors import StackLockedError, Started
from stacks.leases import OwnerLease
from stacks.processes import ProcessIdentity, start_in, start_of, stat_of

_NOTE: Final = "~cli"
_SHARED: Final = " shared"
_POLL: Final = (0.005, 0.1)  # seconds between two looks at a claim that is held: first, last


@dataclass(frozen=True)
class Left:
    """What a holder wrote of itself, and the note of the engine's process that it had started, if any.

    The note is "pid stat", the second half as the kernel wrote it.
    """

    who: dict[str, Any]
    note: str | None = None

    @property
    def shared(self) -> bool:
        """True if the process works on other stacks too."""
        return (self.note or "").endswith(_SHARED)

    @property
    def process(self) -> ProcessIdentity | None:
        """The engine's process that the note tells of."""
        words = (self.note or "").rpartition(")")
        pid = (self.note or "").split(" ", 1)[0]
        if not pid.isdigit() or not {"host", "place"} <= set(self.who):
            return None
        start = start_in(words[2]) or start_of(int(pid))
        return ProcessIdentity(str(self.who["host"]), str(self.who["place"]), int(pid), start or 0)


@dataclass
class Claim:
    """The right to change one stack, held until it is released.

    `left` is what holders who died had written, `note` the file where the pid of the engine's process is noted before
    it takes a lock.
    """

    stack: StackName
    note: Path | None = None
    left: tuple[Left, ...] = ()

    def assure(self) -> None:
        """Raise ClaimLostError where others may have taken over."""

    def tell(self, pid: int, *, shared: bool = False) -> None:
        """Let those who would take over know of the engine's process, before it does anything.

        A shared one works on other stacks too, and is not ended to stop what it does on this one.
        """
        if shared and self.note is not None:
            self.note.write_text(note_of(pid, shared=True), encoding="utf-8")

    def settle(self) -> None:
        """What dead holders left is put right, and may be forgotten."""


class Claiming(Protocol):
    """The claims on one backend's stacks: who holds one is alone."""

    def hold(
        self, stack: StackName, what: str, timeout: timedelta, *, seems_free: bool = False
    ) -> AbstractContextManager[Claim]:
        """Wait for the claim and hold it; raises StackLockedError that names the holder when the time has passed.

        With `seems_free`, what a look at it told a moment ago, the first try goes without another look.
        """

    def holder(self, stack: StackName) -> dict[str, Any] | None:
        """Who holds the claim now, or held it when they died; None if nobody does. Changes nothing."""

    def look(self, stack: StackName) -> tuple[Left, ...]:
        """What holders, alive or dead, wrote of themselves. Changes nothing."""

    def held(self, stack: StackName) -> bool:
        """True while somebody holds the claim; changes nothing."""

    def stale(self) -> Iterator[StackName]:
        """The stacks whose claim a dead holder left. Takes and changes nothing."""


class Claims:
    """See Claiming. The claims of one backend's folder."""

    def __init__(self, folder: Path, lease: OwnerLease) -> None:
        self._folder = folder
        self._lease = lease

    def path(self, stack: StackName) -> Path:
        """The claim's file."""
        return self._folder / stack.shard / stack.stack

    @contextmanager
    def hold(
        self,
        stack: StackName,
        what: str,
        timeout: timedelta,
        *,
        seems_free: bool = False,  # noqa: ARG002 - its first try costs no look
    ) -> Iterator[Claim]:
        """See Claiming."""
        path = self.path(stack)
        fd = self._acquire(stack, timeout)
        try:
            note = _note_of(path)
            before = os.pread(fd, 65536, 0)
            left = _left(_parse(before), note)
            for each in left:  # its holder died, or it would have removed the file
                self._lease.bury(str(each.who.get("owner", "")))
            over = not left
            try:
                who = {**ProcessIdentity.own().to_dict(), "owner": self._lease.owner, "what": what}
                _overwrite(fd, json.dumps({**who, "since": datetime.now(UTC).isoformat()}).encode())
                with self._lease():  # after the claim: there is never a lease that no claim leads to
                    over = True
                    yield Claim(stack, note, left)
            finally:
                if over:
                    note.unlink(missing_ok=True)
                    path.unlink()
                else:  # what a dead holder left is still needed
                    _overwrite(fd, before)
        finally:
            os.close(fd)

    def holder(self, stack: StackName) -> dict[str, Any] | None:
        """See Claiming."""
        with suppress(FileNotFoundError):
            return _parse(self.path(stack).read_bytes())
        return None

    def look(self, stack: StackName) -> tuple[Left, ...]:
        """See Claiming."""
        return _left(self.holder(stack), _note_of(self.path(stack)))

    def held(self, stack: StackName) -> bool:
        """See Claiming."""
        return _is_locked(self.path(stack))

    def stale(self) -> Iterator[StackName]:
        """See Claiming."""
        for folder in sorted(self._folder.glob("*")):
            for name in sorted({path.name.removesuffix(_NOTE) for path in folder.iterdir()}):
                if not _is_locked(folder / name):
                    yield StackName.sorted_in(folder.name, name)

    def _acquire(self, stack: StackName, timeout: timedelta) -> int:
        path = self.path(stack)
        deadline, pause = time.monotonic() + timeout.total_seconds(), _POLL[0]
        while True:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if _try_lock(fd, path):
                return fd
            os.close(fd)
            if time.monotonic() >= deadline:
                raise StackLockedError(held_by(self.holder(stack) or {}), started=Started.UNKNOWN)
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL[1])


def _overwrite(fd: int, content: bytes) -> None:
    """Replace a file's content in place: a kill or a full disk leaves the old one or the new one, not nothing."""
    os.pwrite(fd, content.ljust(os.fstat(fd).st_size), 0)
    os.ftruncate(fd, len(content))


def _try_lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with suppress(FileNotFoundError):
        return os.fstat(fd).st_ino == path.stat().st_ino  # else its holder removed it while we waited
    return False


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _left(who: dict[str, Any] | None, note: Path) -> tuple[Left, ...]:
    words = None
    with suppress(FileNotFoundError):
        words = note.read_text(encoding="utf-8")
    return () if who is None and words is None else (Left(who or {}, words),)


def note_of(pid: int, *, shared: bool) -> str:
    """What is noted of an engine's process."""
    return f"{pid} {stat_of(pid)}{_SHARED if shared else ''}"


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + _NOTE)


def held_by(who: dict[str, Any]) -> str:
    """The words for somebody who has to wait."""
    return (
        f"another command works on this run: {who.get('what', 'unknown')} by process {who.get('pid', '?')} "
        f"on {who.get('host', 'an unknown host')} since {who.get('since', '?')}; try again when it is done"
    )


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(content)
    except ValueError:
        return None
    return data if isinstance(data, dict) and ProcessIdentity.stands_in(data) else None
