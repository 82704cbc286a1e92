"""A thread that reconciles in the process that launches, for those who run no `run-launcher dagster reconcile`.

Of all processes of one instance at one place one leads; the others, this thread included, look again now and then. It
begins with the first launch of its process: where nothing is ever launched, nothing is left behind.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from launchers.dagster.reconcile import DagsterReconciler
from stacks.errors import StackLockedError

if TYPE_CHECKING:
    from launchers.dagster.binding import Binding

_LOG: Final = logging.getLogger("dagster.run_launcher")
_SHARE: Final = 9  # passes that find nothing to do take at most a tenth of the time
_PATIENCE: Final = 10.0  # seconds that a pass gets to end when the instance is disposed of


class Keeper:
    """The thread. It ends with `stop`, and with its process."""

    def __init__(self, binding: Binding) -> None:
        self._reconciler = DagsterReconciler(binding)
        self._interval = binding.settings.interval.total_seconds()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-launcher-reconcile", daemon=True)
        self._told = ""

    def start(self) -> None:
        """Begin; the first pass comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the action that is under way."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        pause = self._interval
        while not self._stopped.wait(pause):
            pause = self._interval
            try:
                with self._reconciler.lead():
                    self._lead()
            except StackLockedError:
                continue
            except Exception as error:  # noqa: BLE001 - Dagster's storage raises what its driver does; the next pass may work
                self._tell(f"{type(error).__name__}: {error}")

    def _lead(self) -> None:
        """Pass after pass, until one fails."""
        pause = 0.0
        while not self._stopped.wait(pause):
            begun, acted = time.monotonic(), False
            for action in self._reconciler.once():
                acted = True
                if action.error:
                    self._tell(f"run {action.subject} was not {action.what} ({action.why}): {action.error}")
                else:
                    _LOG.info("run-launcher: %s %s: %s", action.subject, action.what, action.why)
                if self._stopped.is_set():
                    return
            took = time.monotonic() - begun
            pause = self._interval if acted else max(self._interval, _SHARE * took)

    def _tell(self, problem: str) -> None:
        """Say a problem once, not at each pass."""
        if problem != self._told:
            _LOG.warning("run-launcher: %s", problem)
        self._told = problem
