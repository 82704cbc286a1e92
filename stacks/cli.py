"""The engine that always works: the `pulumi` command line, driven as the Automation API drives it, but leaner.

One process per operation: outputs are read from the state, stacks are made and removed as files, and no history is
read here. https://www.pulumi.com/docs/iac/automation-api/
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from stacks.claims import Claim
from stacks.engine import Change, Deployment, Provider, StackName
from stacks.operation import Operation, operation, refuse_fork
from stacks.plugins import executables
from stacks.scratch import preview_folder
from stacks.state import StateFiles
from stacks.state_engine import StateEngine, caught
from stacks.store import LocalStore

if TYPE_CHECKING:
    from stacks.backend import Backend
    from stacks.setup import Cli

_NO_DEADLOCK: Final = {"PULUMI_DIY_BACKEND_PARALLEL": "1", "GOMAXPROCS": "4"}
"""Pulumi's listing in PostgreSQL asks for each row while it holds the connection of the listing, out of a pool of
2 x GOMAXPROCS: several listings at once take all connections, and wait for one another for ever (bucket.go)."""
_QUIET: Final = ("--skip-preview", "--yes", "--suppress-progress", "--suppress-outputs")
_INLINE: Final = ("--exec-kind", "auto.inline", *_QUIET)


class CliEngine(StateEngine):
    """See Engine. `cli` is called at the first operation, so that reading loads and installs nothing."""

    name = "cli"

    def __init__(self, backend: Backend, cli: Callable[[], Cli]) -> None:
        super().__init__(backend)
        self._cli = cli

    def prepare(self, providers: tuple[Provider, ...] = ()) -> None:
        """See Engine."""
        refuse_fork()
        executables(providers)
        self._backend.prove()
        self._cli()

    def up(self, deployment: Deployment, claim: Claim, timeout: timedelta | None = None) -> dict[str, Any]:
        """See Engine."""
        stack = deployment.stack

        def perform(left: timedelta | None) -> None:
            self._state.make(stack)
            self.forget_pending(stack, claim)
            with self._operation(stack, claim) as work, caught(deployment.program) as program:
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
            caught(deployment.program) as program,
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
        providers: tuple[Provider, ...] = (),
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

    def _refresh(self, deployment: Deployment, claim: Claim, timeout: timedelta | None) -> None:
        with self._operation(deployment.stack, claim) as work:
            self._declare(work, deployment)
            with work.serving(deployment.program) as address:  # it is not run, but a project has to have one
                arguments = ["refresh", f"--client={address}", "-s", deployment.stack.full, *_INLINE]
                work.run(arguments, deployment.providers, timeout)

    @contextmanager
    def _operation(self, stack: StackName, claim: Claim) -> Iterator[Operation]:
        def forget_lock(pid: int) -> None:
            for path, lock in self._state.locks(self._state.lock_files(stack)).items():
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
