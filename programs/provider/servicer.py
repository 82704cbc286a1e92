"""The provider plugin `runworker`: makes a local process group out of a `runworker:index:Process` resource.

It runs only what stands in the handover of the run's folder, a file that this user alone can write: whoever reaches
its port, or the engine's, cannot make it run a command of their own. Its other resource, a folder that runs share, is
in folder_resource.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from programs.provider import folder_resource, worker
from programs.provider.folder import ForeignFolderError, Identity, RunFolder, WorkerRecord
from programs.provider.place import boot_id, pid_namespace
from stacks.errors import UsageError
from stacks.handle import check_run_id

PACKAGE: Final = "runworker"
VERSION: Final = "0.1.0"
PROCESS: Final = "runworker:index:Process"
LAUNCHED: Final = "launched"
"""The input that says of a worker that it was started before. In the state of none: it comes with a program on disk,
and the engine shows it to `Check` only where it would create the worker, at first or in another one's place."""

OPTIONS: Final = (("grpc.max_receive_message_length", -1),)
"""Of a server: a command may be as long as the system allows, and its state is sent more than once in one message."""

_TEXT: Final = {"type": "string"}
_SCHEMA: Final = {
    "name": PACKAGE,
    "version": VERSION,
    "description": "Run workers that no published provider has.",
    "resources": {
        PROCESS: {
            "description": "A process group on this host, started once from the handover in its folder.",
            "inputProperties": {
                "runId": _TEXT,
                "folder": _TEXT,
                "archive": _TEXT,
                "command": {"type": "array", "items": _TEXT},
                "cwd": _TEXT,
                "environmentNames": {"type": "array", "items": _TEXT},
                "graceSeconds": {"type": "number"},
                "labels": {"type": "object", "additionalProperties": _TEXT},
                LAUNCHED: {"type": "boolean"},
            },
            "requiredInputs": ["runId", "folder", "command"],
            "properties": {
                "pid": {"type": "integer"},
                "startTime": _TEXT,
                "bootId": _TEXT,
                "pidNamespace": _TEXT,
            },
        },
        folder_resource.FOLDER: folder_resource.SCHEMA,
    },
}


class RunworkerServicer(provider_pb2_grpc.ResourceProviderServicer):
    """Serves the plugin protocol; stateless, so that any process can serve any resource."""

    def GetPluginInfo(self, request: object, context: object) -> object:
        """Tell the version."""
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: object, context: object) -> object:
        """Tell the schema."""
        return provider_pb2.GetSchemaResponse(schema=json.dumps(_SCHEMA))

    def Handshake(self, request: object, context: object) -> object:
        """Agree with the engine: plain values only, and previews are understood."""
        return provider_pb2.ProviderHandshakeResponse(
            accept_secrets=False, accept_outputs=False, accept_resources=False
        )

    def Attach(self, request: object, context: object) -> empty_pb2.Empty:
        """Accept an engine that was told to attach."""
        return empty_pb2.Empty()

    def Cancel(self, request: object, context: object) -> empty_pb2.Empty:
        """Nothing to cancel: a create takes milliseconds, and a delete is bounded by its grace."""
        return empty_pb2.Empty()

    def CheckConfig(self, request: provider_pb2.CheckRequest, context: object) -> object:
        """Accept the provider's configuration, which holds nothing but a version."""
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: object, context: object) -> object:
        """See no difference between configurations."""
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Configure(self, request: object, context: object) -> object:
        """Ask for plain values: nothing secret ever reaches this provider."""
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True, acceptOutputs=False)

    def Check(self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext) -> object:
        """Find wrong inputs before anything is done; without old ones, the worker would be created."""
        inputs = _plain(request.news)
        found = folder_resource.problems(inputs) if _is_folder(request.urn) else _problems(inputs)
        if inputs.get(LAUNCHED) and not request.olds.fields:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, _once(inputs))
        failures = [provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in found.items()]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def Diff(self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext) -> object:
        """See no difference, or refuse: a worker is never changed, nor replaced by another one."""
        old, new = _plain(request.old_inputs) or _plain(request.olds), _plain(request.news)
        if _is_folder(request.urn):
            if others := folder_resource.changed(old, new):
                message = f"a shared folder cannot become another one ({', '.join(others)})"
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
            return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)
        changed = sorted(name for name in new if new[name] != old.get(name))
        if changed:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the worker of run {old.get('runId')} cannot change ({', '.join(changed)}): a run is executed once. "
                "Launch another run or the next attempt, or destroy this one first",
            )
        return provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_NONE)

    def Create(self, request: provider_pb2.CreateRequest, context: grpc.ServicerContext) -> object:
        """Start the worker that was handed over, or take over the one that is there already."""
        inputs = _plain(request.properties)
        if inputs.get(LAUNCHED):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, _once(inputs))
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        if _is_folder(request.urn):
            try:
                state = folder_resource.create(inputs, request.urn)
            except folder_resource.RefusedError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            return provider_pb2.CreateResponse(id=Path(inputs["folder"]).name, properties=_struct(state))
        folder = RunFolder(Path(inputs["folder"]))
        try:
            record = _start(folder, inputs, request.urn)
        except FileNotFoundError:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the run's folder {folder.path} is not there")
        except (ForeignFolderError, _RefusedError) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except worker.StartError as error:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{START_FAILED} {error.stage} {error.errno}: {os.strerror(error.errno)}",
            )
        return provider_pb2.CreateResponse(id=folder.path.name, properties=_struct({**inputs, **_identity(record)}))

    def Read(self, request: provider_pb2.ReadRequest, context: grpc.ServicerContext) -> object:
        """Tell whether the worker is there; an ended one is, until it is deleted."""
        state = _plain(request.properties)
        if _is_folder(request.urn):
            if not folder_resource.is_there(state):
                return provider_pb2.ReadResponse()
            return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)
        record = RunFolder(Path(state["folder"])).worker() if "folder" in state else None
        if record is None:
            alone = _living_here(state)
            if alone is None or not worker.alive(alone):
                return provider_pb2.ReadResponse()
            return provider_pb2.ReadResponse(id=request.id, properties=request.properties, inputs=request.inputs)
        return provider_pb2.ReadResponse(
            id=request.id, properties=_struct({**state, **_identity(record)}), inputs=request.inputs
        )

    def Delete(self, request: provider_pb2.DeleteRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        """End the worker with all that it started, keep its output in the archive, and remove its folder."""
        state = _plain(request.properties)
        if _is_folder(request.urn):
            try:
                folder_resource.delete(state, request.urn)
            except folder_resource.RefusedError as error:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            return empty_pb2.Empty()
        grace = timedelta(seconds=state["graceSeconds"]) if "graceSeconds" in state else None
        record = RunFolder(Path(state["folder"])).worker()
        archive = state.get("archive")
        if record is not None:
            archive = record.meta.get("archive", archive)
            if not _is_stacks(record, request.urn):
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, _TAKEN.format(state.get("runId")))
        if not worker.remove(Path(state["folder"]), Path(archive) if archive else None, grace, _living_here(state)):
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the worker of run {state.get('runId')} does not live here, or does not end; its folder is kept",
            )
        return empty_pb2.Empty()


