"""What the contract must know of a target to test it, asked of the target itself and never through a launcher."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from launchers.launcher import RunLauncher
from programs.args import Run
from stacks.handle import WorkerHandle, WorkerStatus


class TargetRow(Protocol):
    """One target under test, with a backend of its own.

    `shared` is a folder that the test and every worker see under the same path. `orders_streams`: what a worker prints
    to its two streams is shown in the order in which it was printed; else only what it prints to one of them is.
    """

    name: str
    shared: Path
    orders_streams: bool

    def launcher(self, **template: object) -> RunLauncher[Any]:
        """A fresh launcher of this row's backend, its template changed in these fields."""

    def run(self, script: str, *words: str, run_id: str | None = None, **fields: Any) -> Run:  # noqa: ANN401
        """A run that executes a POSIX shell script with these words as $1, $2 …; `fields` are Run's."""

    def another_process(self, code: str, *words: str) -> list[str]:
        """The command of a fresh Python process in this row's configuration."""

    def alive(self, handle: WorkerHandle) -> bool:
        """True while the target itself shows the worker, or anything that it started."""

    def kill(self, handle: WorkerHandle) -> None:
        """Kill the worker behind the launcher's back."""

    def executions(self, run_id: str) -> int:
        """How many workers the target shows for a run now."""

    def seen_elsewhere(self, handle: WorkerHandle) -> WorkerStatus | None:
        """What a launcher in another place says of the handle; None where this host cannot make one."""

    def refused(self) -> tuple[str, ...]:
        """A command that passes every check of ours, and that the target cannot start."""

    def slow_start(self) -> tuple[str, ...] | None:
        """The command of a worker that the target accepts but cannot start; None where there is no such thing."""

    def limits_kept(self) -> AbstractContextManager[None]:
        """While it lasts somebody ends what is overdue: the target itself, or a reconciler."""

    def public_traces(self) -> bytes:
        """Everything that others could read: state, records, archived output, process list."""

    def stacks(self) -> list[str]:
        """The stacks, as the backend's files show them."""

    def leftovers(self) -> list[str]:
        """All that is there but should not be once every run was terminated; records and archived output may stay."""
