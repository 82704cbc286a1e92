"""A Dagster installation of a test's own: instance, code server, and, where they are asked for, daemon and webserver.

Nothing of it is a stand-in. What workers and stacks are there is asked of the kernel and of the files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from dagster import DagsterInstance, DagsterRun
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._grpc.client import DagsterGrpcClient

from launchers.dagster import PulumiRunLauncher
from launchers.dagster.reconcile import DagsterReconciler
from launchers.testing.contract import eventually
from programs.provider.worker import SHIM
from stacks.setup import tools_folder

JOBS: Final = Path(__file__).parent / "on_dagster" / "jobs.py"
LOCATION: Final = "code"
MARK: Final = "SITE_MARK"
TOOLS: Final = tools_folder()
ENDS: Final = {"SUCCESS", "FAILURE", "CANCELED"}
_PATIENCE: Final = timedelta(minutes=3)  # with a run: two launches and two workers, beside five other tests
_PORTS: Final = 5  # that are tried for a server that cannot choose one itself
_LAUNCH: Final = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message stack }
  }
}
"""
_TERMINATE: Final = """
mutation Terminate($id: String!, $policy: TerminateRunPolicy) {
  terminateRun(runId: $id, terminatePolicy: $policy) {
    __typename
    ... on TerminateRunFailure { message }
    ... on PythonError { message stack }
  }
}
"""


@contextmanager
def code_server(folder: Path, jobs: Path = JOBS, **variables: str) -> Iterator[Path]:
    """Serve the jobs on a Unix socket; yields it. One serves any number of sites: it keeps nothing."""
    address = folder / "code.sock"
    command = [sys.executable, "-m", "dagster", "api", "grpc", "--python-file", str(jobs), "--socket", str(address)]
    environment = {**_clean(), "SITE_FOLDER": str(folder), "DAGSTER_HOME": str(folder), **variables}
    with _started([*command, "--location-name", LOCATION], environment, folder / "code.log") as process:
        client = DagsterGrpcClient(socket=str(address))

        def answers() -> bool:
            assert process.poll() is None, (folder / "code.log").read_text()
            with suppress(Exception):
                return bool(client.ping("there"))
            return False

        assert eventually(answers)
        yield address