def _is_folder(urn: str) -> bool:
    return f"::{folder_resource.FOLDER}::" in urn


START_FAILED: Final = "the worker did not start:"


class _RefusedError(Exception):
    """What was asked for is not what was handed over."""


def _living_here(state: Mapping[str, Any]) -> Identity | None:
    """The worker, if this is its place: all there is to see and end it by where somebody removed its folder."""
    if (state.get("bootId"), state.get("pidNamespace")) != (boot_id(), str(pid_namespace())):
        return None
    return Identity(int(state["pid"]), int(state["startTime"]))


_TAKEN: Final = "the worker of run {} belongs to another stack"


def _is_stacks(record: WorkerRecord, urn: str) -> bool:
    """True if the worker was handed over to the stack of the URN.

    Any local user can register resources with an engine at work, but not choose its stack: so they can neither have a
    run of ours end with another one, nor its output moved to a place of their choice.
    """
    stack, project = [*urn.removeprefix("urn:pulumi:").split("::"), ""][:2]
    return record.meta.get("stack") in {None, f"{project}/{stack}"}


def _start(folder: RunFolder, inputs: Mapping[str, Any], urn: str) -> WorkerRecord:
    folder.check()
    there = folder.worker()
    if there is None:
        handed_over = folder.handed_over()
        if handed_over is not None and list(handed_over) != list(inputs["command"]):
            message = f"the command of run {inputs['runId']} is not the one that was handed over in its folder"
            raise _RefusedError(message)
    record = worker.start(folder)
    if record.meta.get("run_id") != inputs["runId"]:
        message = f"the folder {folder.path} holds the worker of run {record.meta.get('run_id')}"
        raise _RefusedError(message)
    if not _is_stacks(record, urn):
        raise _RefusedError(_TAKEN.format(inputs["runId"]))
    return record


def _once(inputs: Mapping[str, Any]) -> str:
    return (
        f"the worker of run {inputs.get('runId')} was started once, and is neither started again nor replaced: this "
        "would create it, since the state does not hold it any more, or since it is to be replaced. Nothing was done. "
        f"`run-launcher status {inputs.get('runId')}` tells how it is; to execute the run again, launch its next "
        "attempt (`run-launcher launch --attempt`) or another run"
    )


def _problems(inputs: Mapping[str, Any]) -> dict[str, str]:
    problems = {}
    if not isinstance(inputs.get("command"), list) or not inputs["command"]:
        problems["command"] = "must be a list of at least one word"
    if not Path(str(inputs.get("folder", ""))).is_absolute():
        problems["folder"] = "must be an absolute path"
    try:
        check_run_id(str(inputs.get("runId", "")))
    except UsageError as error:
        problems["runId"] = str(error)
    return problems


def _identity(record: WorkerRecord) -> dict[str, Any]:
    """The outputs that tell the worker from any other; numbers beyond 2**53 would not survive, so these are text."""
    return {
        "pid": record.worker.pid,
        "startTime": str(record.worker.start_time),
        "bootId": record.boot_id,
        "pidNamespace": str(record.pid_namespace),
    }


def _plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    values: dict[str, Any] = json_format.MessageToDict(struct)
    return values


def _struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    struct.update(values)
    return struct
