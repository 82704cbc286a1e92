"""What stand-ins for published provider plugins share: they serve Pulumi's plugin protocol on a loopback port.

A stand-in is a Plugin: a name, a version, and one Resource for each type that it knows. It answers several calls at
once, since one process serves many stacks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol

import grpc
from google.protobuf import empty_pb2
from plugins.values import Values, plain, struct
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc, status_pb2

CALLS: Final = 128
"""How many calls are answered at once: a Delete may wait for its worker's whole grace."""
_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class FailedError(Exception):
    """What was asked for was not done; the message is the whole text that the published plugin gives."""


class HalfDoneError(Exception):
    """The resource is there, but not as it should be: the engine records it, so that it can be removed."""

    def __init__(self, reason: str, identity: str, state: Values) -> None:
        super().__init__(reason)
        self.identity = identity
        self.state = state


@dataclass(frozen=True)
class Difference:
    """What an update would change. `kinds` has for each property ADD, UPDATE or DELETE, or the same with _REPLACE."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    stables: tuple[str, ...] = ()
    delete_first: bool = False


@dataclass(frozen=True)
class Asked:
    """What a call says of the resource that it is about."""

    urn: str
    seed: bytes = b""

    @property
    def name(self) -> str:
        """The resource's name in its program."""
        return self.urn.rpartition("::")[2]


class Resource(Protocol):
    """One type of resource. Each method raises FailedError; `create` and `update` also HalfDoneError."""

    def check(self, news: Values, olds: Values, asked: Asked) -> tuple[Values, dict[str, str]]:
        """The inputs with their defaults, and what is wrong with them by property."""

    def diff(self, state: Values, news: Values, ignored: tuple[str, ...]) -> Difference:
        """What differs between a state and inputs."""

    def plan(self, inputs: Values) -> Values:
        """The outputs of a resource that is not there yet, as a preview shows them."""

    def create(self, inputs: Values) -> tuple[str, Values]:
        """The id and the outputs of a new resource."""

    def read(self, identity: str, state: Values, inputs: Values) -> tuple[Values, Values] | None:
        """The outputs and inputs of a resource; None where it is not there."""

    def update(self, identity: str, state: Values, news: Values, *, preview: bool) -> Values:
        """The outputs of a resource that was changed in place."""

    def delete(self, identity: str, state: Values) -> None:
        """Remove a resource; one that is not there is removed."""


def no_configuration(_settings: Values) -> None:
    """For a plugin that has none."""


