"""Serves an inline program to an engine, as the Automation API does, and cleans up when the engine goes away."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from pulumi.automation._server import LanguageServer  # what serves inline programs; it has no public name
from pulumi.errors import RunError
from pulumi.runtime import reset_options, run_in_stack, set_all_config
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import language_pb2, language_pb2_grpc
from pulumi.runtime.proto.resource_pb2_grpc import ResourceMonitorStub


class _Lasting(ThreadPoolExecutor):
    """The threads of all event loops, in which their programs' calls wait; none of them ends with a loop."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base's
        """Do nothing: a loop that closes is not the last one."""


CALLS: Final = 128  # that wait for engines at once, of all programs together; the others get their turn
_CALLERS: Final = _Lasting(CALLS, thread_name_prefix="run-launcher-call")


class ProgramServer(LanguageServer):
    """The Automation API's server with a `Run` of its own.

    A program whose engine fails waits for answers that never come. The base class then stops its event loop, now and
    then, and leaves it open with coroutines pending; here what still runs is cancelled when the engine is gone.
    https://github.com/pulumi/pulumi/blob/v3.259.0/sdk/python/lib/pulumi/automation/_server.py
    """

    def __init__(self, program: Callable[[], None], engine: object = None) -> None:
        super().__init__(program)
        self._engine = engine
        self._guard = threading.Lock()
        self._running: dict[asyncio.AbstractEventLoop, tuple[asyncio.Task[None], grpc.Channel]] = {}
        self._stopped = False

    def Run(self, request: Any, context: object) -> object:  # noqa: ANN401, ARG002, N802 - the protocol's
        """Run the program once, in a context of its own, and tell its error."""
        return contextvars.copy_context().run(self._run, request)

    def stop(self) -> None:
        """Cancel what still runs, with the calls that it waits for: its engine is gone, or does not answer any more."""
        with self._guard:
            self._stopped = True
            for loop, (task, channel) in self._running.items():
                loop.call_soon_threadsafe(task.cancel)
                channel.close()

    def _run(self, request: Any) -> object:  # noqa: ANN401
        channel = grpc.insecure_channel(request.monitor_address, options=_GRPC_CHANNEL_OPTIONS)
        reset_options(
            project=request.project,
            monitor_address=ResourceMonitorStub(channel),  # type: ignore[arg-type] # Settings takes objects, too
            engine_address=self._engine or (request.args[0] if request.args else ""),  # type: ignore[arg-type]
            stack=request.stack,
            parallel=request.parallel,
            preview=request.dryRun,
            organization=request.organization or "organization",
        )
        if request.config:
            set_all_config(request.config, request.configSecretKeys or None)
        try:
            with _event_loop() as loop:
                self._run_in(loop, channel)
        except RunError as error:
            return language_pb2.RunResponse(error=str(error))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the engine must be told
            return language_pb2.RunResponse(error=f"{error}\n{traceback.format_exc()}")
        finally:
            channel.close()
        return language_pb2.RunResponse()

    def _run_in(self, loop: asyncio.AbstractEventLoop, channel: grpc.Channel) -> None:
        task = loop.create_task(run_in_stack(self.program))
        with self._guard:
            self._running[loop] = task, channel
            if self._stopped:
                task.cancel()
        try:
            loop.run_until_complete(task)
        finally:
            with self._guard:
                del self._running[loop]


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that is closed in the end, with everything in it cancelled and awaited."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(_CALLERS)
    loop.set_exception_handler(lambda *_: None)  # what is cancelled below has failed already, and was told
    try:
        yield loop
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.close()


@contextmanager
def serve_program(program: Callable[[], None], socket: Path) -> Iterator[str]:
    """Serve the program on a socket that this user alone can reach, until the block ends; yields its address."""
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="run-launcher") as threads:
        server = grpc.server(threads)
        programs = ProgramServer(program)
        language_pb2_grpc.add_LanguageRuntimeServicer_to_server(programs, server)
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        try:
            socket.chmod(0o600)
            yield f"unix:{socket}"
        finally:
            programs.stop()
            server.stop(None).wait()