@dataclass
class Site:
    """One installation. `config` is that of the launcher, `more` what dagster.yaml says besides."""

    folder: Path
    code: Path
    engine: str
    config: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    home: Path | None = None
    """That of run-launcher; another site's, to share its backend."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    variables: dict[str, str] = field(default_factory=dict)
    """More of the environment of the site's processes."""
    jobs: Path = JOBS
    """The file of the jobs that the code server serves."""

    def __post_init__(self) -> None:
        for name in ("dagster", "done", "templates"):
            (self.folder / name).mkdir(parents=True)
        self.home = self.home or self.folder / "kept"
        self.template("process")
        self.template("small", limits={"memory": "3Gi"})
        self.write("run-launcher.yaml", {"home": str(self.home), "engine": {"kind": self.engine}})
        self.write("workspace.yaml", {"load_from": [{"grpc_server": self.server}]})
        self.configure()

    def configure(self, launcher: Mapping[str, Any] | None = None, **more: Any) -> None:  # noqa: ANN401 - YAML
        """Write dagster.yaml, with our launcher or another."""
        ours = {"module": "launchers.dagster", "class": "PulumiRunLauncher", "config": self.launcher_config}
        self.write("dagster/dagster.yaml", {"run_launcher": launcher or ours, **QUIET, **self.more, **more})

    @property
    def launcher_config(self) -> dict[str, Any]:
        """The launcher's config in dagster.yaml."""
        file = str(self.folder / "run-launcher.yaml")
        return {"config_file": file, "reconcile": {"enabled": False}, **self.config}

    def template(self, name: str, **keys: Any) -> None:  # noqa: ANN401 - YAML
        """A template whose finished workers are not kept."""
        keep = {"succeeded": "0s", "failed": "0s"}
        self.write(f"templates/{name}.yaml", {"target": "process", "grace": "5s", "keep": keep, **keys})

    def write(self, name: str, data: object) -> None:
        """A YAML file."""
        (self.folder / name).write_text(yaml.safe_dump(data), encoding="utf-8")

    @property
    def server(self) -> dict[str, str]:
        """The code server, in the words of workspace.yaml."""
        return {"socket": str(self.code), "host": "localhost", "location_name": LOCATION}

    @property
    def environment(self) -> dict[str, str]:
        """That of every process of the site, and so of its workers."""
        return {
            **_clean(),
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "SITE_FOLDER": str(self.folder / "done"),
            "RUN_LAUNCHER_TOOLS": str(TOOLS),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            MARK: self.mark,
            **self.variables,
        }

    # ---- its processes ----

    @contextmanager
    def daemon(self) -> Iterator[subprocess.Popen[bytes]]:
        """The daemon: queue, monitor, and the launcher that they call."""
        command = ["dagster-daemon", "run", "-w", str(self.folder / "workspace.yaml")]
        with self.process("daemon", *command) as process:
            yield process

    @contextmanager
    def webserver(self) -> Iterator[Web]:
        """The webserver, with GraphQL."""
        for _ in range(_PORTS):
            with ExitStack() as held:
                web, process = self._webserver(held)
                if eventually(lambda: process.poll() is not None or web.answers()) and process.poll() is None:  # noqa: B023
                    yield web
                    return
        raise AssertionError((self.folder / "webserver.log").read_text())

    def _webserver(self, held: ExitStack) -> tuple[Web, subprocess.Popen[bytes]]:
        """A webserver that starts at a port which was free a moment ago; somebody else may have it by then."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["dagster-webserver", "-w", str(self.folder / "workspace.yaml"), "-p", str(port)]
        process = held.enter_context(self.process("webserver", *command))
        return Web(f"http://127.0.0.1:{port}/graphql"), process

    @contextmanager
    def process(self, name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the site, by the name of a script beside this Python; ended at the end."""
        with self.instance():  # makes its databases: two processes that do that at once spoil them for good
            pass
        script = str(Path(sys.executable).parent / command[0])
        with _started([script, *command[1:]], self.environment, self.folder / f"{name}.log", self.folder) as process:
            yield process

    def call(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """`run-launcher` in the site's environment."""
        command = [str(Path(sys.executable).parent / "run-launcher"), *words]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    # ---- its instance, opened by this process ----

    @contextmanager
    def instance(self) -> Iterator[DagsterInstance]:
        """The instance as dagster.yaml is now."""
        before, environment = dict(os.environ), self.environment
        os.environ.clear()  # settings in variables would come before the site's file
        os.environ.update(environment)
        try:
            with DagsterInstance.from_config(str(self.folder / "dagster")) as instance:
                yield instance
        finally:
            os.environ.clear()
            os.environ.update(before)

    @contextmanager
    def desk(self) -> Iterator[Desk]:
        """The instance with its workspace: what launches, as daemon and webserver do it."""
        with self.instance() as instance:
            target = WorkspaceFileTarget([str(self.folder / "workspace.yaml")])
            with WorkspaceProcessContext(instance, target) as context:
                yield Desk(self, instance, context)

    # ---- what is there, past our code ----

    def done(self, run_id: str, what: str = "ran") -> list[str]:
        """The lines that a run's executions wrote."""
        paths = [folder / f"{run_id}.{what}" for folder in self._done]
        return [line for path in paths if path.exists() for line in path.read_text(encoding="utf-8").splitlines()]

    def let_go(self, run_id: str) -> None:
        """Let a run that holds end."""
        for folder in self._done:
            (folder / f"{run_id}.go").touch()

    @property
    def _done(self) -> tuple[Path, Path]:
        """Where our workers write what they did, and where those do that the code server starts."""
        return self.folder / "done", self.code.parent

    def workers(self, run_id: str | None = None) -> list[psutil.Process]:
        """The processes of workers that run now, shims included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                environment, words = process.environ(), process.cmdline()
                named = environment.get("RUN_LAUNCHER_RUN_ID") if environment.get(MARK) == self.mark else None
                if words[:1] == [str(SHIM)] and words[1].startswith(str(self.home)):
                    named = Path(words[1]).name.partition(".")[0]
                if named and run_id in {None, named} and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stacks(self) -> list[str]:
        """The stacks that are there."""
        assert self.home is not None
        return sorted(path.stem for path in self.home.glob("state/.pulumi/stacks/*/*.json"))

    def leftovers(self, *, led: bool = False) -> list[str]:
        """What should not be there once every run is over and reconciled; `led`: whoever leads may go on to lead."""
        assert self.home is not None
        kinds = ("state/.pulumi/stacks", "state/.pulumi/locks", "state/wishes", "state/claims", "state/leases", "runs")
        walked = (each for kind in kinds for each in os.walk(self.home / kind))  # passes over what goes meanwhile
        files = [Path(folder, name) for folder, _, names in walked for name in names]
        if led:
            files = [path for path in files if path.parent.name not in {"leases", "reconcile"}]
        processes = [f"process {each.pid}" for each in self.workers()]
        return [*processes, *(str(path.relative_to(self.home)) for path in files)]

    def left(self) -> list[str]:
        """What is left once that, under a reconciler, gets no less any more; however long there is less and less."""
        left = self.leftovers(led=True)
        while left and self._gets_less(len(left)):
            left = self.leftovers(led=True)
        return left

    def _gets_less(self, than: int) -> bool:
        return eventually(lambda: len(self.leftovers(led=True)) < than)


@dataclass(eq=False)
class Desk:
    """A site's instance and workspace, opened by the test."""

    site: Site
    instance: DagsterInstance
    workspace: WorkspaceProcessContext

    @property
    def launcher(self) -> PulumiRunLauncher:
        """The instance's launcher, which is ours."""
        launcher = self.instance.run_launcher
        assert isinstance(launcher, PulumiRunLauncher)
        return launcher

    def create(self, job: str, tags: Mapping[str, str] | None = None, ops: tuple[str, ...] = ()) -> DagsterRun:
        """A run that is not launched yet, of all ops or of these."""
        location = self.workspace.create_request_context().get_code_location(LOCATION)
        remote = location.get_repository("__repository__").get_full_job(job)
        found = _job(self.site.jobs, job)
        return self.instance.create_run_for_job(
            job_def=found.get_subset(op_selection=ops) if ops else found,
            tags=dict(tags or {}),
            remote_job_origin=remote.get_remote_origin(),
            job_code_origin=remote.get_python_origin(),
        )

    def limit(self, seconds: float) -> None:
        """Let no launch take longer from now on; the first one, which brings the engine, may need more."""
        object.__setattr__(self.launcher.settings, "launch_timeout", timedelta(seconds=seconds))

    def launch(self, job: str, tags: Mapping[str, str] | None = None) -> str:
        """Launch a run as the daemon does; returns its id."""
        run = self.create(job, tags)
        self.instance.launch_run(run.run_id, self.workspace.create_request_context())
        return run.run_id

    def run(self, run_id: str) -> DagsterRun:
        """The run as it is now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def status(self, run_id: str) -> str:
        """Its status."""
        return self.run(run_id).status.value

    def ends(self, run_id: str, as_: str) -> None:
        """Wait for the run's end, which is to be this one."""
        assert eventually(lambda: self.status(run_id) in ENDS, _PATIENCE), self.told(run_id)
        assert self.status(run_id) == as_, self.told(run_id)

    def becomes(self, run_id: str, status: str) -> None:
        """Wait until a run has a status."""
        assert eventually(lambda: self.status(run_id) == status, _PATIENCE), self.told(run_id)

    def holds(self, run_id: str, times: int = 1) -> None:
        """Wait until the op of a run executes."""
        assert eventually(lambda: len(self.site.done(run_id)) == times, _PATIENCE), self.told(run_id)

    def told(self, run_id: str) -> str:
        """All that Dagster tells of a run."""
        lines = []
        for entry in self.instance.all_logs(run_id):
            data: Any = entry.dagster_event.event_specific_data if entry.dagster_event is not None else None
            error = getattr(data, "error", None)
            kind = entry.dagster_event_type.value if entry.dagster_event_type else "log"
            lines += [f"{kind}: {entry.message}", *([error.to_string()] if error is not None else [])]
        info = self.instance.run_launcher.get_run_worker_debug_info(self.run(run_id))
        return "\n".join([f"{run_id} is {self.status(run_id)}", *lines, info or "no worker is known"])

    def reconciled(self) -> list[tuple[str, str]]:
        """One pass of the reconciler; returns what it did to what."""
        actions = list(DagsterReconciler(self.launcher.binding).once())
        assert [action for action in actions if action.error] == []
        return [(action.subject, action.what) for action in actions]


@dataclass
class Web:
    """The webserver's GraphQL."""

    url: str

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        """The data of an answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            told = json.load(answer)
        assert "errors" not in told, told
        data: dict[str, Any] = told["data"]
        return data

    def answers(self) -> bool:
        """True once it is there and has loaded the code location."""
        with suppress(OSError, AssertionError):
            told = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
            return bool(told["repositoriesOrError"].get("nodes"))
        return False

    def launch(self, job: str, tags: Mapping[str, str] | None = None) -> str:
        """Submit a run; returns its id."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": job}
        metadata = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        params = {"selector": selector, "runConfigData": "{}", "executionMetadata": metadata}
        told = self.ask(_LAUNCH, params=params)["launchRun"]
        assert told["__typename"] == "LaunchRunSuccess", told
        return str(told["run"]["runId"])

    def terminate(self, run_id: str, *, force: bool = False) -> str:
        """Cancel a run; returns the kind of answer."""
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if force else "SAFE_TERMINATE"
        return str(self.ask(_TERMINATE, id=run_id, policy=policy)["terminateRun"]["__typename"])


