"""Claims where no kernel locks files: on S3 and PostgreSQL.

claims/<hh>/<stack>/<name>: one file for each contender, of a name that nobody else ever uses.

A contender writes its file, then lists the folder: it holds the claim once no other living one is there. Since a
listing shows whatever was written before it, of two contenders at least one sees the other, so never do two hold it.
Of several that see each other, the one whose name comes first stays and looks again, and the others withdraw. Deleting
what is dead deletes by its name, and so can never hit a living one.

A claim is dead when its process is proven gone (from the same place), or, where nobody can see that process, when for
60 s, by the store's own clock, neither its file was written nor its owner's lease renewed. So a claim needs a lease
only once it is older than the time between two renewals (leases.py). A holder that was away for so long finds out
before it goes on (Claim.assure). Deaths, between each pair of writes:
- after its file was written, before its lease: the file's own age counts as the lease's.
- after its lease was removed, before its file: likewise; nothing was left undone.
- of one who had taken over: the files that it found are still there, each with its note.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from stacks.claims import Claim, Left, held_by, note_of
from stacks.engine import StackName
from stacks.errors import ClaimLostError, StackLockedError, Started
from stacks.leases import OwnerLease, lease_expired, now
from stacks.processes import ProcessIdentity
from stacks.store import Store, walk, write_json

_POLL: Final = (0.05, 1.0)  # seconds between two looks at a claim that is held: first, last
_STAY: Final = 2.0  # seconds that the first of several contenders waits for the others to withdraw


@dataclass
class LeaseClaim(Claim):
    """See Claim. `mine` is the path of its file, `who` what stands in it."""

    store: Store = field(kw_only=True)
    lease: OwnerLease = field(kw_only=True)
    mine: str = field(kw_only=True)
    who: dict[str, Any] = field(kw_only=True)
    dead: dict[str, Left] = field(default_factory=dict, kw_only=True)
    settled: bool = field(default=False, kw_only=True)

    def assure(self) -> None:
        """See Claim."""
        if not self.lease.stands(str(self.who["owner"])):
            message = (
                "the backend was away, or this process was stopped, for so long that others may have taken over this "
                "run: look at its status, then try again"
            )
            raise ClaimLostError(message, started=Started.UNKNOWN)

    def tell(self, pid: int, *, shared: bool = False) -> None:
        """See Claim."""
        self.assure()
        write_json(self.store, self.mine, {**self.who, "note": note_of(pid, shared=shared)})

    def settle(self) -> None:
        """See Claim."""
        self.settled = True


class LeaseClaims:
    """See Claiming. The claims of one store."""

    def __init__(self, store: Store, lease: OwnerLease) -> None:
        self._store = store
        self._lease = lease

    @contextmanager
    def hold(self, stack: StackName, what: str, timeout: timedelta, *, seems_free: bool = False) -> Iterator[Claim]:
        """See Claiming."""
        owner = self._lease.owner
        who = {**ProcessIdentity.own().to_dict(), "owner": owner, "what": what}
        mine = f"{_folder(stack)}/{uuid.uuid4().hex}"
        who_since = {**who, "since": datetime.now(UTC).isoformat()}
        dead, written = self._acquire(stack, mine, who_since, timeout, seems_free=seems_free)
        try:
            with self._lease(written):
                claim = LeaseClaim(
                    stack,
                    left=tuple(dead.values()),
                    store=self._store,
                    lease=self._lease,
                    mine=mine,
                    who=who,
                    dead=dead,
                )
                yield claim
                self._forget(claim)
        finally:
            self._lease.remove(mine)

    def holder(self, stack: StackName) -> dict[str, Any] | None:
        """See Claiming."""
        return next((each.who for each in self._sort(stack)[0].values()), None)

    def look(self, stack: StackName) -> tuple[Left, ...]:
        """See Claiming."""
        names = (f"{_folder(stack)}/{name}" for name in self._store.names(_folder(stack)))
        return tuple(left for path in names if (left := self._read(path)) is not None)

    def held(self, stack: StackName) -> bool:
        """See Claiming."""
        return bool(self._sort(stack)[0])

    def stale(self) -> Iterator[StackName]:
        """See Claiming."""
        for shard, name in walk(self._store, "claims"):
            stack = StackName.sorted_in(shard, name)
            living, dead = self._sort(stack)
            if dead and not living:
                yield stack

    def _acquire(
        self, stack: StackName, mine: str, who: dict[str, Any], timeout: timedelta, *, seems_free: bool
    ) -> tuple[dict[str, Left], float]:
        """Wait until nobody else holds the claim; returns what dead holders left, by path, and when it was written."""
        deadline, pause = time.monotonic() + timeout.total_seconds(), _POLL[0]
        while True:
            living = {} if seems_free else self._sort(stack)[0]
            seems_free = False
            if not living:
                written = now()
                try:
                    write_json(self._store, mine, who)
                    dead = self._alone(stack, mine)
                except BaseException:
                    self._lease.remove(mine)
                    raise
                if dead is not None:
                    return dead, written
                self._lease.remove(mine)
                living, _ = self._sort(stack)
            if time.monotonic() >= deadline:
                who = next((each.who for each in living.values()), {})
                raise StackLockedError(held_by(who), started=Started.UNKNOWN)
            time.sleep(min(random.uniform(0.5, 1.0) * pause, max(0.0, deadline - time.monotonic())))  # noqa: S311
            pause = min(pause * 1.5, _POLL[1])

    def _alone(self, stack: StackName, mine: str) -> dict[str, Left] | None:
        """What dead holders left once no other contender is there; None if this one has to withdraw."""
        deadline = time.monotonic() + _STAY
        while True:
            living, dead = self._sort(stack, but=mine)
            if not living:
                return dead
            if min(living) < mine or time.monotonic() > deadline:
                return None
            time.sleep(random.uniform(0.5, 1.0) * _POLL[0])  # noqa: S311 - no secret, only never in step

    def _sort(self, stack: StackName, but: str = "") -> tuple[dict[str, Left], dict[str, Left]]:
        """The claims on a stack by path: the living, and the dead; one that vanishes meanwhile is left out."""
        living: dict[str, Left] = {}
        dead: dict[str, Left] = {}
        for name in self._store.names(_folder(stack)):
            path = f"{_folder(stack)}/{name}"
            left = None if path == but else self._read(path)
            if left is None:
                continue
            if not self._is_dead(path, left):
                living[path] = left
            elif self._read(path) is not None:  # else it was released while we looked at its lease
                dead[path] = left
        return living, dead

    def _is_dead(self, path: str, left: Left) -> bool:
        alive = ProcessIdentity.read(left.who).alive() if ProcessIdentity.stands_in(left.who) else None
        if alive is not None:
            return not alive
        owner = str(left.who.get("owner", ""))
        if not lease_expired(self._store, owner, self._lease.life):
            return False
        age = self._store.age(path)
        return age is not None and age > self._lease.life

    def _read(self, path: str) -> Left | None:
        content = self._store.read(path)
        if content is None:
            return None
        try:
            who = json.loads(content)
        except ValueError:
            who = {}
        return Left(who, who.get("note")) if isinstance(who, dict) else Left({})

    def _forget(self, claim: LeaseClaim) -> None:
        """Delete what dead holders left, if it is put right or there was nothing to put right."""
        for path, left in claim.dead.items():
            if claim.settled or left.process is None:
                self._lease.bury(str(left.who.get("owner", "")))
                self._store.delete(path)


def _folder(stack: StackName) -> str:
    return f"claims/{stack.shard}/{stack.stack}"
