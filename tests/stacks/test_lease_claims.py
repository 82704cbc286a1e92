"""Claims without file locks: who holds one is alone, whoever dies, stops or loses the backend, and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from servers import Place

from launchers.testing.contract import eventually
from stacks.claims import Claiming, Claims
from stacks.engine import stack_name
from stacks.errors import BackendError, ClaimLostError, StackLockedError
from stacks.lease_claims import LeaseClaims
from stacks.leases import OwnerLease
from stacks.location import Location
from stacks.processes import ProcessIdentity
from stacks.store import LocalStore, Store, open_store, read_json, write_json

STACK = stack_name("r", 0)
LIMIT = timedelta(seconds=60)
NO_TIME = timedelta(0)
# Seconds in the tests' own leases. S3 tells whole seconds, so that a life has to be a few of them.
LIFE, RENEWAL = timedelta(seconds=4), 0.5
_CHILD = """
import os, signal, sys, time
from datetime import timedelta
from stacks import processes
from stacks.engine import stack_name
from stacks.errors import ClaimLostError
from stacks.lease_claims import LeaseClaims
from stacks.leases import OwnerLease
from stacks.location import Location
from stacks.store import open_store

class Deadly:
    '''Kills this process at its n-th write, before or after it.'''
    def __init__(self, store, count, after):
        self.store, self.count, self.after = store, count, after
    def __getattr__(self, name):
        call = getattr(self.store, name)
        if name not in ("write", "create", "delete"):
            return call
        def counted(*words):
            self.count -= 1
            if self.count == 0 and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = call(*words)
            if self.count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        return counted

def claims(count=0, after=False):
    store = Deadly(open_store(Location(sys.argv[1])), count, after)
    lease = OwnerLease(store, life=timedelta(seconds=float(sys.argv[2])), renewal=float(sys.argv[3]))
    return LeaseClaims(store, lease)

stack, limit = stack_name("r", 0), timedelta(seconds=60)
"""
_HOLD = """
if len(sys.argv) > 4:
    processes.here = lambda: sys.argv[4]  # as another host would say
with claims().hold(stack, "launch", limit) as claim:
    claim.tell(os.getpid())
    print("held", flush=True)
    for line in sys.stdin:
        try:
            claim.assure()
            print("stands", flush=True)
        except ClaimLostError:
            print("lost", flush=True)
"""
_COUNT = """
mine = claims()
for _ in range(int(sys.argv[4])):
    with mine.hold(stack, "launch", limit) as claim:
        claim.assure()
        text = (claim.store.read("counter") or b"0").decode()
        claim.store.write("counter", str(int(text) + 1).encode())
"""
_DIE = """
with claims(int(sys.argv[4]), sys.argv[5] == "after").hold(stack, "launch", limit) as claim:
    claim.tell(os.getpid())
    while not claim.store.names("leases"):  # until its first renewal
        time.sleep(0.01)
