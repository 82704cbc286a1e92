"""The process program under Mocks, on disk, and its provider as anybody could reach it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from launchers import ProcessTemplate, Run
from programs.args import Context, ProgramArgs, fingerprints, local_paths
from programs.process.environment import build_environment
from programs.process.program import hand_over
from programs.provider import worker
from programs.provider.attach import serve
from programs.provider.folder import ForeignFolderError, RunFolder
from programs.provider.place import Place, boot_id, pid_namespace
from programs.provider.servicer import PROCESS
from stacks.errors import UsageError
from stacks.setup import ensure_cli, ensure_language_host, tools_folder

PROJECT = Path(worker.__file__).parents[1] / "process"
NOBODY = 65534


def made(
    tmp_path: Path, *command: str, run: dict[str, Any] | None = None, **template: object
) -> ProgramArgs[ProcessTemplate]:
    value = ProcessTemplate.model_validate(template)
    folder, archive = local_paths(tmp_path, "00", "r")
    wanted = Run(id="r", command=command, **(run or {}))
    digest = value.digest()
    context = Context(
        backend="b",
        template="t",
        digest=digest,
        fingerprint=fingerprints(wanted, digest)["all"],
        place=str(Place.own()),
        folder=str(folder),
        archive=str(archive),
        cwd=str(tmp_path),
    )
    return ProgramArgs(template=value, run=wanted, context=context)


@pytest.fixture(autouse=True)
def nothing_runs_on(tmp_path: Path) -> Iterator[None]:
    yield
    for folder in tmp_path.glob("**/runs/*/*"):
        assert worker.remove(folder, None, timedelta(seconds=1))


# ---- under Mocks ----

_MOCKED = """
import json, sys
import pulumi
from programs.args import ProgramArgs
from programs.process.program import program
from programs.process.template import ProcessTemplate

class Recorder(pulumi.runtime.Mocks):
    def new_resource(self, args):
        print(json.dumps({args.typ: args.inputs}))
        return "id", {**args.inputs, "pid": 7, "startTime": "8", "bootId": "b", "pidNamespace": "1"}

    def call(self, args):
        raise AssertionError(args.token)

pulumi.runtime.set_mocks(Recorder(), preview=True)
args = ProgramArgs[ProcessTemplate].model_validate_json(sys.argv[1])
pulumi.runtime.test(lambda: program(args))()
"""
"""Mocks are the whole process's, so they get one of their own; it prints what the program registers."""


def test_the_state_holds_names_of_the_environment_and_no_value(tmp_path: Path) -> None:
    args = made(tmp_path, "sh", "-c", "exit", run={"env": {"TOKEN": "s3cr3t"}}, secrets={"KEY": {"env": "HOME"}})

    done = subprocess.run(
        [sys.executable, "-c", _MOCKED, args.model_dump_json()], capture_output=True, text=True, check=False
    )

    registered = {name: inputs for line in done.stdout.splitlines() for name, inputs in json.loads(line).items()}
    assert PROCESS in registered, done.stderr
    inputs = registered[PROCESS]
    assert inputs["environmentNames"] == ["KEY", "PYTHONUNBUFFERED", "TOKEN"]
    assert inputs["command"] == ["sh", "-c", "exit"]
    assert inputs["labels"]["run-launcher/run-id"] == "r"
    assert "s3cr3t" not in done.stdout
    assert not Path(args.context.folder).exists()


def test_the_worker_never_inherits_the_engines_variables() -> None:
    run = Run(id="r", command=("true",), env={"B": "run"})
    template = ProcessTemplate(env={"A": "template", "B": "template"})
    inherited = {"PULUMI_CONFIG_PASSPHRASE": "x", "PATH": "/bin", "A": "caller"}

    assert build_environment(template, run, inherited) == {"PATH": "/bin", "A": "template", "B": "run"}
    assert build_environment(ProcessTemplate(inherit_env=False, env={}), run, inherited) == {"B": "run"}


