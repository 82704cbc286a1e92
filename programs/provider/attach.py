"""Serves the provider inside this process, for one operation of an engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import grpc
from pulumi.runtime.proto import provider_pb2_grpc

from programs.provider.guard import CallerGuard
from programs.provider.servicer import OPTIONS, RunworkerServicer

_PATIENCE: Final = 1.0  # seconds that calls in flight get when the engine has gone


@dataclass
class Attached:
    """A provider that listens on a loopback port and answers one engine."""

    port: int
    guard: CallerGuard

    def admit(self, pid: int) -> None:
        """Name the engine's process, whose calls are answered."""
        self.guard.serve(pid, self.port)


def register(server: grpc.Server) -> None:
    """Have a gRPC server answer for the provider; whoever reaches it is answered."""
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(RunworkerServicer(), server)


@contextmanager
def serve(servicer: RunworkerServicer | None = None) -> Iterator[Attached]:
    """Listen until the block ends; `servicer` stands in for the provider's own."""
    guard = CallerGuard()
    threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="runworker")
    server = grpc.server(threads, interceptors=[guard], options=OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer or RunworkerServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Attached(port, guard)
    finally:
        server.stop(None)
        ending = threading.Thread(target=threads.shutdown, name="runworker-ending", daemon=True)
        ending.start()
        ending.join(_PATIENCE)  # a call that hangs holds up nobody: the engine that waited for it is gone
