"""dagster reconcile and dagster check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from launchers.commands.examining import tell
from launchers.commands.reconciling import passes, pause_of
from stacks.errors import ConfigurationError

if TYPE_CHECKING:
    from launchers.commands.output import Shape
    from launchers.commands.session import Session
    from launchers.dagster.binding import Binding

_FILE: Final = "dagster.yaml"
_WORKSPACE: Final = "workspace.yaml"
_SECOND_LOOK: Final = timedelta(seconds=2)  # after which a run that is not there counts as deleted


def reconcile(session: Session, output: Shape, *, every: str | None, metrics: str | None, dry_run: bool) -> int:
    """See the command."""
    pause = pause_of(every, "--every")
    _require_dagster()
    from launchers.dagster.metrics import Gauges  # noqa: PLC0415 - these load dagster
    from launchers.dagster.reconcile import DagsterReconciler  # noqa: PLC0415

    if metrics is not None and pause is None:
        message = "--metrics shows what each pass saw: say --every too"
        raise ConfigurationError(message)
    with _binding(session) as binding, ExitStack() as held:
        reconciler = DagsterReconciler(binding, _SECOND_LOOK if pause is None else None)
        if metrics is None:
            return passes(reconciler, output, pause, dry_run=dry_run)
        gauges = Gauges(metrics)
        held.callback(gauges.close)
        return passes(reconciler, output, pause, dry_run=dry_run, after=lambda: gauges.show(reconciler.figures))


def check(file: Path | None, workspace: Path | None, output: Shape) -> int:
    """See the command."""
    _require_dagster()
    from launchers.dagster.check import check as findings  # noqa: PLC0415 - loads dagster

    file = file or Path(os.environ.get("DAGSTER_HOME") or ".") / _FILE
    there = Path(_WORKSPACE)
    workspace = workspace or (there if there.is_file() else None)
    return tell(list(findings(file, workspace)), output)


@contextmanager
def _binding(session: Session) -> Iterator[Binding]:
    """The instance of DAGSTER_HOME with the configuration that holds; also after a switch to another launcher."""
    from dagster import DagsterError, DagsterInstance  # noqa: PLC0415

    from launchers.dagster.binding import Binding  # noqa: PLC0415
    from launchers.dagster.launcher import PulumiRunLauncher  # noqa: PLC0415
    from launchers.dagster.schema import Settings  # noqa: PLC0415

    with ExitStack() as held:
        try:
            instance = held.enter_context(DagsterInstance.get())
            launcher = instance.run_launcher
        except DagsterError as error:
            message = f"the instance cannot be opened: {error}"
            raise ConfigurationError(message) from error
        ours = launcher if isinstance(launcher, PulumiRunLauncher) else None
        settings = Settings() if ours is None else ours.settings
        file = session.file or (None if settings.config_file is None else Path(settings.config_file).expanduser())
        yield Binding(instance, settings, PulumiRunLauncher, session.config_of(file), launches=ours is not None)


def _require_dagster() -> None:
    if find_spec("dagster") is None:
        message = 'this needs Dagster: pip install "run-launcher[dagster]"'
        raise ConfigurationError(message)