@pytest.mark.parametrize("source", [{"env": "NOT_THERE"}, {"file": "/not/there"}])
def test_a_secret_that_is_not_there_is_named_by_its_reference(source: dict[str, str]) -> None:
    template = ProcessTemplate.model_validate({"secrets": {"KEY": source}})

    with pytest.raises(UsageError, match=rf"KEY.*{next(iter(source.values()))}"):
        build_environment(template, Run(id="r", command=("true",)), {})


# ---- the provider, as anybody could reach it ----


def create(port: int, folder: Path, *command: str) -> provider_pb2.CreateResponse:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        properties = struct_pb2.Struct()
        properties.update({"runId": "r", "folder": str(folder), "command": list(command)})
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        answer: provider_pb2.CreateResponse = stub.Create(provider_pb2.CreateRequest(properties=properties))
        return answer


def test_the_provider_answers_the_engine_that_it_was_told_of_and_nobody_else(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600"))
    folder = Path(args.context.folder)
    with subprocess.Popen(["sleep", "600"]) as stranger, serve() as server:
        server.admit(stranger.pid)
        with pytest.raises(grpc.RpcError) as refused:
            create(server.port, folder, "sleep", "600")
        stranger.kill()
    with serve() as server:
        server.admit(os.getpid())
        answer = create(server.port, folder, "sleep", "600")

    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert psutil.pid_exists(round(float(str(answer.properties["pid"]))))


def test_a_caller_on_the_engines_port_at_another_address_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as engines, serve() as server, socket.socket() as caller:
        server.admit(os.getpid())
        port = engines.getsockname()[1]
        caller.bind(("127.0.0.2", port))
        with socket.create_connection(("127.0.0.1", server.port)) as own:
            allowed = server.guard.proves(f"ipv4:127.0.0.1:{own.getsockname()[1]}")

        assert allowed
        assert not server.guard.proves(f"ipv4:127.0.0.2:{port}")
        assert not server.guard.proves(f"ipv4:127.0.0.1:{port}")


def test_a_shim_that_does_not_answer_is_ended_after_the_grace(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600", grace="1s"))
    folder = RunFolder(Path(args.context.folder))
    record = worker.start(folder)
    psutil.Process(record.shim.pid).suspend()
    properties = struct_pb2.Struct()
    properties.update({"runId": "r", "folder": str(folder.path), "graceSeconds": 1})
    with serve() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        server.admit(os.getpid())
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        try:
            stub.Delete(provider_pb2.DeleteRequest(properties=properties), timeout=20)
        finally:
            worker.remove(folder.path, None, timedelta(seconds=1))

    assert not worker.alive(record.worker)


def test_the_provider_runs_only_what_was_handed_over(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600"))
    evil = tmp_path / "evil"
    with serve() as server:
        server.admit(os.getpid())
        with pytest.raises(grpc.RpcError, match="handed over"):
            create(server.port, Path(args.context.folder), "touch", str(evil))
        with pytest.raises(grpc.RpcError):
            create(server.port, tmp_path / "absent", "touch", str(evil))

    assert not evil.exists()


def test_a_worker_is_taken_over_and_ended_by_its_own_stack_only(tmp_path: Path) -> None:
    """A stranger may register it in the stack of another run that is just launched."""
    hand_over(args := made(tmp_path, "sleep", "600"), stack="runs-45/r")
    folder = RunFolder(Path(args.context.folder))
    record = worker.start(folder)
    properties, chosen = struct_pb2.Struct(), tmp_path / "chosen"
    properties.update({"runId": "r", "folder": str(folder.path), "command": ["sleep", "600"], "archive": str(chosen)})

    def urn(stack: str) -> str:
        return f"urn:pulumi:{stack}::runs-45::{PROCESS}::worker"

    with serve() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        server.admit(os.getpid())
        stub = provider_pb2_grpc.ResourceProviderStub(channel)
        with pytest.raises(grpc.RpcError, match="another stack"):
            stub.Create(provider_pb2.CreateRequest(urn=urn("other"), properties=properties))
        with pytest.raises(grpc.RpcError, match="another stack"):
            stub.Delete(provider_pb2.DeleteRequest(urn=urn("other"), properties=properties))
        alive = worker.alive(record.worker)
        stub.Delete(provider_pb2.DeleteRequest(urn=urn("r"), properties=properties))

    assert alive
    assert not worker.alive(record.worker)
    assert not chosen.exists()
    assert Path(args.context.archive).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600"))
    folder = Path(args.context.folder)
    os.chown(folder, NOBODY, NOBODY)

    with pytest.raises(ForeignFolderError):
        RunFolder(folder).check()
    os.chown(folder, 0, 0)
    os.chown(folder / "handover", NOBODY, NOBODY)
    with pytest.raises(ForeignFolderError):
        RunFolder(folder).handed_over()
    with pytest.raises(worker.StartError, match="not permitted"):
        worker.start(RunFolder(folder))
    shutil.rmtree(folder)


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(ForeignFolderError):
        RunFolder(tmp_path / "link").make()


# ---- the shim ----


def test_the_shim_takes_at_most_two_megabytes(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600"))
    record = worker.start(RunFolder(Path(args.context.folder)))

    assert psutil.Process(record.shim.pid).memory_info().rss <= 2 * 2**20


def test_a_folder_that_was_closed_starts_nothing(tmp_path: Path) -> None:
    hand_over(args := made(tmp_path, "sleep", "600"))
    folder = RunFolder(Path(args.context.folder))
    folder.close()

    with pytest.raises(worker.StartError):
        worker.start(folder)
    assert worker.remove(folder.path, None)


@pytest.mark.parametrize(
    ("limits", "script", "sign"),
    [
        ({"memory": "64Mi"}, "exec {python} -c 'bytearray(500 * 2**20)'", "exit 1"),
        ({"cpu_time": "1s"}, "while :; do :; done", "signal 24"),
        ({"open_files": 8}, 'test "$(ulimit -n)" = 8 || exit 9; exit 4', "exit 4"),
    ],
)
def test_the_templates_limits_hold(tmp_path: Path, limits: dict[str, object], script: str, sign: str) -> None:
    hand_over(args := made(tmp_path, "sh", "-c", script.format(python=sys.executable), limits=limits))
    folder = RunFolder(Path(args.context.folder))
    record = worker.start(folder)
    assert worker.await_end(record.shim, 30)
    ending = folder.ending()

    assert ending is not None
    assert sign == (f"exit {ending.exit_code}" if ending.signal is None else f"signal {ending.signal}")


def test_a_killed_shim_takes_its_worker_along_and_the_rest_is_found(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    hand_over(args := made(tmp_path, "sh", "-c", f"setsid sleep 600 & touch {ready}; exec sleep 600"))
    folder = RunFolder(Path(args.context.folder))
    record = worker.start(folder)
    while not ready.exists():
        assert worker.alive(record.shim)
    psutil.Process(record.shim.pid).kill()

    assert worker.await_end(record.worker, 10)
    assert worker.stop(folder)
    assert worker.remains(record) == []


def test_a_reused_pid_is_never_signalled(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.make()
    with subprocess.Popen(["sleep", "600"]) as bystander:
        start = worker.start_time(bystander.pid)
        assert start is not None
        identity = {"pid": bystander.pid, "start_time": start - 1}
        (folder.path / "worker.json").write_text(
            json.dumps(
                {
                    "v": 1,
                    "boot_id": boot_id(),
                    "pid_namespace": pid_namespace(),
                    "shim": identity,
                    "worker": {**identity, "pid": 2**22 + 1},
                    "started_at": 0,
                    "meta": {"token": "none"},
                }
            )
        )
        stopped = worker.stop(folder)

        assert stopped
        assert bystander.poll() is None
        bystander.kill()


def test_a_reused_group_or_session_is_never_signalled(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.make()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        start = worker.start_time(bystander.pid)
        assert start is not None
        record = {
            "v": 1,
            "boot_id": boot_id(),
            "pid_namespace": pid_namespace(),
            "shim": {"pid": bystander.pid, "start_time": start - 1},
            "worker": {"pid": bystander.pid, "start_time": start - 1},
            "started_at": 0,
            "meta": {"token": "none"},
        }
        (folder.path / "worker.json").write_text(json.dumps(record))
        stopped = worker.stop(folder)

        assert stopped
        assert bystander.poll() is None
        bystander.kill()


def test_a_run_that_a_worker_launched_is_left_alone_when_the_worker_ends(tmp_path: Path) -> None:
    hand_over(inner := made(tmp_path / "inner", "sleep", "600"))
    inner_folder = RunFolder(Path(inner.context.folder))
    code = "import pathlib, sys; from programs.provider import folder, worker; "
    code += "worker.start(folder.RunFolder(pathlib.Path(sys.argv[1])))"
    hand_over(outer := made(tmp_path / "outer", sys.executable, "-c", code, str(inner_folder.path)))
    outer_folder = RunFolder(Path(outer.context.folder))
    assert worker.await_end(worker.start(outer_folder).shim, 60)
    record = inner_folder.worker()
    assert record is not None
    assert worker.remove(outer_folder.path, None, timedelta(seconds=1))

    assert worker.alive(record.shim)
    assert worker.alive(record.worker)


def test_the_shim_of_another_installation_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "site" / "programs" / "provider" / "shim"
    other.parent.mkdir(parents=True)
    shutil.copy(worker.SHIM, other)
    hand_over(inner := made(tmp_path / "inner", "sleep", "600"))
    inner_folder = RunFolder(Path(inner.context.folder))
    hand_over(
        outer := made(tmp_path / "outer", "sh", "-c", 'env -i "$@" | cat', "sh", str(other), str(inner_folder.path))
    )
    assert worker.await_end(worker.start(RunFolder(Path(outer.context.folder))).shim, 60)
    record = inner_folder.worker()

    assert record is not None
    assert worker.alive(record.worker)


# ---- on disk ----


def test_pulumi_up_in_the_programs_folder_debugs_a_template(tmp_path: Path) -> None:
    cli = ensure_language_host(ensure_cli(tools_folder(), print), tools_folder(), print)
    path = [str(Path(sys.executable).parent), *map(str, cli.extra_path), str(cli.path.parent), os.environ["PATH"]]
    environment = {
        "PATH": os.pathsep.join(path),
        "HOME": str(tmp_path),
        "RUN_LAUNCHER_HOME": str(tmp_path / "home"),
        "PULUMI_HOME": str(tmp_path / "pulumi"),
        "PULUMI_BACKEND_URL": f"file://{tmp_path}",
        "PULUMI_CONFIG_PASSPHRASE": "debug",
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    project = tmp_path / "project"
    shutil.copytree(PROJECT, project)
    marker = tmp_path / "marker"
    value = {
        "template": {"grace": "1s"},
        "run": {"id": "mine", "command": ["sh", "-c", f"echo $A >{marker}; sleep 600"]},
    }

    def pulumi_command(*arguments: str) -> str:
        done = subprocess.run(
            [str(cli.path), "--non-interactive", *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pulumi_command("stack", "init", "dev")
    pulumi_command("config", "set", "run-launcher:args", json.dumps(value))
    pulumi_command("config", "set", "--secret", "run-launcher:secrets", json.dumps({"A": "s3cr3t"}))
    pulumi_command("up", "--yes", "--skip-preview")
    handle = json.loads(pulumi_command("stack", "output", "handle", "--json"))
    state = pulumi_command("stack", "export")
    again = pulumi_command("up", "--yes", "--skip-preview")
    pid = int(handle["coordinates"]["pid"])
    alive = psutil.pid_exists(pid)
    while not marker.exists() or not marker.read_text():
        assert psutil.pid_exists(pid)
    pulumi_command("destroy", "--yes", "--skip-preview")

    assert (handle["run_id"], handle["target"], alive) == ("mine", "process", True)
    assert marker.read_text() == "s3cr3t\n"
    assert "s3cr3t" not in state
    assert "2 unchanged" in again
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert list((tmp_path / "home" / "runs").glob("*/*")) == []
