"""The engine on real stacks: what the plain `pulumi` sees of them, adoption, locks, keys, time limits."""

from __future__ import annotations

import base64
import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pulumi
import pytest
from targets import take_engine

from launchers import ProcessTemplate, Run
from launchers.process import ProcessLauncher
from launchers.workspace import Workspace
from programs.args import ProgramArgs
from programs.process.program import hand_over, resource_inputs
from programs.provider import worker
from programs.provider.folder import RunFolder
from programs.provider.servicer import PROCESS
from stacks.backend import Backend
from stacks.claims import Claim
from stacks.cli import CliEngine
from stacks.engine import Adoption, Deployment, Engine, StackName, stack_name
from stacks.errors import ConfigurationError, EngineError, KeyMismatchError, StackLockedError, TimeLimitError
from stacks.leases import lease_expired
from stacks.processes import ProcessIdentity
from stacks.setup import Cli, ensure_cli, tools_folder
from stacks.state import StateFiles
from stacks.store import LocalStore
from stacks.warm import WarmEngine
from stacks.warm_setup import ensure_warm

LIMIT = timedelta(seconds=60)
_HOLD = """
import datetime, pathlib, sys
from stacks.backend import Backend
from stacks.engine import stack_name
backend = Backend.at(pathlib.Path(sys.argv[1]))
with backend.claims.hold(stack_name("r", 0), "launch", datetime.timedelta(0)):
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclass
class Bench:
    """An engine with a backend of its own, and a launcher that makes process programs for it."""

    backend: Backend
    engine: Engine
    launcher: ProcessLauncher
    cli: Cli

    @contextmanager
    def claimed(self, stack: StackName) -> Iterator[Claim]:
        with self.backend.claims.hold(stack, "test", LIMIT) as claim:
            yield claim

    def args(self, *command: str, run_id: str = "r") -> ProgramArgs[ProcessTemplate]:
        return self.launcher.args(Run(id=run_id, command=command), self.backend.open())

    def plain(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The `pulumi` command as a user calls it, with nothing but the backend and its key."""
        environment = {
            "HOME": str(self.backend.home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PULUMI_BACKEND_URL": self.backend.url,
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self.backend.key_file()),
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }
        command = [str(self.cli.path), "--non-interactive", *arguments]
        return subprocess.run(
            command, env=environment, cwd=self.backend.home, capture_output=True, text=True, check=check
        )


