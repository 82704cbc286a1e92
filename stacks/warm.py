"""The engine that is kept running: Pulumi's own, in a process of ours that all threads share (stacks/warm).

It holds no state: each operation is handed the stack's latest deployment and hands back what came of it. So the locks
are taken and the checkpoints written here, the same files as any other engine's, and as few as can be: the lock, one
checkpoint at the end, and a first history. What an operation makes last, before that checkpoint is written, is known
from the run's record, which is written first, and found at the target by its labels; of a program that makes several
things, those before the last are in a checkpoint before it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulumi.runtime.proto import engine_pb2

from stacks.claims import Claim
from stacks.engine import Change, Deployment, Provider, StackName
from stacks.errors import ClaimLostError, EngineError, Started, TimeLimitError
from stacks.operation import Report, failure, refuse_fork
from stacks.plugins import attached, executables, variables
from stacks.state_engine import StateEngine, caught
from stacks.warm_server import ENGINES, Answer, Ended, Save, WarmServer, environment

if TYPE_CHECKING:
    from stacks.backend import Backend

_LOOK: Final = 1.0  # seconds between two looks whether the operation may go on
_PATIENCE: Final = 10.0  # seconds that a cancelled operation gets to end
_SEVERITIES: Final = {
    engine_pb2.INFO: "info",
    engine_pb2.WARNING: "warning",
    engine_pb2.ERROR: "error",
}


@dataclass(frozen=True)
class _Held:
    """A process to work in, with the right to change a stack; a preview needs none. `fresh`: nothing is there yet."""

    server: WarmServer
    claim: Claim | None = None
    lock: str = ""
    fresh: bool = False


class WarmEngine(StateEngine):
    """See Engine. `binary` is called at the first operation: it finds the program, or brings it."""

    name = "warm"
    finds_locks = True

    def __init__(self, backend: Backend, binary: Callable[[], Path]) -> None:
        super().__init__(backend)
        self._binary = binary

    def prepare(self, providers: tuple[Provider, ...] = ()) -> None:
        """See Engine."""
        refuse_fork()
        executables(providers)
        self._backend.prove()
        self._binary()

    def up(self, deployment: Deployment, claim: Claim, timeout: timedelta | None = None) -> dict[str, Any]:
        """See Engine."""
        stack = deployment.stack
        made: list[dict[str, Any]] = []

        def perform(left: timedelta | None) -> None:
            with self._locked(stack, claim) as held:
                done = self._run(held, "up", deployment, self._latest(held, stack), left)
                made.append(done["deployment"])

        self._unlocked(stack, claim, timeout, perform)
        return _outputs(made[-1])

    def preview(self, deployment: Deployment, timeout: timedelta | None = None) -> list[Change]:
        """See Engine. Nothing is written, so it needs no lock."""
        latest = self._state.deployment(deployment.stack)
        with ENGINES.working(self._binary()) as server:
            done = self._run(_Held(server), "preview", deployment, latest, timeout)
        return [Change(step, urn) for step, urn in done.get("steps") or []]

    def destroy(
        self,
        stack: StackName,
        claim: Claim,
        providers: tuple[Provider, ...] = (),
        timeout: timedelta | None = None,
    ) -> int:
        """See Engine."""
        counts: list[int] = []
        nothing = Deployment(stack, lambda: None, providers=providers)

        def perform(left: timedelta | None) -> None:
            with self._locked(stack, claim) as held:
                latest = self._latest(held, stack)
                own = [each for each in (latest or {}).get("resources") or [] if not each["type"].startswith("pulumi:")]
                counts.append(len(own))
                if own:
                    self._run(held, "destroy", nothing, latest, left)

        self._unlocked(stack, claim, timeout, perform)
        return counts[0]

    def _refresh(self, deployment: Deployment, claim: Claim, timeout: timedelta | None) -> None:
        with self._locked(deployment.stack, claim) as held:
            self._run(held, "refresh", deployment, self._latest(held, deployment.stack), timeout)

    def _latest(self, held: _Held, stack: StackName) -> dict[str, Any] | None:
        """What the last operation left, less what a killed engine left pending: that is found at the target."""
        latest = None if held.fresh else self._state.mended(stack)
        if latest is not None:
            latest.pop("pending_operations", None)
        return latest

    @contextmanager
    def _locked(self, stack: StackName, claim: Claim) -> Iterator[_Held]:
        """Hold Pulumi's lock on the stack; yields a process to work in."""
        refuse_fork()
        locks: list[tuple[str, bool]] = []
        with ENGINES.working(self._binary()) as server:
            try:
                self._backend.store.together(
                    lambda: claim.tell(server.pid, shared=True), lambda: locks.append(self._state.lock(stack))
                )
                lock, there = locks[0]
                yield _Held(server, claim, lock, fresh=not there)
            finally:
                for lock, _ in locks:
                    self._state.release(lock)

    def _run(
        self,
        held: _Held,
        kind: str,
        deployment: Deployment,
        latest: dict[str, Any] | None,
        timeout: timedelta | None,
    ) -> Answer:
        """Perform one operation, and keep the state that comes of it, whether it went well or not."""
        stack, salt = deployment.stack, self._backend.salt()
        hub = ENGINES.hub
        told: list[tuple[str, str]] = []
        with ENGINES.turns, caught(deployment.program) as program, hub.serving(program, _Told(told)) as name:
            request = {
                "op": kind,
                "project": stack.project,
                "stack": stack.stack,
                "deployment": latest or None,
                "config": dict(deployment.config),
                "secrets": dict(deployment.secrets),
                "passphrase": self._key(kind),
                "salt": salt or "",
                "socket": str(hub.programs()),
                "program": name,
                "attached": hub.providers(attached(deployment.providers)),
                "plugins": {package: str(path) for package, path in executables(deployment.providers).items()},
                "folder": str(hub.folder),
                "environ": {**environment(), **variables(deployment.providers)},
            }
            done, in_time = self._await(held, request, partial(self._save, stack, held.claim), timeout)
            if held.claim is not None:
                held.claim.assure()
                self._keep(stack, done, fresh=not latest, salt=salt)
            _raise_failure(done, told, timeout, in_time=in_time)
        return done

    def _key(self, kind: str) -> str:
        """The backend's key; for a preview where there is none yet, one to throw away."""
        if kind == "preview" and self._backend.identity() is None:
            return secrets.token_hex(32)
        return self._backend.passphrase()

    def _await(
        self, held: _Held, request: dict[str, Any], save: Save, timeout: timedelta | None
    ) -> tuple[Answer, bool]:
        """How the operation ended, and whether it did by itself; whoever is interrupted here cancels it."""
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        with held.server.performing(request, save) as ended:
            try:
                while deadline is None or time.monotonic() < deadline:
                    left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
                    with suppress(TimeoutError):
                        return ended.result(max(0.0, left)), True
                    self._look_around(held, ended)
            except ClaimLostError:  # whoever has taken over must not meet it
                ended.stop(0)
                raise
            except EngineError:
                raise
            except BaseException:
                done = ended.stop(_PATIENCE)
                if "deployment" in done:
                    save(done["deployment"])
                raise
            return ended.stop(_PATIENCE), False

    def _look_around(self, held: _Held, ended: Ended) -> None:
        """Stop where the right to go on was lost, or somebody asked."""
        if held.claim is not None:
            held.claim.assure()
            asked = self._state.asked_to_stop(held.lock)
            if asked is not None:
                ended.cancel(now=asked == "now")

    def _save(self, stack: StackName, claim: Claim | None, deployment: dict[str, Any]) -> None:
        """Keep what was made while the operation goes on; what it raises stops the operation."""
        if claim is not None:
            claim.assure()
            self._state.write(stack, deployment)

    def _keep(self, stack: StackName, done: Answer, *, fresh: bool, salt: str | None) -> None:
        if "deployment" in done:
            writes = [lambda: self._state.write(stack, done["deployment"])]
            if fresh:
                writes.append(lambda: self._state.begin_history(stack, fresh=True))
            self._backend.store.together(*writes)
        if salt is None and done.get("salt"):
            self._backend.keep_salt(str(done["salt"]))


