"""The launcher that was there before: it owns every run that was not launched by us, so that a switch loses none."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Final

import yaml
from dagster import DagsterRun
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._serdes import ConfigurableClassData

from stacks.errors import ConfigurationError

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from launchers.dagster.schema import Previous, Settings

_PARTS: Final = 10_000


class PreviousLauncher:
    """A built-in launcher, as dagster.yaml had it. It is made at its first use."""

    def __init__(self, origin: Previous, instance: DagsterInstance) -> None:
        self.data = ConfigurableClassData(origin.module, origin.cls, yaml.safe_dump(dict(origin.config)))
        self._instance = instance

    @property
    def name(self) -> str:
        """Its class."""
        return self.data.class_name

    @cached_property
    def launcher(self) -> RunLauncher[DagsterInstance]:
        """The launcher itself; raises ConfigurationError with Dagster's reason."""
        try:
            made: RunLauncher[DagsterInstance] = self.data.rehydrate(as_type=RunLauncher)  # type: ignore[type-abstract]
        except Exception as error:
            message = f"run_launcher: config: previous cannot be used: {error}"
            raise ConfigurationError(message) from error
        if not made.has_instance:
            made.register_instance(self._instance)
        return made

    def launch(self, context: LaunchRunContext) -> None:
        """Launch a run of the part that is not ours."""
        self.launcher.launch_run(context)

    def resume(self, context: ResumeRunContext) -> None:
        """Resume one of its runs; raises ConfigurationError where it cannot."""
        if not self.launcher.supports_resume_run:
            message = f"run {context.dagster_run.run_id} was launched by {self.name}, which cannot resume runs"
            raise ConfigurationError(message)
        self.launcher.resume_run(context)

    def health(self, run: DagsterRun) -> CheckRunHealthResult:
        """How the worker of one of its runs is; what it cannot tell counts as running, as under itself."""
        if not self.launcher.supports_check_run_worker_health:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"{self.name} does not tell how its workers are")
        return self.launcher.check_run_worker_health(run)

    def dispose(self) -> None:
        """Let go of what it holds, if it was made."""
        if "launcher" in self.__dict__:
            self.launcher.dispose()


def is_ours(settings: Settings, run: DagsterRun) -> bool:
    """True if a new run is of the part that we launch; the same answer for one run, whoever asks and however often."""
    if any(run.tags.get(name) != value for name, value in settings.tags.items()):
        return False
    number = int.from_bytes(hashlib.sha256(run.run_id.encode()).digest()[:8], "big") % _PARTS
    return number < settings.percent * (_PARTS // 100)
