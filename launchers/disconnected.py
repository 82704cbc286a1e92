"""The launcher of runs whose connection is gone from the configuration: it knows their records, and asks nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import ClassVar

from launchers.launcher import RunLauncher
from launchers.values import Found
from programs.args import LauncherTemplate, ProgramArgs
from stacks.errors import ConfigurationError, Started, WrongPlaceError
from stacks.records import Record


class DisconnectedLauncher(RunLauncher[LauncherTemplate]):
    """Reaches no place: a worker is UNKNOWN, a wish to end it is recorded, and the run can be given up.

    The default connection of the target, or another one, might lead to something else of the same name.
    """

    target: ClassVar[str] = "disconnected"

    def program(self, args: ProgramArgs[LauncherTemplate]) -> None:
        """See RunLauncher: there is none."""
        message = f"run {args.run.id} cannot be launched: {self._missing}"
        raise ConfigurationError(message)

    def place(self) -> str:
        """See RunLauncher: nowhere."""
        return ""

    def reaches(self, place: str) -> bool:  # noqa: ARG002 - no place at all
        """See RunLauncher."""
        return False

    def find(self, runs: Collection[Record] | None) -> Iterator[Found]:  # noqa: ARG002 - nobody is asked
        """See RunLauncher: nothing is found, which proves nothing."""
        return iter(())

    def remove(self, found: Found, grace: timedelta) -> None:  # noqa: ARG002 - nobody is asked
        """See RunLauncher."""
        message = f"the worker of run {found.handle.run_id} cannot be ended from here: {self._missing}"
        raise WrongPlaceError(message, started=Started.YES)

    @property
    def _missing(self) -> str:
        return f"its connection {self.template.connection!r} is not configured here"
