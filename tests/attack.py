"""What a process of another user tries against a launch; a program of its own, which prints what came of it as JSON.

Its arguments are a folder of its own, and the inputs of a worker that it would like to have run. On stdin it gets, as
JSON: `paths` to read and link, `pids` to look into, `ports` to call, `sockets` to connect to, `secrets` to look for.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.protobuf import message_factory, struct_pb2
from google.protobuf.message import Message
from pulumi.runtime.proto import engine_pb2, language_pb2, provider_pb2, resource_pb2

SERVICES = (
    *provider_pb2.DESCRIPTOR.services_by_name.values(),
    *language_pb2.DESCRIPTOR.services_by_name.values(),
    *engine_pb2.DESCRIPTOR.services_by_name.values(),
)
LIMIT = 3.0  # seconds for one call


def read(paths: list[str]) -> Iterator[str]:
    """The files and folders that opened, were linked, or let something be written beside them."""
    for path in paths:
        for act in (_read, _link, _plant, _replace):
            try:
                act(Path(path))
            except OSError:
                continue
            yield f"{act.__name__} {path}"


def _read(path: Path) -> object:
    return list(path.iterdir()) if path.is_dir() else path.read_bytes()


def _link(path: Path) -> None:
    Path(sys.argv[1], os.urandom(4).hex()).hardlink_to(path)


def _plant(path: Path) -> None:
    (path / "planted").mkdir()


def _replace(path: Path) -> None:
    path.rename(f"{path}.gone")


def look_into(pids: list[int]) -> Iterator[str]:
    """What of other processes opened that is for their user alone."""
    for pid in pids:
        for name in ("environ", "mem", "maps", "fd", "cwd", "root", "exe"):
            path = Path(f"/proc/{pid}/{name}")
            try:
                if name in {"cwd", "root", "exe"}:
                    path.readlink()
                elif name == "fd":
                    list(path.iterdir())
                else:
                    with path.open("rb") as file:
                        file.read(1)
            except OSError:
                continue
            yield str(path)


def seen() -> bytes:
    """Everything that the machine shows to everybody: processes, loopback connections, sockets, temporary files."""
    shown = [subprocess.run(["ps", "axwwe"], capture_output=True, check=False).stdout]
    for pattern in ("*/cmdline", "*/comm", "*/status", "net/unix", "net/tcp"):
        for path in Path("/proc").glob(pattern):
            try:
                shown.append(path.read_bytes())
            except OSError:
                continue
    return b"\n".join(shown)


def call(port: int) -> dict[str, str]:
    """The answer to each call of each protocol at a port, to empty requests and to harmful ones."""
    answers: dict[str, str] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service in SERVICES:
            for method in service.methods:
                request = message_factory.GetMessageClass(method.input_type)()
                answers[method.full_name] = _code(channel, f"/{service.full_name}/{method.name}", request)
        properties = struct_pb2.Struct()
        properties.update(json.loads(sys.argv[2]))
        urn = "urn:pulumi:r::runs-45::runworker:index:Process::evil"
        create = provider_pb2.CreateRequest(urn=urn, properties=properties)
        delete = provider_pb2.DeleteRequest(id="r", urn=urn, properties=properties)
        register = resource_pb2.RegisterResourceRequest(
            type="runworker:index:Process", name="evil", custom=True, object=properties, acceptSecrets=True
        )
        for path, request in (
            ("/pulumirpc.ResourceProvider/Create", create),
            ("/pulumirpc.ResourceProvider/Delete", delete),
            ("/pulumirpc.ResourceMonitor/RegisterResource", register),
        ):
            answers[f"harmful {path}"] = _code(channel, path, request)
    return answers


def _code(channel: grpc.Channel, path: str, request: Message) -> str:
    invoke: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    try:
        invoke(request.SerializeToString(), timeout=LIMIT)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def connect(paths: list[str]) -> Iterator[str]:
    """The Unix sockets that let us in."""
    for path in paths:
        with socket.socket(socket.AF_UNIX) as end:
            try:
                end.connect(path)
            except OSError:
                continue
            yield path


if __name__ == "__main__":
    told = json.load(sys.stdin)
    shown = seen()
    print(  # noqa: T201 - its answer
        json.dumps(
            {
                "uid": os.getuid(),
                "files": list(read(told["paths"])),
                "processes": list(look_into(told["pids"])),
                "secrets": [each for each in told["secrets"] if each.encode() in shown],
                "ports": {str(port): call(port) for port in told["ports"]},
                "sockets": list(connect(told["sockets"])),
            }
        )
    )
