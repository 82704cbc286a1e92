"""The provider as an executable, `pulumi-resource-runworker`, for programs on disk."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from pulumi.runtime.proto import provider_pb2_grpc

from programs.provider.guard import CallerGuard
from programs.provider.servicer import OPTIONS, RunworkerServicer


def main() -> None:
    """Serve the engine that started this process, until it is gone."""
    engine = os.getppid()
    guard = CallerGuard()
    server = grpc.server(ThreadPoolExecutor(), interceptors=[guard], options=OPTIONS)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(RunworkerServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    guard.serve(engine, port)
    server.start()
    gone = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: gone.set())
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while os.getppid() == engine and not gone.wait(0.5):
        pass  # an engine that was killed cannot tell us, but it stops being our parent
    server.stop(None)


if __name__ == "__main__":
    main()
