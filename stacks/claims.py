"""Who works on a run stack: one at a time, and proof when somebody is gone.

On a file backend a claim is a file that its holder keeps locked: the kernel lets go of it when the holder dies,
whatever the cause, in every container that shares the folder. What a dead holder left in the file says which command
line process it had started. Beside it each launcher process keeps one owner lease while it works, for those who
cannot see its process.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from stacks.engine import PROJECT_PREFIX, StackName
from stacks.errors import StackLockedError, Started
from stacks.processes import ProcessIdentity
from stacks.store import Store, read_json, write_json

LEASE_RENEWAL: Final = 10.0  # seconds
LEASE_LIFE: Final = timedelta(seconds=60)
_NOTE: Final = "~cli"
_POLL: Final = (0.005, 0.1)  # seconds between two looks at a claim that is held: first, last


@dataclass
class Claim:
    """The right to change one stack, held until it is released.

    `left` is what a holder who died had written: who it was, and the note of the command line process it had started.
    """

    stack: StackName
    path: Path
    left: dict[str, Any] | None = None
    left_note: str | None = None

    @property
    def note(self) -> Path:
        """Where the pid of the engine's process is noted before it takes a lock."""
        return self.path.with_name(f"{self.path.name}{_NOTE}")


@dataclass
class OwnerLease:
    """Tells others that this process is at work, renewed while any claim is held; removed when none is."""

    store: Store
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _held: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _idle: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def __call__(self) -> Iterator[str]:
        """Hold the lease; yields the owner's id."""
        with self._guard:
            if self._held == 0:
                self._renew()  # first: on a full disk nobody holds a lease that is not there
                self._idle = threading.Event()
                threading.Thread(target=self._keep, args=(self._idle,), name="owner-lease", daemon=True).start()
            self._held += 1
        try:
            yield self.owner
        finally:
            with self._guard:
                self._held -= 1
                if self._held == 0:
                    self._idle.set()
                    self.store.delete(self._path)

    def bury(self, owner: str) -> None:
        """Remove the lease of an owner that is proven dead."""
        if owner and owner != self.owner:
            self.store.delete(f"leases/{owner}.json")

    @property
    def _path(self) -> str:
        return f"leases/{self.owner}.json"

    def _renew(self) -> None:
        write_json(
            self.store,
            self._path,
            {
                "v": 1,
                "owner": self.owner,
                **ProcessIdentity.own().to_dict(),
                "renewed_at": datetime.now(UTC).isoformat(),
            },
        )

    def _keep(self, idle: threading.Event) -> None:
        while not idle.wait(LEASE_RENEWAL):
            with self._guard:
                if not idle.is_set():
                    with suppress(OSError):  # a full disk must not end the renewal: the next one may work
                        self._renew()


def lease_expired(store: Store, owner: str) -> bool:
    """True if an owner has not renewed its lease for 60 s, or has none any more."""
    lease = read_json(store, f"leases/{owner}.json")
    return lease is None or datetime.now(UTC) - datetime.fromisoformat(lease["renewed_at"]) > LEASE_LIFE


def dead_owners(store: Store) -> Iterator[str]:
    """The owners whose lease has expired and whose process nobody sees at work."""
    for name in store.names("leases"):
        owner = name.removesuffix(".json")
        lease = read_json(store, f"leases/{name}")
        if lease is not None and lease_expired(store, owner) and not ProcessIdentity.read(lease).alive():
            yield owner


class Claims:
    """The claims of one backend's folder."""

    def __init__(self, folder: Path, lease: OwnerLease) -> None:
        self._folder = folder
        self._lease = lease

    def path(self, stack: StackName) -> Path:
        """The claim's file."""
        return self._folder / stack.shard / stack.stack

    @contextmanager
    def hold(self, stack: StackName, what: str, timeout: timedelta) -> Iterator[Claim]:
        """Wait for the claim and hold it; raises StackLockedError that names the holder when the time has passed."""
        path = self.path(stack)
        fd = self._acquire(path, timeout)
        try:
            left = _parse(os.pread(fd, 65536, 0))
            claim = Claim(stack, path, left)
            with suppress(FileNotFoundError):
                claim.left_note = claim.note.read_text(encoding="utf-8")
            if left is not None:  # its holder died, or it would have removed the file
                self._lease.bury(str(left.get("owner", "")))
            over = left is None and claim.left_note is None
            try:
                with self._lease() as owner:
                    who = {**ProcessIdentity.own().to_dict(), "owner": owner, "what": what}
                    _overwrite(fd, json.dumps({**who, "since": datetime.now(UTC).isoformat()}).encode())
                    over = True
                    yield claim
            finally:
                if over:  # else what a dead holder left is still needed
                    claim.note.unlink(missing_ok=True)
                    path.unlink()
        finally:
            os.close(fd)

    def holder(self, stack: StackName) -> dict[str, Any] | None:
        """Who holds the claim now, or held it when they died; None if nobody does."""
        with suppress(FileNotFoundError):
            return _parse(self.path(stack).read_bytes())
        return None

    def held(self, stack: StackName) -> bool:
        """True while somebody holds the claim; changes nothing."""
        return _is_locked(self.path(stack))

    def stale(self) -> Iterator[StackName]:
        """The stacks whose claim a dead holder left behind; changes nothing."""
        for folder in sorted(self._folder.glob("*")):
            for name in sorted({path.name.removesuffix(_NOTE) for path in folder.iterdir()}):
                if not _is_locked(folder / name):
                    yield StackName(f"{PROJECT_PREFIX}{folder.name}", name)

    def _acquire(self, path: Path, timeout: timedelta) -> int:
        deadline, pause = time.monotonic() + timeout.total_seconds(), _POLL[0]
        while True:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if _try_lock(fd, path):
                return fd
            os.close(fd)
            if time.monotonic() >= deadline:
                raise StackLockedError(_held_by(path), started=Started.UNKNOWN)
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


def _held_by(path: Path) -> str:
    who: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        who = _parse(path.read_bytes()) or {}
    return (
        f"another command works on this run: {who.get('what', 'unknown')} by process {who.get('pid', '?')} "
        f"on {who.get('host', 'an unknown host')} since {who.get('since', '?')}; try again when it is done"
    )


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(content)
    except ValueError:
        return None
    return data
