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
from typing import Any

import grpc
from pulumi.automation._server import LanguageServer  # what serves inline programs; it has no public name
from pulumi.errors import RunError
from pulumi.runtime import reset_options, run_in_stack, set_all_config
from pulumi.runtime.proto import language_pb2, language_pb2_grpc


class ProgramServer(LanguageServer):
    """The Automation API's server with a `Run` of its own.

    A program whose engine fails waits for answers that never come. The base class then stops its event loop, now and
    then, and leaves it open with coroutines pending; here what still runs is cancelled when the engine is gone.
    https://github.com/pulumi/pulumi/blob/v3.259.0/sdk/python/lib/pulumi/automation/_server.py
    """

    def __init__(self, program: Callable[[], None]) -> None:
        super().__init__(program)
        self._guard = threading.Lock()
        self._running: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._stopped = False

    def Run(self, request: Any, context: object) -> object:  # noqa: ANN401, ARG002, N802 - the protocol's
        """Run the program once, in a context of its own, and tell its error."""
        return contextvars.copy_context().run(self._run, request)

    def stop(self) -> None:
        """Cancel what still runs: its engine is gone."""
        with self._guard:
            self._stopped = True
            for loop, task in self._running.items():
                loop.call_soon_threadsafe(task.cancel)

    def _run(self, request: Any) -> object:  # noqa: ANN401
        reset_options(
            project=request.project,
            monitor_address=request.monitor_address,
            engine_address=request.args[0] if request.args else "",
            stack=request.stack,
            parallel=request.parallel,
            preview=request.dryRun,
            organization=request.organization or "organization",
        )
        if request.config:
            set_all_config(request.config, request.configSecretKeys or None)
        try:
            with _event_loop() as loop:
                self._run_in(loop)
        except RunError as error:
            return language_pb2.RunResponse(error=str(error))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, the engine must be told
            return language_pb2.RunResponse(error=f"{error}\n{traceback.format_exc()}")
        return language_pb2.RunResponse()

    def _run_in(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(run_in_stack(self.program))
        with self._guard:
            self._running[loop] = task
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
    loop.set_default_executor(ThreadPoolExecutor(max_workers=4))
    loop.set_exception_handler(lambda *_: None)  # what is cancelled below has failed already, and was told
    try:
        yield loop
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_default_executor())
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
