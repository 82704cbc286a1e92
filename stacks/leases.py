"""Owner leases: how a launcher process tells those who cannot see it that it is at work.

leases/<owner>.json is written when a process takes its first claim, renewed every 10 s while it holds any, and removed
with the last one. Where claims are files whose age the store tells, those stand for the lease until the first renewal,
which most never see. How old a file is, the store's own clock says; two hosts' clocks are never compared. An owner that
could not renew for 50 s has lost its claims, whatever others did meanwhile: it takes another name, and what it held
fails.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from stacks.processes import ProcessIdentity
from stacks.store import Store, read_json, write_json

LEASE_RENEWAL: Final = 10.0  # seconds
LEASE_LIFE: Final = timedelta(seconds=60)


@dataclass
class OwnerLease:
    """Tells others that this process is at work, renewed while any claim is held; removed when none is."""

    store: Store
    life: timedelta = LEASE_LIFE
    renewal: float = LEASE_RENEWAL
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _held: int = 0
    _renewed: float = 0.0
    _written: bool = False
    _later: list[str] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _idle: threading.Event = field(default_factory=threading.Event)
    _keeper: threading.Thread | None = None

    @contextmanager
    def __call__(self, since: float | None = None) -> Iterator[str]:
        """Hold the lease; yields the owner's id. A claim that was written after `since` needs none before a renewal."""
        with self._guard:
            if self._held == 0:
                if since is None:
                    self._renew()
                else:
                    self._renewed = since
            self._held += 1
            self._keep_it()
        try:
            yield self.owner
        finally:
            with self._guard:
                self._held -= 1
                if self._held == 0:
                    if self._written:
                        self._written = False
                        self._remove(self._path)
                    self._end_idle()

    def stands(self, owner: str) -> bool:
        """False once nobody may rely any more on what this owner holds; it never becomes true again."""
        with self._guard:
            self._give_up_late()
            return owner == self.owner

    def remove(self, path: str) -> None:
        """Delete a file of this process's own; where the store is away, as soon as it is back."""
        with self._guard:
            self._remove(path)
            self._keep_it()

    def bury(self, owner: str) -> None:
        """Remove the lease of an owner that is proven dead."""
        if owner and owner != self.owner:
            self.store.delete(_path_of(owner))

    @property
    def _path(self) -> str:
        return _path_of(self.owner)

    def _remove(self, path: str) -> None:
        try:
            self.store.delete(path)
        except OSError:
            self._later.append(path)

    def _renew(self) -> None:
        began = now()
        self._written = True
        mine = {"v": 1, "owner": self.owner, **ProcessIdentity.own().to_dict()}
        write_json(self.store, self._path, {**mine, "renewed_at": datetime.now(UTC).isoformat()})
        self._renewed = began

    def _give_up_late(self) -> None:
        if self._held and now() - self._renewed > self.life.total_seconds() - self.renewal:
            self._later.append(self._path)
            self.owner = uuid.uuid4().hex
            self._renewed = now()

    def _keep_it(self) -> None:
        """Have the lease renewed, and what could not be deleted deleted, by a thread that ends when all is done."""
        if (self._held or self._later) and (self._keeper is None or self._idle.is_set()):
            self._idle = threading.Event()
            self._keeper = threading.Thread(target=self._keep, args=(self._idle,), name="owner-lease", daemon=True)
            self._keeper.start()

    def _keep(self, idle: threading.Event) -> None:
        while not idle.wait(self.renewal):
            with self._guard:
                if idle.is_set():
                    return
                self._give_up_late()
                with suppress(OSError):  # a full disk, or a backend away, must not end this: the next time may work
                    if self._held:
                        self._renew()
                    while self._later:
                        self.store.delete(self._later[-1])
                        self._later.pop()
                self._end_idle()

    def _end_idle(self) -> None:
        if not self._held and not self._later:
            self._idle.set()


def lease_expired(store: Store, owner: str, life: timedelta = LEASE_LIFE) -> bool:
    """True if an owner has not renewed its lease for 60 s, or has none any more."""
    age = store.age(_path_of(owner)) if owner else None
    return age is None or age > life


def dead_owners(store: Store) -> Iterator[str]:
    """The owners whose process is proven gone, or whom nobody here can see and whose lease has expired."""
    for name in store.names("leases"):
        owner = name.removesuffix(".json")
        lease = read_json(store, f"leases/{name}")
        alive = None if lease is None else ProcessIdentity.read(lease).alive()
        if lease is not None and (alive is False or (alive is None and lease_expired(store, owner))):
            yield owner


def _path_of(owner: str) -> str:
    return f"leases/{owner}.json"


def now() -> float:
    """Seconds of a clock that also goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
