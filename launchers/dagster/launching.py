"""launch_run and resume_run: within a time limit, after which nothing starts; a backend that is away is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dagster import DagsterError, DagsterRun
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError
from dagster._core.storage.tags import DOCKER_IMAGE_TAG

from launchers.dagster.binding import Binding, shown_tags, tags_of
from launchers.dagster.code_host import refuse_remote_code
from launchers.dagster.code_location import IMAGE, not_used, wishes_of, with_image
from launchers.dagster.previous import is_ours
from launchers.dagster.worker import command_and_env
from programs.args import Run
from stacks.errors import BackendAccessError, LimitReachedError, RunLauncherError, TimeLimitError
from stacks.handle import WorkerHandle

if TYPE_CHECKING:
    from dagster._core.launcher import LaunchRunContext, ResumeRunContext

    from launchers.launcher import RunLauncher
    from launchers.values import Launched

T = TypeVar("T")
_MARGIN: Final = 5.0  # seconds that a launch past its limit gets to take back what it began, before it is left to do so
ANNOUNCED: Final = "Launching a run worker"
"""How the event begins that says that a run is launched by us."""
_PAUSE: Final = 0.5  # seconds between two tries at a backend that is away


def launch(binding: Binding, context: LaunchRunContext) -> None:
    """See PulumiRunLauncher.launch_run."""
    run = context.dagster_run
    previous = binding.previous
    if previous is not None and not is_ours(binding.settings, run) and binding.worker(run) is None:
        previous.launch(context)
        return
    Start(binding, run, None).perform()


def resume(binding: Binding, context: ResumeRunContext) -> None:
    """See PulumiRunLauncher.resume_run."""
    run = context.dagster_run
    if binding.worker(run) is None and binding.previous is not None:
        binding.previous.resume(context)
        return
    Start(binding, run, context.resume_attempt_number or 1).perform()


class _NotBegunError(RunLauncherError):
    """The time was over before the launch itself was begun."""

    def __init__(self) -> None:
        super().__init__("nothing was begun")


class Start:
    """One call of launch_run, or of resume_run where Dagster gives the number of the resumption."""

    def __init__(self, binding: Binding, run: DagsterRun, resumption: int | None) -> None:
        self._binding = binding
        self._run = run
        self._resumption = resumption
        self._limit = binding.settings.launch_timeout.total_seconds()
        self._deadline = time.monotonic() + self._limit
        self._attempt = 0 if resumption is None else None
        self._image: str | None = None
        self._is_begun = False

    def perform(self) -> None:
        """Launch within the time limit, and tell Dagster; raises in the ways that Dagster knows."""
        announced, launching = begun(self._announce), begun(self._launch)
        wait([launching], self._limit + _MARGIN)
        if not launching.done():
            raise self._late()
        try:
            handle = launching.result()
        except (BackendAccessError, PermissionError) as error:
            raise DagsterLaunchFailedError(str(error)) from error
        except OSError as error:  # a BackendError among others: the folder of a backend may be away too
            message = f"the backend did not answer for {self._limit:g} s, so nothing was launched: {error}"
            raise DagsterUserCodeUnreachableError(message) from error
        except _NotBegunError as error:
            raise self._late() from error
        except LimitReachedError as error:
            if self._binding.workspace.limits.waits:
                message = f"there was no room for {self._limit:g} s, so nothing was launched: {error}"
                raise DagsterUserCodeUnreachableError(message) from error
            raise DagsterLaunchFailedError(_told(error)) from error
        except RunLauncherError as error:
            raise DagsterLaunchFailedError(_told(error)) from error
        self._tell(handle, announced)

    def _late(self) -> DagsterError:
        """What is raised when the time is over: Dagster may queue again what was not begun."""
        limit = f"{self._limit:g} s"
        if self._is_begun:
            return DagsterLaunchFailedError(f"the worker was not launched within {limit}; what was begun is taken back")
        message = (
            f"nothing was begun within {limit}: the engine is still being brought, which `run-launcher setup` does "
            "before the first launch, or this host is overloaded"
        )
        return DagsterUserCodeUnreachableError(message)

    def _launch(self) -> WorkerHandle:
        binding, run = self._binding, self._run
        launcher = binding.launcher(run)
        if launcher.runs_here and not binding.settings.allow_remote_code:
            refuse_remote_code(run, launcher)
        wishes = wishes_of(run, launcher)
        launcher, image_is_used = with_image(launcher, wishes.image)
        self._image = getattr(launcher.template, IMAGE, None)
        told = not_used(launcher, wishes, image_is_used=image_is_used)
        if told is not None:
            binding.report(run, told)
        command, env = command_and_env(binding, run, launcher, resume=self._resumption is not None)
        wanted = Run(id=run.run_id, command=command, env={**wishes.env, **env}, tags=shown_tags(run))
        return _hold(lambda left: self._once(launcher, wanted, left), self._deadline).handle

    def _announce(self) -> None:
        """Tell Dagster, before anything else is done: who finds the run without more knows that its launch died."""
        message = ANNOUNCED if self._resumption is None else f"{ANNOUNCED} to resume the run"
        self._binding.report(self._run, message, {"time limit": f"{self._limit:g} s"})

    def _once(self, launcher: RunLauncher[Any], run: Run, left: float) -> Launched:
        """One try. To bring the engine is no part of a launch's time limit elsewhere, but is of Dagster's."""
        before = time.monotonic()
        launcher.workspace.engine.prepare()
        left -= time.monotonic() - before
        if left <= 0:
            raise _NotBegunError
        if self._attempt is None:
            self._attempt = self._next_attempt(self._resumption or 1)
        self._is_begun = True
        return launcher.launch(run.model_copy(update={"attempt": self._attempt}), timeout=timedelta(seconds=left))

    def _next_attempt(self, resumption: int) -> int:
        """Dagster counts what it asked for, and our attempts have no gap: one that was never begun is not counted."""
        record = self._binding.workspace.records.read(self._run.run_id)
        return min(resumption, 1 if record is None else record.attempt + 1)

    def _tell(self, handle: WorkerHandle, announced: Future[None]) -> None:
        """Write down in Dagster what was launched; a worker that Dagster could not be told of is ended again."""
        binding, run = self._binding, self._run
        binding.launched(run.run_id)
        to_resume = "" if self._resumption is None else f" to resume the run (attempt {handle.attempt})"
        try:
            tags, facts = tags_of(handle), binding.facts(handle)
            if self._image is not None:
                tags[DOCKER_IMAGE_TAG] = facts[IMAGE] = self._image
            tagged = begun(lambda: binding.instance.add_run_tags(run.run_id, tags))
            announced.result()
            binding.report(run, f"Run worker launched{to_resume}", facts)
            tagged.result()
        except BaseException:
            with suppress(RunLauncherError):
                binding.launcher_of(handle).terminate(handle, wait=False)
            raise


def _hold(perform: Callable[[float], T], deadline: float) -> T:
    """Repeat what fails because the backend is away, until it is back or the time is over; raises the last failure."""
    away: OSError | None = None
    while True:
        left = deadline - time.monotonic()
        try:
            if left > 0:
                return perform(left)
        except (BackendAccessError, PermissionError):
            raise
        except OSError as error:
            away = error
        except TimeLimitError:
            if away is None:
                raise
        if time.monotonic() >= deadline:
            raise away or _NotBegunError
        threading.Event().wait(min(_PAUSE, max(0.0, deadline - time.monotonic())))


def begun(work: Callable[[], T]) -> Future[T]:
    """What comes of work that is done in a thread of its own; of a pool, others that hang could take all threads."""
    done: Future[T] = Future()

    def perform() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=perform, name="run-launcher-launch", daemon=True).start()
    return done


def _told(error: RunLauncherError) -> str:
    return f"{error}\n{error.details}".rstrip() if error.details else str(error)