@dataclass(frozen=True)
class Plugin:
    """A provider plugin; `abilities` are the fields that the published one sets in its answer to Configure."""

    name: str
    version: str
    resources: Mapping[str, Resource]
    configure: Callable[[Values], None] = no_configuration
    abilities: tuple[str, ...] = ("supportsPreview", "supports_autonaming_configuration")


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """Answers an engine. It has no Handshake: so an engine asks with Configure, as it does the published plugins."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def GetPluginInfo(self, request: object, context: object) -> object:
        return plugin_pb2.PluginInfo(version=self._plugin.version)

    def GetSchema(self, request: object, context: object) -> object:
        schema = f'{{"name": "{self._plugin.name}", "version": "{self._plugin.version}"}}'
        return provider_pb2.GetSchemaResponse(schema=schema)

    def Attach(self, request: object, context: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def Cancel(self, request: object, context: object) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def CheckConfig(self, request: provider_pb2.CheckRequest, context: object) -> object:
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: provider_pb2.DiffRequest, context: object) -> object:
        old, new = plain(request.old_inputs), plain(request.news)
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        some = provider_pb2.DiffResponse(changes=provider_pb2.DiffResponse.DIFF_SOME, diffs=changed)
        return some if changed else provider_pb2.DiffResponse()

    def Configure(self, request: provider_pb2.ConfigureRequest, context: grpc.ServicerContext) -> object:
        try:
            self._plugin.configure(plain(request.args))
        except FailedError as error:
            _abort(error, context)
        return provider_pb2.ConfigureResponse(**dict.fromkeys(self._plugin.abilities, True))

    def Check(self, request: provider_pb2.CheckRequest, context: grpc.ServicerContext) -> object:
        asked = Asked(request.urn, request.randomSeed)
        resource = self._resource(request.urn, context)
        inputs, problems = resource.check(plain(request.news), plain(request.olds), asked)
        failures = [provider_pb2.CheckFailure(property=name, reason=reason) for name, reason in problems.items()]
        return provider_pb2.CheckResponse(inputs=struct(inputs), failures=failures)

    def Diff(self, request: provider_pb2.DiffRequest, context: grpc.ServicerContext) -> object:
        resource = self._resource(request.urn, context)
        return _answer(resource.diff(plain(request.olds), plain(request.news), tuple(request.ignoreChanges)))

    def Create(self, request: provider_pb2.CreateRequest, context: grpc.ServicerContext) -> object:
        resource, inputs = self._resource(request.urn, context), plain(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=struct(resource.plan(inputs)))
        try:
            identity, state = resource.create(inputs)
        except (FailedError, HalfDoneError) as error:
            _abort(error, context, f"creating {request.urn}: ")
        return provider_pb2.CreateResponse(id=identity, properties=struct(state))

    def Read(self, request: provider_pb2.ReadRequest, context: grpc.ServicerContext) -> object:
        resource = self._resource(request.urn, context)
        try:
            found = resource.read(request.id, plain(request.properties), plain(request.inputs))
        except FailedError as error:
            _abort(error, context)
        if found is None:
            return provider_pb2.ReadResponse()
        state, inputs = found
        return provider_pb2.ReadResponse(id=request.id, properties=struct(state), inputs=struct(inputs))

    def Update(self, request: provider_pb2.UpdateRequest, context: grpc.ServicerContext) -> object:
        resource, state, news = self._resource(request.urn, context), plain(request.olds), plain(request.news)
        try:
            state = resource.update(request.id, state, news, preview=request.preview)
        except (FailedError, HalfDoneError) as error:
            _abort(error, context, f"updating {request.urn}: ")
        return provider_pb2.UpdateResponse(properties=struct(state))

    def Delete(self, request: provider_pb2.DeleteRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
        resource = self._resource(request.urn, context)
        try:
            resource.delete(request.id, plain(request.properties))
        except FailedError as error:
            _abort(error, context)
        return empty_pb2.Empty()

    def _resource(self, urn: str, context: grpc.ServicerContext) -> Resource:
        kind = urn.split("::")[2].rpartition("$")[2]  # before it stand the types of its parents
        if kind not in self._plugin.resources:
            context.abort(grpc.StatusCode.UNKNOWN, f"unrecognized resource type ({urn}): {kind}")
        return self._plugin.resources[kind]


def _answer(difference: Difference) -> provider_pb2.DiffResponse:
    some, none = provider_pb2.DiffResponse.DIFF_SOME, provider_pb2.DiffResponse.DIFF_NONE
    replaces = sorted(name for name, kind in difference.kinds.items() if kind.endswith("_REPLACE"))
    return provider_pb2.DiffResponse(
        changes=some if difference.kinds else none,
        diffs=sorted(difference.kinds),
        replaces=replaces,
        deleteBeforeReplace=bool(replaces) and difference.delete_first,
        stables=difference.stables,
        hasDetailedDiff=True,
        detailedDiff={
            name: provider_pb2.PropertyDiff(kind=provider_pb2.PropertyDiff.Kind.Value(kind))
            for name, kind in difference.kinds.items()
        },
    )


def _abort(error: FailedError | HalfDoneError, context: grpc.ServicerContext, doing: str = "") -> NoReturn:
    """End a call with a message; where the resource is there, also with its state, which is how an engine gets it."""
    message = str(error)
    if isinstance(error, HalfDoneError):
        message = doing + message
        there = provider_pb2.ErrorResourceInitFailed(
            id=error.identity, properties=struct(error.state), reasons=[message]
        )
        whole = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=message)
        whole.details.add().Pack(there)
        context.set_trailing_metadata((("grpc-status-details-bin", whole.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, message)


def listen(plugin: Plugin) -> tuple[grpc.Server, int]:
    """Serve whoever comes to the loopback port that is answered."""
    server = grpc.server(ThreadPoolExecutor(CALLS, thread_name_prefix="call"), options=_OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(Servicer(plugin), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def serve(plugin: Plugin, then: Callable[[], Any] | None = None) -> NoReturn:
    """Serve the engine that started this process: until it is gone, or SIGTERM comes.

    `then` is called when the engine has been told the port: for what takes time and is not needed to begin with.
    """
    engine = os.getppid()
    gone = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: gone.set())
    _, port = listen(plugin)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    if then is not None:
        then()
    while os.getppid() == engine and not gone.wait(0.2):
        pass  # an engine that was killed cannot tell us, but it stops being our parent
    os._exit(0)  # not by the interpreter's own end: calls in flight would hold it up, and nobody hears their answers
