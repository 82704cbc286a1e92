"""One Dagster instance bound to one configuration of run-launcher: whose runs they are, and where they are kept."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dagster import DagsterRun
from dagster._core.events import EngineEventData
from dagster._core.storage.runs import SqlRunStorage

from launchers.config import load_config
from launchers.dagster.previous import PreviousLauncher
from launchers.factory import launcher_for, load_launcher, make_workspace
from launchers.launcher import RunLauncher
from launchers.settings import Config
from launchers.templates.choosing import Chosen, choose
from launchers.workspace import Workspace
from stacks.errors import ConfigurationError, RunLauncherError, TemplateError
from stacks.handle import WorkerHandle

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from launchers.dagster.schema import Settings

TEMPLATE_TAG: Final = "run-launcher/template"
"""Names the launcher template of a run; also a key of the container context, below `run_launcher`."""
DIGEST_TAG: Final = "run-launcher/digest"
PLACE_TAG: Final = "run-launcher/place"
HANDLE_TAG: Final = ".dagster/run-launcher/handle"
"""Dagster hides tags of this prefix from people."""
JOB_TAG: Final = "dagster/job"
"""What the record of a run calls its job."""
ARGS: Final = "DAGSTER_COMPRESSED_EXECUTE_RUN_ARGS"
"""Dagster's own variable for compressed arguments of `dagster api execute_run` (dagster/_cli/api.py)."""
JOB: Final = "DAGSTER_RUN_JOB_NAME"
"""Dagster's own variable for a container: the name of the run's job."""
_HIDDEN: Final = ".dagster/"
_SHORT: Final = 12  # characters of a digest that people are shown


class Binding:
    """What the parts of the launcher share. Safe from many threads; all of it can be had again from dagster.yaml."""

    def __init__(
        self,
        instance: DagsterInstance,
        settings: Settings,
        cls: type[object],
        config: Config | None = None,
        *,
        launches: bool = True,
    ) -> None:
        self.instance = instance
        self.settings = settings
        self.launches = launches
        """True if the instance's new runs are launched by us, as far as there is no `previous`."""
        self.previous = None if settings.previous is None else PreviousLauncher(settings.previous, instance)
        self.unknown_since: dict[str, float] = {}
        """When a worker was first found that could not be asked: run id, seconds of the monotonic clock."""
        self.needed: dict[str | None, str | None] = {}
        """The class of launcher that a job's executor asks for, by the id of the job's snapshot."""
        self._cls = cls
        self._config = config
        self._launched: set[str] = set()

    @cached_property
    def config(self) -> Config:
        """The configuration of run-launcher; raises ConfigurationError."""
        file = self.settings.config_file
        return self._config or load_config(file=None if file is None else Path(file).expanduser())

    @cached_property
    def owner(self) -> str:
        """The id of the instance's run storage: runs of other instances at the same backend are not touched."""
        storage = self.instance.run_storage
        if not isinstance(storage, SqlRunStorage):
            message = f"{type(storage).__name__} has no id that tells its runs from others': use an SQL storage"
            raise ConfigurationError(message)
        return f"dagster:{storage.get_run_storage_id()}"

    @cached_property
    def workspace(self) -> Workspace:
        """The backend and engine."""
        return make_workspace(self.config, owner=self.owner)

    def launcher(self, run: DagsterRun) -> RunLauncher[Any]:
        """The launcher of the template that the run asks for: by tag, by code location, by a route, or by default.

        Raises TemplateError or ConfigurationError. Whether the run may have that template shows when it is launched.
        """
        origin = run.remote_job_origin
        location = None if origin is None else origin.location_name
        default = None if self.settings.template is None else Chosen(self.settings.template, "dagster.yaml")
        chosen = choose(self.config, shown_tags(run), _own_choice(run), location, default)
        launcher = load_launcher(chosen.template, config=self.config, workspace=self.workspace)
        if launcher.rules is not None:
            launcher.rules = launcher.rules.from_location(location, frozenset({ARGS, JOB}))
            if launcher.rules.stale:
                self.report(run, launcher.rules.stale)
        launcher.renew = None  # it was read just now
        return launcher

    def launcher_of(self, run: WorkerHandle | str) -> RunLauncher[Any]:
        """The launcher that watches and ends a run that was launched."""
        return launcher_for(run, workspace=self.workspace)

    def worker(self, run: DagsterRun) -> WorkerHandle | str | None:
        """What names the worker of a run that was launched by us; None for any other.

        The record comes first, since a re-executed run may have its parent's tags, and the tags where the backend does
        not answer or has no record any more.
        """
        with suppress(RunLauncherError, OSError):
            if self.workspace.records.read(run.run_id) is not None:
                return run.run_id
        return handle_in(run.run_id, run.tags)

    def report(self, run: DagsterRun, message: str, metadata: Mapping[str, str] | None = None) -> None:
        """An engine event of the run."""
        self.instance.report_engine_event(message, run, EngineEventData(metadata or {}), cls=self._cls)

    def facts(self, handle: WorkerHandle) -> dict[str, str]:
        """What an event tells of a worker, and how to see more of it."""
        options = [] if self.settings.config_file is None else ["--config-file", str(self.settings.config_file)]

        def command(*words: str) -> str:
            return shlex.join(["run-launcher", *options, *words])

        return {
            "target": handle.target,
            "template": f"{handle.template}@{handle.digest[:_SHORT]}",
            "attempt": str(handle.attempt),
            "place": handle.place,
            "handle": handle.to_json(),
            "logs": command("logs", handle.run_id),
            "why": command("why", handle.run_id),
            "eject": command("eject", handle.run_id, f"run-{handle.run_id[:8]}"),
        }

    def launched(self, run_id: str) -> None:
        """Remember that this object launched a run, for `join`."""
        self._launched.add(run_id)

    def join(self, timeout: float) -> None:
        """Wait until what this object launched has ended; raises TimeLimitError."""
        for run_id in sorted(self._launched):
            self.launcher_of(run_id).wait(run_id, timeout=timedelta(seconds=timeout))
            self._launched.discard(run_id)

    def dispose(self) -> None:
        """Let go of what the previous launcher holds."""
        if self.previous is not None:
            self.previous.dispose()


