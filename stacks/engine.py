"""What performs the life of a stack: the small protocol that every engine keeps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

from stacks.handle import check_run_id

if TYPE_CHECKING:
    from stacks.claims import Claim

PROJECT_PREFIX: Final = "runs-"
SHARED_PREFIX: Final = "shared-"
STACK_LIMIT: Final = 100
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_LOOKS_LIKE_ATTEMPT: Final = re.compile(r".*\.\d+")


@dataclass(frozen=True, order=True)
class StackName:
    """The name of a stack: of runs and of shared objects, one project each per shard of 256."""

    project: str
    stack: str

    @property
    def full(self) -> str:
        """The name as `pulumi -s` takes it, from any folder."""
        return f"organization/{self.project}/{self.stack}"

    @property
    def shard(self) -> str:
        """What the stack's files are sorted by: a run's by two hex digits, any other's by the whole project."""
        return self.project.removeprefix(PROJECT_PREFIX)

    @classmethod
    def sorted_in(cls, shard: str, stack: str) -> StackName:
        """The stack whose files are sorted so."""
        return cls(f"{PROJECT_PREFIX}{shard}" if _SHARD.fullmatch(shard) else shard, stack)

    def urn(self, type_token: str, name: str) -> str:
        """The URN of a resource without a parent but the stack."""
        return f"urn:pulumi:{self.stack}::{self.project}::{type_token}::{name}"


def shard(run_id: str) -> str:
    """The first two hex digits of the id's SHA-256."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:2]


def stack_name(run_id: str, attempt: int) -> StackName:
    """The stack of one attempt; no two pairs of id and attempt share one.

    Attempt 0 is left out unless the id itself ends like an attempt ("a.1" is attempt 0 of "a.1", or 1 of "a").
    A name above Pulumi's 100 characters is cut, with a hash of the whole id.
    """
    name = check_run_id(run_id)
    if attempt or _LOOKS_LIKE_ATTEMPT.fullmatch(run_id):
        name = f"{run_id}.{attempt}"
    if len(name) > STACK_LIMIT:
        name = f"{run_id[:70]}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}.{attempt}"
    return StackName(f"{PROJECT_PREFIX}{shard(run_id)}", name)


def shared_stack(name: str) -> StackName:
    """The stack of a shared object."""
    return StackName(f"{SHARED_PREFIX}{shard(name)}", name)


class Serving(Protocol):
    """A provider plugin that listens on a loopback port of this process."""

    port: int

    def admit(self, pid: int) -> None:
        """Name the one process whose calls are answered."""


@dataclass(frozen=True)
class AttachedProvider:
    """A provider plugin of one package that runs inside this process.

    `serve` has it listen for the length of one operation, `register` adds it to a gRPC server that only we can reach.
    """

    package: str
    serve: Callable[[], AbstractContextManager[Serving]]
    register: Callable[[Any], None]


@dataclass(frozen=True)
class InstalledProvider:
    """A provider plugin that is installed, and runs in a process of its own with these variables beside the caller's.

    `version` is of the package that declares its resources; any plugin of the same major version will do.
    """

    package: str
    version: str
    environment: Mapping[str, str] = field(default_factory=dict)


Provider = AttachedProvider | InstalledProvider
"""How the resources of one package are operated."""


@dataclass(frozen=True)
class Deployment:
    """What `up` and `preview` perform: a stack, the program that declares it, and its configuration."""

    stack: StackName
    program: Callable[[], None]
    config: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    providers: tuple[Provider, ...] = ()


@dataclass(frozen=True)
class Adoption:
    """A resource that exists already and enters the state as if the program had made it.

    `depends_on` are the names of others that are adopted with it, `secret_outputs` the outputs that are kept encrypted.
    """

    type: str
    name: str
    id: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    provider_version: str | None = None
    secret_outputs: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """One line of a preview: what would be done (`create`, `same`, `replace` …) to which resource."""

    operation: str
    urn: str


class Engine(Protocol):
    """Performs `up` and `destroy`; two engines at one backend pick up each other's stacks at any time.

    Every call that changes something takes the claim that excludes all others from the stack. Calls block, are safe
    from many threads, and raise EngineError (or a child) with the engine's own words in `details`.
    """

    name: str

    def prepare(self, providers: tuple[Provider, ...] = ()) -> None:
        """Make ready for these providers, bringing what is missing of the engine.

        Raises SetupError or ForkedError before anything is done.
        """

    def up(self, deployment: Deployment, claim: Claim, timeout: timedelta | None = None) -> dict[str, Any]:
        """Make the stack what the program says and return its outputs; makes the stack where there is none.

        Past the time limit the operation is cancelled and TimeLimitError raised; what was made stays in the state.
        """

    def preview(self, deployment: Deployment, timeout: timedelta | None = None) -> list[Change]:
        """What `up` would do, without an effect; a stack that does not exist is previewed as empty."""

    def destroy(
        self,
        stack: StackName,
        claim: Claim,
        providers: tuple[Provider, ...] = (),
        timeout: timedelta | None = None,
    ) -> int:
        """Delete the stack's resources and return how many there were; 0 where there is no stack."""

    def remove(self, stack: StackName, claim: Claim) -> None:
        """Forget the stack with its history and backups; resources that it still holds are not touched."""

    def adopt(
        self,
        deployment: Deployment,
        adoptions: Sequence[Adoption],
        outputs: Mapping[str, Any],
        claim: Claim,
        timeout: timedelta | None = None,
    ) -> None:
        """Write the stack, its default provider and resources of one package into the state, then refresh.

        Whatever depends on another resource comes after it; `outputs` are the stack's. After it a preview of the same
        program is unchanged, and a plain destroy ends the resources.
        """

    def forget_pending(self, stack: StackName, claim: Claim) -> list[str]:
        """Drop operations that a killed engine left pending in the state; returns the URNs they concerned."""

    def outputs(self, stack: StackName) -> dict[str, Any] | None:
        """The stack's outputs; None where there is no stack. Changes nothing."""

    def stacks(self) -> Iterator[StackName]:
        """Every run stack of the backend. Changes nothing."""

    def cancel(self, stack: StackName, patience: timedelta = timedelta(0)) -> bool:
        """Ask an operation in flight on this host to stop, and make it when that takes longer; True if there was one.

        Without patience it is only asked.
        """

    def unlock(self, stack: StackName, claim: Claim, *, force: bool = False) -> list[str]:
        """Break locks whose owner is proven dead (all with `force`); returns what was broken, in words.

        Raises StackLockedError for a lock that may be alive.
        """
