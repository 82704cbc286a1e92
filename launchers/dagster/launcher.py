"""The run launcher of dagster.yaml. It loads nothing but dagster; what it does is loaded when it does it.

Dagster makes one object per process, and calls it from several threads: `launch_run` in the daemon, `terminate` in the
webserver, health and resumption in the daemon's monitor. So what must be known of a run stands in its tags and in
run-launcher's records, never in memory.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, ResumeRunContext, RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from launchers.dagster.schema import CONFIG, Settings

if TYPE_CHECKING:
    from launchers.dagster.binding import Binding
    from launchers.dagster.keeper import Keeper


class PulumiRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """Launches each run of Dagster as a short-lived stack; the template says what its worker is.

    `launchers/dagster/schema.py` says what its config takes. Methods may be called from any process and thread.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None, settings: Settings | None = None) -> None:
        self._inst_data = inst_data
        self._settings = settings or Settings()
        self._guard = threading.Lock()
        self._made: Binding | None = None
        self._keeper: Keeper | None = None
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """What dagster.yaml says."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """The schema of the config."""
        return CONFIG

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> PulumiRunLauncher:
        """The launcher of a config that Dagster has checked."""
        return cls(inst_data, Settings.of(config_value))

    @property
    def settings(self) -> Settings:
        """The config, as values."""
        return self._settings

    @property
    def binding(self) -> Binding:
        """The instance, bound to the configuration of run-launcher; raises ConfigurationError."""
        from launchers.dagster.binding import Binding

        with self._guard:
            if self._made is None:
                self._made = Binding(self._instance, self._settings, type(self))
            return self._made

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's worker, or have `previous` start it.

        Returns when the target has accepted the worker. Raises DagsterLaunchFailedError with what is to be corrected,
        and DagsterUserCodeUnreachableError, after which Dagster queues the run again, where the backend is away.
        """
        from launchers.dagster.launching import launch

        self._keep()
        launch(self.binding, context)

    def terminate(self, run_id: str) -> bool:
        """Have the run's worker end, and return within 2 s; True if it was asked, or has ended on that account."""
        from launchers.dagster.ending import terminate

        return self.has_instance and terminate(self.binding, run_id)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always: targets are asked."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """How the run's worker is, in Dagster's words."""
        from launchers.dagster.health import health

        self._keep()
        return health(self.binding, run)

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:  # noqa: FBT001, FBT002 - Dagster's signature
        """Why the worker is as it is, with its last lines where they are wanted."""
        from launchers.dagster.health import debug_info

        return debug_info(self.binding, run, with_lines=bool(include_container_logs))

    @property
    def supports_resume_run(self) -> bool:
        """True, unless it is the previous launcher that is to go on with its runs and cannot."""
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Start the run's next worker, once the one before has ended; raises as `launch_run` does."""
        from launchers.dagster.launching import resume

        self._keep()
        resume(self.binding, context)

    def join(self, timeout: int = 30) -> None:
        """Wait until the workers that this object launched have ended; raises where they do not in time."""
        if self._made is not None:
            self._made.join(timeout)

    def dispose(self) -> None:
        """Let go of what was begun in this process; no worker is touched."""
        with self._guard:
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
        if self._made is not None:
            self._made.dispose()

    def _keep(self) -> None:
        """See that somebody reconciles: a thread of this process, where no other leads."""
        if not self._settings.reconcile:
            return
        from launchers.dagster.keeper import Keeper

        binding = self.binding
        with self._guard:
            if self._keeper is None:
                self._keeper = Keeper(binding)
                self._keeper.start()