def tags_of(handle: WorkerHandle) -> dict[str, str]:
    """The tags that a launched run gets."""
    return {HANDLE_TAG: handle.to_json(), PLACE_TAG: handle.place, DIGEST_TAG: f"{handle.template}@{handle.digest}"}


def handle_in(run_id: str, tags: Mapping[str, str]) -> WorkerHandle | None:
    """The handle in a run's tags, if it is the run's own: a re-executed run inherits its parent's."""
    if HANDLE_TAG not in tags:
        return None
    with suppress(RunLauncherError):
        handle = WorkerHandle.from_json(tags[HANDLE_TAG])
        return handle if handle.run_id == run_id else None
    return None


def shown_tags(run: DagsterRun) -> dict[str, str]:
    """The tags that the record of a run has: those that people see in Dagster, and the job."""
    mine = {name: value for name, value in run.tags.items() if not name.startswith(_HIDDEN)}
    return {**mine, JOB_TAG: run.job_name}


def _own_choice(run: DagsterRun) -> Chosen | None:
    """The template that the run or its code location asks for; raises TemplateError for a path."""
    name, why = run.tags.get(TEMPLATE_TAG), f"tag {TEMPLATE_TAG}"
    if name is None:
        name, why = _of_code_location(run), "container context"
    if name is not None and ("/" in name or name.endswith((".yaml", ".yml"))):
        message = f"run {run.run_id} asks for the template {name!r}: a run names a template, never a path"
        raise TemplateError(message)
    return None if name is None else Chosen(name, why)


def _of_code_location(run: DagsterRun) -> str | None:
    """What the code location's container context says; `run_launcher: {template: etl}`."""
    origin = run.job_code_origin
    context = (origin.repository_origin.container_context if origin is not None else None) or {}
    own = context.get("run_launcher")
    if own is None:
        return None
    if not isinstance(own, Mapping) or not isinstance(own.get("template"), str) or set(own) != {"template"}:
        message = "the code location's container context: run_launcher takes `template: NAME`, and nothing else"
        raise TemplateError(message)
    return str(own["template"])