QUIET: Final = {"telemetry": {"enabled": False}}


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder with a short name: a Unix socket's is short."""
    return tempfile.TemporaryDirectory(prefix="rl-d-", dir="/tmp", ignore_cleanup_errors=True)


def served_from(run: DagsterRun, host: str) -> DagsterRun:
    """The run as if its code location were served from a host, over the network."""
    remote = run.remote_job_origin
    assert remote is not None
    grpc: Any = type(remote.repository_origin.code_location_origin)
    location = grpc(host=host, port=4000, location_name="far")
    repository = remote.repository_origin._replace(code_location_origin=location)
    return run._replace(remote_job_origin=remote._replace(repository_origin=repository))


def _clean() -> dict[str, str]:
    hidden = ("RUN_LAUNCHER_", "PULUMI_", "DAGSTER_", "PYTEST_", "PYTHONUNBUFFERED")
    own = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**own, "PATH": os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])}


@contextmanager
def _started(
    command: list[str], environment: Mapping[str, str], log: Path, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as held:
        file = held.enter_context(log.open("ab"))
        process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
        held.callback(_end, process)
        yield process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _job(file: Path, name: str) -> Any:  # noqa: ANN401 - a job
    """The definition of a job, for its snapshot."""
    module = f"on_dagster_{file.stem}"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[module] = made
        spec.loader.exec_module(made)
    return next(each for each in sys.modules[module].JOBS if each.name == name)
