"""Plugins as an engine starts them: their executable, on a port that they tell."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import json_format
from plugins.install import provide
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2

_REQUESTS: Final = {
    "CheckConfig": provider_pb2.CheckRequest,
    "DiffConfig": provider_pb2.DiffRequest,
    "Configure": provider_pb2.ConfigureRequest,
    "Check": provider_pb2.CheckRequest,
    "Diff": provider_pb2.DiffRequest,
    "Create": provider_pb2.CreateRequest,
    "Read": provider_pb2.ReadRequest,
    "Update": provider_pb2.UpdateRequest,
    "Delete": provider_pb2.DeleteRequest,
}
_ENGINE: Final = "127.0.0.1:9"  # whom a published plugin would send its log


class Calls:
    """Calls a plugin, in JSON as protobuf maps it. Raises grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = provider_pb2_grpc.ResourceProviderStub(channel)

    def __call__(self, method: str, request: Mapping[str, Any]) -> dict[str, Any]:
        message = json_format.ParseDict(dict(request), _REQUESTS[method]())
        answer: dict[str, Any] = json_format.MessageToDict(getattr(self.stub, method)(message))
        return answer


@contextmanager
def calling(port: int) -> Iterator[Calls]:
    """Call the plugin at a loopback port."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Calls(channel)


@contextmanager
def started(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Calls]:
    """Start a plugin: the published one where there is one, else its stand-in; it is ended with the block."""
    command = [str(provide(folder, name) / f"pulumi-resource-{name}"), _ENGINE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(environment)) as process:
        assert process.stdout is not None
        try:
            with calling(int(process.stdout.readline())) as calls:
                yield calls
        finally:
            process.kill()


def failed(error: grpc.RpcError) -> str:
    """A failure as Go prints it, which is how they were recorded."""
    assert isinstance(error, grpc.Call)
    code = error.code().name.title().replace("_", "")
    return f"rpc error: code = {code} desc = {error.details()}"


def half_done(error: grpc.RpcError) -> dict[str, Any]:
    """What a failed call says of the resource that it left; nothing where it left none."""
    assert isinstance(error, grpc.Call)
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    if details is None:
        return {}
    (detail,) = status_pb2.Status.FromString(details).details
    there = provider_pb2.ErrorResourceInitFailed()
    assert detail.Unpack(there)
    answer: dict[str, Any] = json_format.MessageToDict(there)
    return answer