@pytest.fixture(params=["cli", "warm"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    take_engine(request, request.param)
    backend = Backend.at(tmp_path / "home")
    cli = ensure_cli(tools_folder(), print)
    backend.open()
    workspace = Workspace(backend, progress=print)
    launcher = ProcessLauncher(workspace, ProcessTemplate(grace=timedelta(seconds=1)), "test")
    engines: dict[str, Engine] = {
        "cli": CliEngine(backend, lambda: cli),
        "warm": WarmEngine(backend, lambda: ensure_warm(tools_folder(), print)),
    }
    made = Bench(backend, engines[request.param], launcher, cli)
    yield made
    for folder in backend.home.glob("runs/*/*"):
        launcher_found = [found for found in launcher.find(None) if found.handle.coordinates["folder"] == str(folder)]
        for found in launcher_found:
            launcher.remove(found, timedelta(seconds=1))


def void(_: object) -> None:
    """Let a declaration be a program."""


def exporting(value: object) -> Callable[[], None]:
    return lambda: pulumi.export("value", value)


def test_no_code_that_a_caller_of_the_engine_sends_is_run(bench: Bench, tmp_path: Path) -> None:
    class Sent:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "mark",)

    inputs = {"__provider": base64.b64encode(pickle.dumps(Sent())).decode()}
    program = Deployment(
        stack_name("r", 0), lambda: void(pulumi.CustomResource("pulumi-python:dynamic:Resource", "r", inputs))
    )

    with bench.claimed(program.stack) as claim, pytest.raises(EngineError):
        bench.engine.up(program, claim, LIMIT)

    assert not (tmp_path / "mark").exists()


@pytest.mark.smoke
def test_a_stack_is_made_previewed_destroyed_and_forgotten(bench: Bench) -> None:
    args = bench.args("sleep", "600")
    deployment = bench.launcher.deployment(args)
    before = bench.engine.preview(deployment)
    with bench.claimed(deployment.stack) as claim:
        outputs = bench.engine.up(deployment, claim, LIMIT)
        after = bench.engine.preview(deployment)
        seen = list(bench.engine.stacks())
        objects = bench.engine.destroy(deployment.stack, claim, bench.launcher.providers())
        bench.engine.remove(deployment.stack, claim)

    assert {change.operation for change in before} == {"create"}
    assert {change.operation for change in after} == {"same"}
    assert outputs["handle"]["run_id"] == "r"
    assert (seen, objects) == ([deployment.stack], 1)
    assert bench.engine.outputs(deployment.stack) is None
    assert [path for path in bench.backend.root.rglob("*") if path.is_file() and path.name.split(".")[0] == "r"] == []


def test_a_plain_pulumi_reads_and_ends_what_the_engine_made(bench: Bench) -> None:
    args = bench.args("sleep", "600")
    stack = stack_name("r", 0)
    with bench.claimed(stack) as claim:
        bench.engine.up(bench.launcher.deployment(args), claim, LIMIT)
    there = RunFolder(Path(args.context.folder)).worker()
    assert there is not None

    listed = json.loads(bench.plain("stack", "ls", "--all", "--json").stdout)
    output = json.loads(bench.plain("stack", "output", "handle", "-s", stack.full, "--json").stdout)
    bench.plain("destroy", "-s", stack.full, "--yes", "--skip-preview")

    assert [each["name"] for each in listed] == [stack.full]
    assert output["coordinates"]["pid"] == there.worker.pid
    assert not psutil.pid_exists(there.shim.pid) or psutil.Process(there.shim.pid).status() == psutil.STATUS_ZOMBIE
    assert not Path(args.context.folder).exists()
    assert Path(args.context.archive).exists()


def test_an_adopted_worker_is_unchanged_at_preview_and_ends_with_a_plain_destroy(bench: Bench) -> None:
    args = bench.args("sleep", "600")
    hand_over(args)
    record = worker.start(RunFolder(Path(args.context.folder)))
    deployment = bench.launcher.deployment(args)
    inputs = resource_inputs(args)
    outputs = {
        **inputs,
        "pid": record.worker.pid,
        "startTime": str(record.worker.start_time),
        "bootId": record.boot_id,
        "pidNamespace": str(record.pid_namespace),
    }
    with bench.claimed(deployment.stack) as claim:
        adoption = Adoption(PROCESS, "worker", "r", inputs, outputs)
        bench.engine.adopt(deployment, [adoption], {}, claim, LIMIT)
    changes = {
        change.urn.rpartition("::")[0].rpartition("::")[2]: change.operation
        for change in bench.engine.preview(deployment)
    }
    bench.plain("destroy", "-s", deployment.stack.full, "--yes", "--skip-preview")

    assert changes[PROCESS] == "same"
    assert changes["pulumi:providers:runworker"] == "same"
    assert not worker.alive(record.shim)


def test_a_changed_program_keeps_the_worker_that_runs(bench: Bench) -> None:
    first, second = bench.args("sleep", "600"), bench.args("sleep", "601")
    with bench.claimed(stack_name("r", 0)) as claim:
        one = bench.engine.up(bench.launcher.deployment(first), claim, LIMIT)
        two = bench.engine.up(bench.launcher.deployment(second), claim, LIMIT)

    assert one["handle"]["coordinates"] == two["handle"]["coordinates"]


def test_an_error_of_the_program_comes_out_as_itself(bench: Bench) -> None:
    def program() -> None:
        message = "no such secret"
        raise EngineError(message)

    stack = stack_name("r", 0)
    with bench.claimed(stack) as claim, pytest.raises(EngineError, match=r"^no such secret$"):
        bench.engine.up(Deployment(stack, program), claim, LIMIT)


def test_a_program_that_hangs_is_stopped_at_the_time_limit_and_leaves_no_lock(bench: Bench) -> None:
    stack, never = stack_name("r", 0), threading.Event()
    with bench.claimed(stack) as claim:
        threading.Timer(6, never.set).start()
        with pytest.raises(TimeLimitError):
            bench.engine.up(Deployment(stack, lambda: (never.wait(), None)[1]), claim, timedelta(seconds=2))
        outputs = bench.engine.up(Deployment(stack, exporting(1)), claim, LIMIT)

    assert outputs == {"value": 1}
    assert [path for path in bench.backend.root.rglob("*") if "locks" in path.parts and path.is_file()] == []


@pytest.mark.parametrize("bench", ["cli"], indirect=True)
def test_an_interrupted_operation_leaves_no_process_and_no_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is stopped, so that it has to be killed; the second interrupt comes while it gets its time to end."""
    stack, never = stack_name("r", 0), threading.Event()
    pids: list[int] = []

    def program() -> None:
        never.wait(30)

    def interrupted(process: subprocess.Popen[bytes], seconds: float | None) -> bool:  # noqa: ARG001 - await_exit's
        if not pids:
            while not list(bench.backend.root.glob(".pulumi/locks/**/*.json")):
                assert process.poll() is None
            process.send_signal(signal.SIGSTOP)
        pids.append(process.pid)
        never.set()
        raise KeyboardInterrupt

    monkeypatch.setattr("stacks.operation.await_exit", interrupted)
    with bench.claimed(stack) as claim, pytest.raises(KeyboardInterrupt):
        bench.engine.up(Deployment(stack, program), claim, LIMIT)

    assert len(pids) == 2
    assert not psutil.pid_exists(pids[0])
    assert not list(bench.backend.root.glob(".pulumi/locks/**/*.json"))


def test_the_lock_of_an_engine_that_was_killed_is_broken(bench: Bench) -> None:
    stack, begun, never = stack_name("r", 0), threading.Event(), threading.Event()

    def program() -> None:
        begun.set()
        never.wait(30)

    with bench.claimed(stack) as claim, ThreadPoolExecutor() as threads:
        launch = threads.submit(bench.engine.up, Deployment(stack, program), claim, LIMIT)
        assert begun.wait(30)
        assert claim.note is not None
        os.kill(int(claim.note.read_text().split()[0]), signal.SIGKILL)
        never.set()

        assert isinstance(launch.exception(), EngineError)
        assert bench.engine.up(Deployment(stack, exporting(2)), claim, LIMIT) == {"value": 2}


def test_a_stack_whose_first_update_was_killed_before_it_wrote_its_history_is_destroyed(bench: Bench) -> None:
    args = bench.args("sleep", "600")
    deployment = bench.launcher.deployment(args)
    with bench.claimed(deployment.stack) as claim:
        bench.engine.up(deployment, claim, LIMIT)
        for path in bench.backend.root.glob(".pulumi/history/**/*.json"):
            path.unlink()

        assert bench.engine.destroy(deployment.stack, claim, deployment.providers, LIMIT) == 1
        bench.engine.remove(deployment.stack, claim)
    assert list(bench.launcher.find(None)) == []
    assert not list(bench.backend.root.glob(".pulumi/history/**/*.json"))


def test_operations_left_pending_are_forgotten(bench: Bench) -> None:
    stack = stack_name("r", 0)
    with bench.claimed(stack) as claim:
        bench.engine.up(Deployment(stack, exporting(1)), claim, LIMIT)
        path = bench.backend.root / ".pulumi" / "stacks" / stack.project / f"{stack.stack}.json"
        data = json.loads(path.read_text())
        pending = {
            "resource": {"urn": stack.urn(PROCESS, "worker"), "type": PROCESS, "custom": True},
            "type": "creating",
        }
        data["checkpoint"]["latest"]["pending_operations"] = [pending]
        path.write_text(json.dumps(data))

        assert bench.engine.forget_pending(stack, claim) == [stack.urn(PROCESS, "worker")]
        assert bench.engine.forget_pending(stack, claim) == []


def test_a_home_that_is_made_is_for_its_user_alone(bench: Bench) -> None:
    kept = [bench.backend.home, *bench.backend.home.rglob("*")]

    assert bench.backend.home.stat().st_mode & 0o777 == 0o700
    assert [path for path in kept if path.is_file() and path.stat().st_mode & 0o077] == []


def test_another_key_is_refused_before_any_work(bench: Bench) -> None:
    bench.backend.open()
    key = bench.backend.key_file()
    key.write_text("another")

    with pytest.raises(KeyMismatchError, match="not the one"):
        Backend.at(bench.backend.home).open()
    key.unlink()
    with pytest.raises(KeyMismatchError, match="copy it"):
        Backend.at(bench.backend.home).open()


def test_one_claim_excludes_another_and_is_free_when_its_holder_dies(bench: Bench) -> None:
    stack = stack_name("r", 0)
    command = [sys.executable, "-c", _HOLD, str(bench.backend.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StackLockedError, match=f"launch by process {holder.pid}"):
            bench.backend.claims.hold(stack, "test", timedelta(0)).__enter__()
        owner = bench.backend.claims.holder(stack)
        assert owner is not None
        assert not lease_expired(bench.backend.store, owner["owner"])
        holder.kill()

    with bench.claimed(stack) as claim:
        assert [each.who["pid"] for each in claim.left] == [holder.pid]
    assert lease_expired(bench.backend.store, owner["owner"])
    assert bench.backend.claims.holder(stack) is None


@pytest.mark.parametrize("name", ["ha#sh", "per%41cent", "que?stion"])
def test_a_home_that_no_url_can_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(name)):
        Backend.at(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_claim_that_a_full_disk_refused_leaves_nothing_and_may_be_taken_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, root = stack_name("r", 0), bench.backend.root

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(type(bench.backend.store), "write", full)
        with pytest.raises(OSError, match="space"):
            bench.claimed(stack).__enter__()
    left = [path for path in root.rglob("claims/*/*") if path.is_file()]
    with bench.claimed(stack):
        leases = list(root.glob("leases/*.json"))

    assert left == []
    assert len(leases) == 1
    assert list(root.glob("leases/*.json")) == []


def test_a_process_identity_is_alive_gone_or_out_of_sight() -> None:
    own: Any = ProcessIdentity.own()

    assert own.alive() is True
    assert ProcessIdentity(own.host, own.place, own.pid, own.start + 1).alive() is False
    assert ProcessIdentity(own.host, "elsewhere/1", own.pid, own.start).alive() is None


def test_a_lock_that_a_killed_pulumi_had_begun_to_write_is_no_lock(bench: Bench) -> None:
    stack = stack_name("r", 0)
    with bench.claimed(stack) as claim:
        bench.engine.up(Deployment(stack, exporting(1)), claim, LIMIT)
        torn = bench.backend.root / ".pulumi" / "locks" / stack.full / "a.json.18ea77a619e3ef67.tmp"
        torn.parent.mkdir(parents=True, exist_ok=True)
        torn.write_text("{")

        assert bench.engine.up(Deployment(stack, exporting(2)), claim, LIMIT) == {"value": 2}
    assert not torn.exists()


class Dying(LocalStore):
    """A folder whose user is killed after so many deletions."""

    def __init__(self, root: Path, after: int) -> None:
        super().__init__(root)
        self._left = after

    def delete(self, path: str) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        super().delete(path)


def test_the_checkpoint_leads_to_whatever_a_removal_that_died_has_left(tmp_path: Path) -> None:
    stack = stack_name("r", 0)
    path = f"{stack.project}/{stack.stack}"
    files = [
        f"stacks/{path}.json",
        f"stacks/{path}.json.bak",
        f"history/{path}/r-1.history.json",
        f"backups/{path}/r.json",
    ]
    for after in range(20):
        store = Dying(tmp_path, after)
        for name in files:
            store.write(f".pulumi/{name}", b"{}")
        with suppress(KeyboardInterrupt):
            StateFiles(store).remove(stack)
        left = [each for each in tmp_path.rglob("*") if each.is_file()]

        assert left == [] or list(StateFiles(store).stacks()) == [stack]
    assert left == []
