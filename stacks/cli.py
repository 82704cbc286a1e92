"""The engine that always works: the `pulumi` command line, driven as the Automation API drives it, but leaner.

One process per operation: outputs are read from the state, stacks are made and removed as files, and no history is
read here. https://www.pulumi.com/docs/iac/automation-api/
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from stacks.claims import Claim
from stacks.engine import Adoption, AttachedProvider, Change, Deployment, StackName
from stacks.errors import EngineError, RunLauncherError, StackLockedError, Started
from stacks.leases import lease_expired
from stacks.locks import proven_dead
from stacks.operation import Operation, operation, refuse_fork
from stacks.scratch import preview_folder
from stacks.state import StateFiles, adopted
from stacks.store import LocalStore

if TYPE_CHECKING:
    from stacks.backend import Backend
    from stacks.setup import Cli

_LEFT_ALONE: Final = 5.0  # seconds that the process of a dead launcher gets to end by itself
_POLL: Final = (0.05, 0.5)  # seconds between two looks at a lock that is waited for: first, last
_NO_DEADLOCK: Final = {"PULUMI_DIY_BACKEND_PARALLEL": "1", "GOMAXPROCS": "4"}
"""Pulumi's listing in PostgreSQL asks for each row while it holds the connection of the listing, out of a pool of
2 x GOMAXPROCS: several listings at once take all connections, and wait for one another for ever (bucket.go)."""
_TAKES: Final = timedelta(seconds=2)  # far above the time between beginning to write a lock and its being there
_QUIET: Final = ("--skip-preview", "--yes", "--suppress-progress", "--suppress-outputs")
_INLINE: Final = ("--exec-kind", "auto.inline", *_QUIET)


class CliEngine:
    """See Engine. `cli` is called at the first operation, so that reading loads and installs nothing."""

    name = "cli"

    def __init__(self, backend: Backend, cli: Callable[[], Cli]) -> None:
        self._backend = backend
        self._cli = cli
        self._state = StateFiles(backend.store)

    def prepare(self) -> None:
        """See Engine."""
        refuse_fork()
        self._backend.prove()
        self._cli()

    def up(self, deployment: Deployment, claim: Claim, timeout: timedelta | None = None) -> dict[str, Any]:
        """See Engine."""
        stack = deployment.stack

        def perform(left: timedelta | None) -> None:
            self._state.make(stack)
            self.forget_pending(stack, claim)
            with self._operation(stack, claim) as work, _caught(deployment.program) as program:
                self._declare(work, deployment)
                with work.serving(program) as address:
                    work.run(["up", f"--client={address}", "-s", stack.full, *_INLINE], deployment.providers, left)
                claim.assure()
                self._keep_salt(work)

        self._unlocked(stack, claim, timeout, perform)
        return self._state.outputs(stack) or {}

    def preview(self, deployment: Deployment, timeout: timedelta | None = None) -> list[Change]:
        """See Engine. Works on a copy of the state, so that it needs no lock and leaves no trace."""
        stack = deployment.stack
        with (
            preview_folder(self._backend.home / "work") as around,
            operation(self._cli(), around / "o", self._preview_environment(around)) as work,
            _caught(deployment.program) as program,
        ):
            copy = StateFiles(LocalStore(around / "o" / "state"))
            copy.make(stack)
            latest = self._state.deployment(stack)
            if latest:
                copy.write(stack, latest)
            self._declare(work, deployment)
            with work.serving(program) as address:
                arguments = ["preview", f"--client={address}", "-s", stack.full, "--exec-kind", "auto.inline"]
                report = work.run(arguments, deployment.providers, timeout)
        return [Change(step, urn) for step, urn in report.steps]

    def destroy(
        self,
        stack: StackName,
        claim: Claim,
        providers: tuple[AttachedProvider, ...] = (),
        timeout: timedelta | None = None,
    ) -> int:
        """See Engine. Runs outside any project, so that no program and no language host is loaded."""
        counts: list[int] = []

        def perform(left: timedelta | None) -> None:
            self.forget_pending(stack, claim)
            counts.append(len(self._state.resources(stack)))
            if counts[-1]:
                self._state.begin_history(stack)
                with self._operation(stack, claim) as work:
                    work.run(["destroy", "-s", stack.full, *_QUIET], providers, left)

        self._unlocked(stack, claim, timeout, perform)
        return counts[0]

    def remove(self, stack: StackName, claim: Claim) -> None:
        """See Engine."""
        self.unlock(stack, claim)
        self._state.remove(stack)
        shutil.rmtree(self._backend.scratch(stack), ignore_errors=True)  # what a killed operation left

    def adopt(self, deployment: Deployment, adoption: Adoption, claim: Claim, timeout: timedelta | None = None) -> None:
        """See Engine."""
        stack = deployment.stack
        self._unlocked(stack, claim, timeout, lambda _: None)
        if self._backend.salt() is None or self._state.deployment(stack) in (None, {}):
            self.up(Deployment(stack, lambda: None), claim, timeout)  # makes the stack and its encryption salt
        latest = self._state.deployment(stack) or {}
        merged = adopted(stack, adoption, latest.get("secrets_providers") or {})
        self._state.write(stack, {**merged, "manifest": latest["manifest"]})
        with self._operation(stack, claim) as work:
            self._declare(work, deployment)
            with work.serving(deployment.program) as address:  # it is not run, but a project has to have one
                work.run(["refresh", f"--client={address}", "-s", stack.full, *_INLINE], deployment.providers, timeout)

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
            if process is not None and process.alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
                    if patience and not process.await_end(patience.total_seconds()):
                        os.kill(process.pid, signal.SIGKILL)  # it waits for a provider that does not answer
                return True
        return False

    def unlock(self, stack: StackName, claim: Claim, *, force: bool = False) -> list[str]:
        """See Engine."""
        claim.assure()
        self._settle(claim)
        for path, age in self._state.torn_locks(stack).items():
            if age < _TAKES and not force:
                message = "another Pulumi command is just about to work on this run; try again when it is done"
                raise StackLockedError(message, started=Started.UNKNOWN)
            self._state.unlock(path)
        broken = []
        for path, lock in self._state.locks(stack).items():
            words = (
                f"{lock.get('username')}@{lock.get('hostname')} (pid {lock.get('pid')}) since {lock.get('timestamp')}"
            )
            if not force and not self._dead(lock, claim):
                message = (
                    f"another Pulumi command works on this run, or died while it did: {words}. Wait for it, or, if "
                    "it is gone for certain, repeat this with --break-lock"
                )
                raise StackLockedError(message)
            self._state.unlock(path)
            broken.append(words)
        claim.settle()
        return broken

    def _unlocked(
        self,
        stack: StackName,
        claim: Claim,
        timeout: timedelta | None,
        perform: Callable[[timedelta | None], None],
    ) -> None:
        """Perform an operation as soon as no living process locks the stack; it gets what is left of the time."""
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        pause = _POLL[0]
        while True:
            left = None if deadline is None else timedelta(seconds=max(0.0, deadline - time.monotonic()))
            try:
                self.unlock(stack, claim)
                perform(left)
            except StackLockedError:
                if left is not None and left.total_seconds() <= pause:
                    raise
            else:
                return
            time.sleep(pause)
            pause = min(pause * 1.5, _POLL[1])

    def _dead(self, lock: dict[str, Any], claim: Claim) -> bool:
        """True if the lock is one that a dead holder of this claim had taken, or whose process is proven gone."""
        for left in claim.left:
            process = left.process
            if process is not None and (process.pid, process.host) == (lock.get("pid"), lock.get("hostname")):
                alive = process.alive()
                if alive is None:
                    return lease_expired(self._backend.store, str(left.who.get("owner", "")))
                return not alive
        folder = self._backend.location.folder
        return folder is not None and proven_dead(lock, folder)

    @staticmethod
    def _settle(claim: Claim) -> None:
        """End the process that a dead holder of this claim had started: nobody waits for its answer any more."""
        for process in filter(None, (left.process for left in claim.left)):
            for number in (0, signal.SIGTERM, signal.SIGKILL):  # first it may end by itself
                if not process.alive():
                    break
                with suppress(ProcessLookupError):
                    os.kill(process.pid, number)
                process.await_end(_LEFT_ALONE)

    @contextmanager
    def _operation(self, stack: StackName, claim: Claim) -> Iterator[Operation]:
        def forget_lock(pid: int) -> None:
            for path, lock in self._state.locks(stack).items():
                if lock.get("pid") == pid:
                    self._state.unlock(path)

        folder = self._backend.scratch(stack)
        with operation(self._cli(), folder, self._environment(self._backend.location.folder), claim.note) as work:
            work.on_killed = forget_lock
            work.on_started = claim.tell
            work.assure = claim.assure
            work.hide = self._backend.location.hide
            yield work

    def _environment(self, root: Path | None) -> dict[str, str]:
        """What names backend and key to the engine; without a folder it is the backend's own URL."""
        key = {"PULUMI_CONFIG_PASSPHRASE_FILE": str(self._backend.key_file())}
        if root is not None:
            return {**key, "PULUMI_BACKEND_URL": f"file://{root}?metadata=skip"}
        one_by_one = _NO_DEADLOCK if self._backend.location.scheme == "postgres" else {}
        return {**key, **one_by_one, "PULUMI_BACKEND_URL": self._backend.url}

    def _preview_environment(self, around: Path) -> dict[str, str]:
        """A backend of the preview's own; its key is the real one, or one to throw away where there is none yet."""
        key = self._backend.key_file() if self._backend.identity() is not None else around / "key"
        if key.parent == around:
            key.write_text(secrets.token_hex(32), encoding="ascii")
        url = f"file://{around / 'o' / 'state'}?metadata=skip"
        return {"PULUMI_BACKEND_URL": url, "PULUMI_CONFIG_PASSPHRASE_FILE": str(key)}

    def _declare(self, work: Operation, deployment: Deployment) -> None:
        work.declare(deployment.stack, deployment.config, self._backend.salt())

    def _keep_salt(self, work: Operation) -> None:
        if self._backend.salt() is None:
            settings = yaml.safe_load(work.settings.read_text(encoding="utf-8")) or {}
            self._backend.keep_salt(settings["encryptionsalt"])


@contextmanager
def _caught(program: Callable[[], None]) -> Iterator[Callable[[], None]]:
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