"""


@pytest.fixture(params=["file", "s3", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/state"
    place: Place = request.getfixturevalue(f"{request.param}_place")
    return place.url


@pytest.fixture
def store(url: str) -> Store:
    return open_store(Location(url))


@pytest.fixture
def claims(store: Store) -> LeaseClaims:
    return LeaseClaims(store, OwnerLease(store, LIFE, RENEWAL))


def child(url: str, code: str, *words: object) -> subprocess.Popen[str]:
    told = [url, str(LIFE.total_seconds()), str(RENEWAL), *map(str, words)]
    command = [sys.executable, "-c", _CHILD + code, *told]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def holding(url: str, *place: str) -> Iterator[subprocess.Popen[str]]:
    with child(url, _HOLD, *place) as process:
        try:
            assert said(process) == "held"
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], ask: str | None = None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if ask is not None:
        process.stdin.write(f"{ask}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def traces(store: Store) -> list[str]:
    folders = ("leases", f"claims/{STACK.shard}/{STACK.stack}")
    claimed = [f"{folder}/{name}" for folder in folders for name in store.names(folder)]
    return [*claimed, *store.names("clock")]


def test_of_many_processes_one_at_a_time_holds_the_claim(url: str, store: Store) -> None:
    processes = [child(url, _COUNT, 5) for _ in range(4)]

    assert [process.wait() for process in processes] == [0] * 4
    for process in processes:
        process.communicate()
    assert store.read("counter") == b"20"
    assert traces(store) == []


def test_a_claim_that_is_held_is_waited_for_and_its_holder_named(url: str, claims: LeaseClaims) -> None:
    with holding(url) as holder:
        with pytest.raises(StackLockedError, match=f"launch by process {holder.pid}"):
            claims.hold(STACK, "test", NO_TIME).__enter__()
        who = claims.holder(STACK)
        assert who is not None
        assert who["pid"] == holder.pid
        assert list(claims.stale()) == []


def test_the_claim_of_a_killed_holder_is_taken_over_at_once_with_its_note(
    url: str, store: Store, claims: LeaseClaims
) -> None:
    with holding(url) as holder:
        holder.kill()
        holder.wait()
        assert list(claims.stale()) == [STACK]
        assert claims.holder(STACK) is None

        with claims.hold(STACK, "test", NO_TIME) as claim:
            assert [left.process and left.process.pid for left in claim.left] == [holder.pid]
        assert list(claims.stale()) == [STACK]  # nobody has put right yet what it left
        with claims.hold(STACK, "test", NO_TIME) as claim:
            claim.settle()

    assert traces(store) == []


def test_a_living_holder_on_another_host_is_never_broken_and_a_dead_one_when_its_lease_is_over(
    url: str, store: Store, claims: LeaseClaims
) -> None:
    with holding(url, "elsewhere/1") as holder:
        with pytest.raises(StackLockedError, match=f"process {holder.pid}"):
            claims.hold(STACK, "test", LIFE * 2).__enter__()
        assert said(holder, "?") == "stands"
        holder.kill()
        holder.wait()
        with pytest.raises(StackLockedError):
            claims.hold(STACK, "test", NO_TIME).__enter__()

        with claims.hold(STACK, "test", LIMIT) as claim:
            assert [left.who["pid"] for left in claim.left] == [holder.pid]
            claim.settle()

    assert traces(store) == []


def test_a_holder_that_was_stopped_for_too_long_learns_it_and_harms_nobody(url: str, claims: LeaseClaims) -> None:
    with holding(url, "elsewhere/1") as holder:
        holder.send_signal(signal.SIGSTOP)
        with claims.hold(STACK, "test", LIMIT) as claim:
            holder.send_signal(signal.SIGCONT)

            assert said(holder, "?") == "lost"
            holder.communicate()  # it lets go
            claim.assure()
            with pytest.raises(StackLockedError, match=f"process {os.getpid()}"):
                claims.hold(STACK, "another", NO_TIME).__enter__()


def test_a_holder_here_that_is_stopped_is_not_broken(url: str, claims: LeaseClaims) -> None:
    with holding(url) as holder:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(StackLockedError):
            claims.hold(STACK, "test", LIFE * 1.5).__enter__()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_death_at_any_write_leaves_nothing_that_the_next_holder_does_not_clear(
    url: str, store: Store, claims: LeaseClaims, count: int, when: str
) -> None:
    """The writes: claim, note, lease, lease away, claim away."""
    with child(url, _DIE, count, when) as holder:
        code = holder.wait()
    with claims.hold(STACK, "test", NO_TIME) as claim:
        claim.settle()

    assert code == -signal.SIGKILL
    assert traces(store) == []


def test_a_claim_that_says_nothing_counts_until_it_is_as_old_as_a_lease(store: Store, claims: LeaseClaims) -> None:
    path = f"claims/{STACK.shard}/{STACK.stack}/torn"
    store.write(path, b'{"host": "h", "pl')
    with pytest.raises(StackLockedError):
        claims.hold(STACK, "test", NO_TIME).__enter__()

    with claims.hold(STACK, "test", LIMIT):
        pass

    assert store.read(path) is None


def test_a_claim_that_is_held_for_a_moment_needs_no_lease_and_one_that_lasts_has_one(
    store: Store, claims: LeaseClaims
) -> None:
    with claims.hold(STACK, "test", NO_TIME) as first:
        at_once = store.names("leases")
        assert eventually(lambda: store.names("leases") != [])
        with claims.hold(stack_name("another", 0), "test", NO_TIME):
            pass
        assert store.names("leases") == [f"{first.lease.owner}.json"]  # type: ignore[attr-defined] # a LeaseClaim

    assert at_once == []
    assert traces(store) == []


def test_a_claim_without_a_lease_counts_until_it_is_as_old_as_one(store: Store, claims: LeaseClaims) -> None:
    who = {**ProcessIdentity.own().to_dict(), "place": "elsewhere/1", "owner": "o", "what": "launch"}
    write_json(store, f"claims/{STACK.shard}/{STACK.stack}/begun", who)

    with pytest.raises(StackLockedError):
        claims.hold(STACK, "test", NO_TIME).__enter__()
    with claims.hold(STACK, "test", LIMIT) as claim:
        assert [left.who for left in claim.left] == [who]


class Away(LocalStore):
    """A store whose backend is away while `away` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.away = threading.Event()
        self.asked = threading.Event()

    def write(self, path: str, content: bytes) -> None:
        self._fail()
        super().write(path, content)

    def delete(self, path: str) -> None:
        self._fail()
        super().delete(path)

    def _fail(self) -> None:
        if self.away.is_set():
            self.asked.set()
            message = "away"
            raise BackendError(message)


