"""What the worker of a Dagster run executes, and with which arguments.

They hold the instance, which may hold passwords of its storage: so they are compressed and handed over in a variable,
which no state, record or process list shows. The worker's instance is the launcher's, but for two things:
- its run launcher is one that the run's executor can work with, and that is installed where the executor is; so the
  worker needs neither this package nor its configuration. `previous` says how it was configured, else the template.
- it resumes nothing: that is for Dagster's monitor, and an instance that resumes loads its launcher at once. By that
  `run_will_resume` is False in a worker: one that is interrupted reports its run as failed or canceled.
Monitoring stays as it is, since a worker's behaviour depends on it.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from dagster import DagsterRun
from dagster._core.instance.ref import InstanceRef
from dagster._core.origin import DEFAULT_DAGSTER_ENTRY_POINT, JobPythonOrigin, get_python_environment_entry_point
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import ConfigurableClassData, serialize_value

from launchers.dagster.binding import ARGS, JOB, Binding
from launchers.dagster.docker_steps import CLASS as DOCKER
from launchers.dagster.docker_steps import docker_step_launcher
from launchers.dagster.executors import NEEDS, launcher_class_of
from launchers.launcher import RunLauncher
from stacks.errors import UsageError

_PYTHON: Final = (
    "import base64, gc, os, zlib; gc.disable(); from dagster._cli.api import {verb}_command; gc.enable(); gc.freeze(); "
    f"words = zlib.decompress(base64.b64decode(os.environ.pop({ARGS!r}))).decode(); "
    '{verb}_command.main([words], prog_name="dagster api {verb}")'
)
"""What the code server's own Python executes. There is no variable for the arguments of `resume_run`, and in Dagster
1.10 none for compressed ones. Python's collector takes a sixth of the time in which dagster is imported."""
_ELSEWHERE: Final = f"""\
import base64, gc, importlib.util, os, zlib
words = zlib.decompress(base64.b64decode(os.environ.pop({ARGS!r}))).decode()
entry = {{entry}}
if {{other}} or importlib.util.find_spec("dagster") is None:
    os.execvp(entry[0], [*entry, "api", "{{verb}}", words])
gc.disable()
from dagster._cli.api import {{verb}}_command
gc.enable()
gc.freeze()
{{verb}}_command.main([words], prog_name="dagster api {{verb}}")
"""
"""The same for the Python of an image, which is where its `dagster` is: beside it on PATH. Where that is not so, and
for an entry point of the code location's own, the process list shows the arguments, and nothing else does."""
PYTHON: Final = "python3"
DEFAULT: Final = ConfigurableClassData("dagster", "DefaultRunLauncher", "{}\n")
STAND_INS: Final[Mapping[str, tuple[str, Callable[[Any], ConfigurableClassData]]]] = {
    "docker": (DOCKER, docker_step_launcher),
}
"""Of each target: the class of launcher that its executor asks for, and how a template would configure it."""


def command_and_env(
    binding: Binding, run: DagsterRun, launcher: RunLauncher[Any], *, resume: bool
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The command of a run's worker, and the variables that it needs. Raises UsageError for a run without an origin."""
    origin = run.job_code_origin
    if origin is None:
        message = f"run {run.run_id} has no code origin, so no worker can load its job: launch it from a code location"
        raise UsageError(message)
    kind, verb = (ResumeRunArgs, "resume_run") if resume else (ExecuteRunArgs, "execute_run")
    reference = worker_instance(binding, run, launcher)
    args = serialize_value(kind(_lean(origin), run.run_id, reference, set_exit_code_on_failure=True))
    compressed = {ARGS: base64.b64encode(zlib.compress(args.encode())).decode()}
    entry = list(origin.repository_origin.entry_point or DEFAULT_DAGSTER_ENTRY_POINT)
    if not launcher.runs_here:
        python = entry[0] if entry[1:] == ["-m", "dagster"] else PYTHON
        other = entry not in (list(DEFAULT_DAGSTER_ENTRY_POINT), [python, "-m", "dagster"])
        script = _ELSEWHERE.replace("{entry}", repr(entry)).replace("{other}", str(other)).replace("{verb}", verb)
        return (python, "-c", script), {**compressed, JOB: run.job_name}
    own = [list(DEFAULT_DAGSTER_ENTRY_POINT), get_python_environment_entry_point(origin.executable_path)]
    if entry in own:  # the first would be looked for on PATH: this is surer, and sooner there
        return (origin.executable_path, "-c", _PYTHON.replace("{verb}", verb)), compressed
    return ((*entry, "api", verb, args), {}) if resume else ((*entry, "api", verb), compressed)


def worker_instance(binding: Binding, run: DagsterRun, launcher: RunLauncher[Any]) -> InstanceRef:
    """The instance as the run's worker sees it. Raises UsageError for one that no other process can open."""
    if binding.instance.is_ephemeral:
        message = "the instance lives in this process's memory, where no worker can reach it: set DAGSTER_HOME"
        raise UsageError(message)
    reference = binding.instance.get_ref()
    settings: dict[str, Any] = dict(reference.settings)
    monitoring = settings.get("run_monitoring")
    if isinstance(monitoring, Mapping):
        settings["run_monitoring"] = {**monitoring, "max_resume_run_attempts": 0}
    return reference._replace(run_launcher_data=_launcher_data(binding, run, launcher), settings=settings)


def _launcher_data(binding: Binding, run: DagsterRun, launcher: RunLauncher[Any]) -> ConfigurableClassData:
    """The launcher that the run's executor asks its instance for, as `previous` or else the template configures it."""
    previous, (name, made) = binding.previous, STAND_INS.get(launcher.target, ("", lambda _: DEFAULT))
    if not name and (previous is None or previous.name not in NEEDS):
        return DEFAULT
    if run.job_snapshot_id not in binding.needed:  # reading the snapshot of a large job takes a while
        binding.needed[run.job_snapshot_id] = launcher_class_of(binding.instance, run)
    needed = binding.needed[run.job_snapshot_id]
    if previous is not None and needed == previous.name:
        return previous.data
    return made(launcher.template) if needed == name else DEFAULT


def _lean(origin: JobPythonOrigin) -> JobPythonOrigin:
    """The origin without what only launchers read; the worker takes its own from the run storage."""
    return origin._replace(repository_origin=origin.repository_origin._replace(container_context=None))
