"""What both engines share: all that concerns a stack's files, and nothing that performs an operation."""

from __future__ import annotations

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stacks.claims import Claim
from stacks.engine import Adoption, Deployment, StackName
from stacks.errors import EngineError, RunLauncherError, StackLockedError, Started
from stacks.leases import lease_expired
from stacks.locks import proven_dead
from stacks.state import StateFiles, adopted

if TYPE_CHECKING:
    from stacks.backend import Backend

_LEFT_ALONE: Final = 5.0  # seconds that the process of a dead launcher gets to end by itself
_POLL: Final = (0.05, 0.5)  # seconds between two looks at a lock that is waited for: first, last
_TAKES: Final = timedelta(seconds=2)  # far above the time between beginning to write a lock and its being there


class StateEngine(ABC):
    """See Engine. Locks, outputs and the list of stacks, as they stand in the backend's files.

    `finds_locks`: an operation finds another one's lock without a cost.
    """

    finds_locks: ClassVar[bool] = False

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._state = StateFiles(backend.store)

    @abstractmethod
    def up(self, deployment: Deployment, claim: Claim, timeout: timedelta | None = None) -> dict[str, Any]:
        """See Engine."""

    @abstractmethod
    def _refresh(self, deployment: Deployment, claim: Claim, timeout: timedelta | None) -> None:
        """Bring the state up to date with what its providers read."""

    def adopt(
        self,
        deployment: Deployment,
        adoptions: Sequence[Adoption],
        outputs: Mapping[str, Any],
        claim: Claim,
        timeout: timedelta | None = None,
    ) -> None:
        """See Engine."""
        stack = deployment.stack
        self._unlocked(stack, claim, timeout, lambda _: None)
        latest = self._state.mended(stack) or {}
        if not latest:
            self.up(Deployment(stack, lambda: None), claim, timeout)  # makes the stack and its encryption salt
            latest = self._state.deployment(stack) or {}
        salt = (latest.get("secrets_providers") or {}).get("state", {}).get("salt")
        if salt and self._backend.salt() is None:  # of a first launch, which died before it was kept
            self._backend.keep_salt(str(salt))
        merged = adopted(stack, adoptions, outputs, latest.get("secrets_providers") or {})
        self._state.write(stack, {**merged, "manifest": latest["manifest"]})
        self._refresh(deployment, claim, timeout)

    def remove(self, stack: StackName, claim: Claim) -> None:
        """See Engine."""
        self.unlock(stack, claim)
        self._state.remove(stack)
        shutil.rmtree(self._backend.scratch(stack), ignore_errors=True)  # what a killed operation left

    def forget_pending(self, stack: StackName, claim: Claim) -> list[str]:  # noqa: ARG002 - the claim is the licence
        """See Engine."""
        return self._state.forget_pending(stack)

    def outputs(self, stack: StackName) -> dict[str, Any] | None:
        """See Engine."""
        return self._state.outputs(stack)

    def stacks(self) -> Iterator[StackName]:
        """See Engine."""
        return self._state.stacks()

    def cancel(self, stack: StackName, patience: timedelta = timedelta(0)) -> bool:
        """See Engine."""
        for left in self._backend.claims.look(stack):
            process = left.process
            if process is None or not process.alive():
                continue
            if left.shared:
                self._ask_to_stop(stack, patience.total_seconds())
                return True
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
                if patience and not process.await_end(patience.total_seconds()):
                    os.kill(process.pid, signal.SIGKILL)  # it waits for a provider that does not answer
            return True
        return False

    def unlock(self, stack: StackName, claim: Claim, *, force: bool = False) -> list[str]:
        """See Engine."""
        claim.assure()
        settle(claim)
        there = self._state.lock_files(stack)
        for path, age in self._state.torn_locks(there).items():
            if age < _TAKES and not force:
                message = "another Pulumi command is just about to work on this run; try again when it is done"
                raise StackLockedError(message, started=Started.UNKNOWN)
            self._state.unlock(path)
        broken = []
        for path, lock in self._state.locks(there).items():
            words = (
                f"{lock.get('username')}@{lock.get('hostname')} (pid {lock.get('pid')}) since {lock.get('timestamp')}"
            )
            if not force and not self._dead(path, lock, claim):
                message = (
                    f"another Pulumi command works on this run, or died while it did: {words}. Wait for it, or, if "
                    "it is gone for certain, repeat this with --break-lock"
                )
                raise StackLockedError(message)
            self._state.unlock(path)
            broken.append(words)
        claim.settle()
        return broken

    def _ask_to_stop(self, stack: StackName, patience: float) -> None:
        """Have an operation stop in a process that goes on with others: by the lock that it holds."""
        for lock in self._state.lock_files(stack):
            try:
                for now in (False, True):
                    self._state.ask_to_stop(lock, now=now)
                    if not patience or self._is_released(stack, lock, patience):
                        break
            finally:
                if patience or lock not in self._state.lock_files(stack):  # else its holder takes it away
                    self._state.ask_no_more(lock)

    def _is_released(self, stack: StackName, lock: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while lock in self._state.lock_files(stack):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL[0])
        return True

    def _unlocked(
        self,
        stack: StackName,
        claim: Claim,
        timeout: timedelta | None,
        perform: Callable[[timedelta | None], None],
    ) -> None:
        """Perform an operation as soon as no living process locks the stack; it gets what is left of the time."""
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        pause, look = _POLL[0], bool(claim.left) or not self.finds_locks
        while True:
            left = None if deadline is None else timedelta(seconds=max(0.0, deadline - time.monotonic()))
            try:
                if look:
                    self.unlock(stack, claim)
                look = True
                perform(left)
            except StackLockedError:
                if left is not None and left.total_seconds() <= pause:
                    self.unlock(stack, claim)  # which says who it is
                    raise
            else:
                return
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL[1])

    def _dead(self, path: str, lock: dict[str, Any], claim: Claim) -> bool:
        """True if the lock was taken by a holder of this claim, who is none any more, or its process is proven gone."""
        over = self._state.is_over(path, lock)
        if over is not None:
            return over
        for left in claim.left:
            process = left.process
            if process is not None and (process.pid, process.host) == (lock.get("pid"), lock.get("hostname")):
                alive = process.alive()
                if alive is None:
                    return lease_expired(self._backend.store, str(left.who.get("owner", "")))
                return not alive
        folder = self._backend.location.folder
        return folder is not None and proven_dead(lock, folder)


def settle(claim: Claim) -> None:
    """End the process that a dead holder of this claim had started: nobody waits for its answer any more."""
    for process in filter(None, (left.process for left in claim.left)):
        for number in (0, signal.SIGTERM, signal.SIGKILL):  # first it may end by itself
            if not process.alive():
                break
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
            process.await_end(_LEFT_ALONE)


@contextmanager
def caught(program: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Let an error of ours that the program raises come out as itself, not as the engine's account of it."""
    raised: list[RunLauncherError] = []

    def run() -> None:
        try:
            program()
        except RunLauncherError as error:
            raised.append(error)
            raise

    try:
        yield run
    except EngineError as error:
        if raised:
            raise raised[0] from error
        raise