def test_what_cannot_be_released_is_released_when_the_backend_is_back(tmp_path: Path) -> None:
    store = Away(tmp_path)
    lease = OwnerLease(store, LIFE, 0.05)
    with LeaseClaims(store, lease).hold(STACK, "test", NO_TIME):
        store.away.set()
    assert traces(store) != []
    store.asked.clear()
    assert store.asked.wait(30)  # it goes on trying
    store.away.clear()
    keeper = lease._keeper
    assert keeper is not None
    keeper.join(30)

    assert traces(store) == []


def test_a_holder_whose_backend_is_away_for_too_long_does_not_go_on(tmp_path: Path) -> None:
    store = Away(tmp_path)
    claims = LeaseClaims(store, OwnerLease(store, timedelta(seconds=0.5), 0.05))
    with claims.hold(STACK, "test", NO_TIME) as claim:
        claim.assure()
        store.away.set()
        began = time.monotonic()
        lost = False
        while not lost and time.monotonic() < began + 30:
            try:
                claim.assure()
            except ClaimLostError:
                lost = True
        store.away.clear()

        assert lost
        with pytest.raises(ClaimLostError):
            claim.assure()


@pytest.mark.parametrize("kind", ["locked", "leased"])
def test_stale_tells_of_dead_holders_only_and_takes_nothing(tmp_path: Path, kind: str) -> None:
    store = LocalStore(tmp_path)
    lease = OwnerLease(store)
    claims: Claiming = Claims(tmp_path / "claims", lease) if kind == "locked" else LeaseClaims(store, lease)
    left = stack_name("left", 0)
    path = f"claims/{left.shard}/{left.stack}" + ("" if kind == "locked" else "/x")
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(store, path, {**ProcessIdentity.own().to_dict(), "pid": dead.pid, "owner": "o"})
    before = read_json(store, path)
    with claims.hold(STACK, "test", NO_TIME):
        assert list(claims.stale()) == [left]
        assert read_json(store, path) == before
        with claims.hold(left, "test", NO_TIME) as claim:
            claim.settle()

    assert list(claims.stale()) == []
