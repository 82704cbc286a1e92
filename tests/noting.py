"""A provider plugin of its own process, that notes what it is asked for: pulumi-resource-noting."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

_PLUGIN: Final = """#!{python}
import json, os, sys, threading
from concurrent import futures
import grpc
from google.protobuf import empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    def note(self, what):
        with open({log!r}, "a") as file:
            file.write(json.dumps([what, os.getpid()]) + "\\n")
    def GetPluginInfo(self, request, context):
        return plugin_pb2.PluginInfo(version="1.2.3")
    def CheckConfig(self, request, context):
        return provider_pb2.CheckResponse(inputs=request.news)
    def DiffConfig(self, request, context):
        return provider_pb2.DiffResponse()
    def Configure(self, request, context):
        self.note("configure")
        return provider_pb2.ConfigureResponse(acceptSecrets=False, supportsPreview=True)
    def Check(self, request, context):
        return provider_pb2.CheckResponse(inputs=request.news)
    def Diff(self, request, context):
        return provider_pb2.DiffResponse()
    def Create(self, request, context):
        self.note("create")
        if "die" in request.urn:
            os._exit(1)
        if "hang" in request.urn:
            threading.Event().wait()
        return provider_pb2.CreateResponse(id="1", properties=request.properties)
    def Delete(self, request, context):
        self.note("delete")
        return empty_pb2.Empty()
    def Cancel(self, request, context):
        self.note("cancel")
        os._exit(2)

server = grpc.server(futures.ThreadPoolExecutor(8))
provider_pb2_grpc.add_ResourceProviderServicer_to_server(Servicer(), server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def write_plugin(folder: Path, log: Path) -> None:
    """Write the plugin into a folder for PATH; it appends [what, pid] to the log, a line of JSON each."""
    executable = folder / "pulumi-resource-noting"
    executable.write_text(_PLUGIN.format(python=sys.executable, log=str(log)))
    executable.chmod(0o755)