class _Told:
    """What a program logs, instead of an engine's address."""

    def __init__(self, told: list[tuple[str, str]]) -> None:
        self._told = told

    def Log(self, request: Any) -> None:  # noqa: ANN401, N802 - the protocol's
        """Note a message, unless it is for who debugs the SDK."""
        if request.severity != engine_pb2.DEBUG:
            self._told.append((_SEVERITIES.get(request.severity, "info"), request.message))

    def RequirePulumiVersion(self, request: object) -> None:  # noqa: N802
        """Accept any range: the SDK and the engine come from one distribution."""


def _outputs(deployment: dict[str, Any]) -> dict[str, Any]:
    for resource in deployment.get("resources") or []:
        if resource["type"] == "pulumi:pulumi:Stack":
            return dict(resource.get("outputs") or {})
    return {}


def _raise_failure(done: Answer, told: list[tuple[str, str]], timeout: timedelta | None, *, in_time: bool) -> None:
    messages = [(str(each["severity"]), str(each["text"])) for each in done.get("messages") or []] + told
    text = "\n".join(f"{severity}: {words}" for severity, words in messages)
    if not in_time:
        seconds = timeout.total_seconds() if timeout else 0
        message = f"the engine was not done after {seconds:g} s and was stopped"
        raise TimeLimitError(message, started=Started.UNKNOWN, details=text)
    error = done.get("error")
    if error:
        errors = tuple(words for severity, words in messages if severity == "error") or (str(error),)
        steps = tuple((str(step), str(urn)) for step, urn in done.get("steps") or [])
        raise failure(1, Report(steps, errors, f"{text}\n{error}"), 2**30)
