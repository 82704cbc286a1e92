"""One process of the warm engine: started on demand, shared by all threads, and replaced before it has grown.

The process (stacks/warm) is this process's own: it answers on a pipe that nobody else holds, and reaches the programs
and providers here on Unix sockets in a folder that this user alone can enter. Deaths:
- of the process: every operation in it fails with its account, and the next one starts another process.
- of the process by SIGTERM: it finishes what runs, and the next operation starts another.
- of this process: the engine's cancels what is in flight and ends; nobody else's operations are in it.
- a fork: the child has neither its threads nor its pipes, and is refused (stacks.operation.refuse_fork).
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from pulumi.runtime.proto import language_pb2_grpc

from stacks.engine import AttachedProvider
from stacks.errors import EngineError, SetupError, Started
from stacks.program_server import ProgramServer
from stacks.scratch import socket_folder

PROTOCOL: Final = 1
AT_ONCE: Final = 64  # operations of one process; the others wait
_WORN: Final = 500  # operations after which a process is replaced: the engine keeps 60 kB and a descriptor of each
_START: Final = 30.0  # seconds that a process gets to say that it is ready
_GOODBYE: Final = 2.0  # seconds that an idle process gets to end
_KEPT: Final = 65536  # bytes of what a process wrote to stderr last

Answer = dict[str, Any]
Save = Callable[[dict[str, Any]], None]


class Ended:
    """How an operation ends, for the one who waits for it."""

    def __init__(self, server: WarmServer, number: int, save: Save | None) -> None:
        self.save = save
        self.answer: Future[Answer] = Future()
        self._server = server
        self._number = number

    def result(self, seconds: float | None) -> Answer:
        """The engine's account; raises TimeoutError, or EngineError where the process did not survive it."""
        return self.answer.result(seconds)

    def cancel(self, *, now: bool = False) -> None:
        """Have the operation stop when its providers are done with what they have begun, or at once."""
        with suppress(EngineError):
            self._server.send({"op": "cancel", "id": self._number, "now": now})

    def stop(self, patience: float) -> Answer:
        """Cancel it, wait as long as it may take, and then no longer for its providers; raises EngineError."""
        self.cancel()
        with suppress(TimeoutError):
            return self.result(patience)
        self.cancel(now=True)
        return self.result(_START)


class WarmServer:
    """A process of the warm engine. Safe from many threads. `users` counts who works in it, or is about to."""

    def __init__(self, binary: Path, hub: Path, on_leaving: Callable[[WarmServer], None]) -> None:
        self._on_leaving = on_leaving
        self._guard = threading.Lock()
        self._calls: dict[int, Ended] = {}
        self._begun = 0
        self.users = 0
        self._lost = ""
        self._said = b""
        self._process = subprocess.Popen(
            [str(binary), str(hub)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd="/",
            process_group=0,  # a terminal's Ctrl-C is for us: we cancel what has to be
        )
        self._ready: Future[Answer] = Future()
        for target in (self._listen, self._overhear):
            threading.Thread(target=target, name="warm-engine", daemon=True).start()
        try:
            self.version = _checked(self._ready.result(_START), binary)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """False once it has ended or has done so much that another one should take over."""
        return not self._lost and self._begun < _WORN

    @contextmanager
    def performing(self, request: dict[str, Any], save: Save | None = None) -> Iterator[Ended]:
        """Start an operation; `save` keeps the state of a step before others. Raises EngineError."""
        with self._guard:
            self._begun += 1
            number = self._begun
            ended = self._calls[number] = Ended(self, number, save)
        try:
            self.send({**request, "id": number})
            yield ended
        finally:
            with self._guard:
                del self._calls[number]

    def stats(self) -> dict[str, Any]:
        """How much the process holds."""
        with self.performing({"op": "stats"}) as told:
            return dict(told.result(_START)["stats"])

    def close(self) -> None:
        """Let the process end; what is in flight is cancelled."""
        with suppress(EngineError):
            self.send({"op": "bye"})
        if not self.hang_up(_GOODBYE):
            self._process.kill()
            self._process.wait()

    def hang_up(self, seconds: float) -> bool:
        """Close the connection, whereupon the process ends; False if it takes longer."""
        with suppress(OSError):
            self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def drop(self) -> None:
        """Forget the process without touching it: it is the parent's of this fork."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    os.close(pipe.fileno())

    @property
    def _pipe(self) -> Any:  # noqa: ANN401 - Popen's own
        return self._process.stdin

    def send(self, request: dict[str, Any]) -> None:
        """Write one request; raises EngineError where the process is gone."""
        line = json.dumps(request).encode() + b"\n"
        try:
            with self._guard:
                self._pipe.write(line)
                self._pipe.flush()
        except (OSError, ValueError) as error:
            self._process.wait()
            raise self._gone() from error

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        with self._process.stdout as answers:
            for line in answers:
                self._take(json.loads(line))
        self._process.wait()
        self._lost = self._lost or f"exit code {self._process.returncode}"
        with self._guard:
            calls = list(self._calls.values())
        for ended in (self._ready, *(call.answer for call in calls)):
            if not ended.done():
                ended.set_exception(self._gone())

    def _take(self, answer: Answer) -> None:
        kind, number = answer["event"], answer.get("id", 0)
        call = self._calls.get(number)
        if kind == "ready":
            self._ready.set_result(answer)
        elif kind == "leaving":
            self._on_leaving(self)
        elif kind == "fault":
            self._lost = str(answer.get("message", "a fault"))
        elif kind == "checkpoint" and call is not None and call.save is not None:
            self._keep(number, call.save, answer.get("deployment") or {})
        elif call is not None:
            call.answer.set_result(answer)

    def _keep(self, number: int, save: Save, deployment: dict[str, Any]) -> None:
        refused = ""
        try:
            save(deployment)
        except Exception as error:  # noqa: BLE001 - the engine must not go on with a step whose state is not kept
            refused = str(error) or type(error).__name__
        with suppress(EngineError):
            self.send({"op": "saved", "id": number, "error": refused})

    def _overhear(self) -> None:
        assert self._process.stderr is not None  # noqa: S101
        with self._process.stderr as said:
            while piece := said.read1(4096):  # type: ignore[attr-defined] # a buffered pipe
                self._said = (self._said + piece)[-_KEPT:]

    def _gone(self) -> EngineError:
        code = self._process.returncode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else "ended"
        first = self._lost.splitlines()[0] if self._lost else ""
        message = f"the engine's process {how} in the middle of this{f': {first}' if first else ''}; try again"
        details = "\n".join(filter(None, (self._lost, self._said.decode(errors="replace"))))
        return EngineError(message, started=Started.UNKNOWN, details=details)


def _checked(ready: Answer, binary: Path) -> str:
    if ready.get("protocol") != PROTOCOL:
        message = f"the warm engine {binary} speaks protocol {ready.get('protocol')}, not {PROTOCOL}: remove it"
        raise SetupError(message)
    return str(ready.get("version", ""))


def environment() -> dict[str, str]:
    """The caller's environment, for an engine and for the plugins of an operation; nothing of another job's Pulumi."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")}
    nobody = {"HOME": "/nonexistent", "USER": str(os.geteuid())}  # Go asks for both where passwd has no entry
    fixed = {
        "PULUMI_SKIP_UPDATE_CHECK": "1",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "GOGC": "200",
    }
    return {**nobody, **own, **fixed}


class _Programs(language_pb2_grpc.LanguageRuntimeServicer):
    """Runs each operation's program, by the name that the operation gave it."""

    def __init__(self) -> None:
        self.served: dict[str, ProgramServer] = {}

    def Run(self, request: Any, context: Any) -> object:  # noqa: ANN401, N802 - the protocol's
        """Run the program of one operation."""
        program = self.served.get(request.args[0] if request.args else "")
        if program is not None:
            return program.Run(request, context)
        return context.abort(grpc.StatusCode.NOT_FOUND, "the operation of this program is over")


@dataclass
class Hub:
    """What this process offers to its engines: its programs, and the providers that it serves; started on demand."""

    folder: Path = field(default_factory=socket_folder)
    _programs: _Programs = field(default_factory=_Programs)
    _sockets: dict[tuple[str, Callable[[grpc.Server], None]], Path] = field(default_factory=dict)
    _servers: list[grpc.Server] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def programs(self) -> Path:
        """The socket at which programs are served."""
        return self._serve("programs", self._register_programs)

    def providers(self, attached: tuple[AttachedProvider, ...]) -> dict[str, str]:
        """The sockets at which providers are served, by package."""
        return {each.package: str(self._serve(each.package, each.register)) for each in attached}

    def _register_programs(self, server: grpc.Server) -> None:
        language_pb2_grpc.add_LanguageRuntimeServicer_to_server(self._programs, server)

    @contextmanager
    def serving(self, program: Callable[[], None], engine: object) -> Iterator[str]:
        """Serve a program while an operation runs; yields the name by which the engine asks for it."""
        name, server = uuid.uuid4().hex, ProgramServer(program, engine)
        self._programs.served[name] = server
        try:
            yield name
        finally:
            server.stop()
            del self._programs.served[name]

    def close(self) -> None:
        """Serve nothing any more."""
        for server in self._servers:
            server.stop(None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _serve(self, name: str, register: Callable[[grpc.Server], None]) -> Path:
        with self._guard:
            if (name, register) not in self._sockets:
                server = grpc.server(
                    ThreadPoolExecutor(AT_ONCE, thread_name_prefix=f"run-launcher-{name}"),
                    options=[("grpc.max_receive_message_length", -1)],
                )
                register(server)
                path = self.folder / f"{name}-{len(self._sockets)}"
                server.add_insecure_port(f"unix:{path}")
                server.start()
                path.chmod(0o600)
                self._servers.append(server)
                self._sockets[name, register] = path
            return self._sockets[name, register]


class Engines:
    """The warm processes of this process: one that takes new operations, and those that finish their last."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._current: dict[Path, WarmServer] = {}
        self._leaving: list[WarmServer] = []
        self._hub: Hub | None = None
        self.turns = threading.BoundedSemaphore(AT_ONCE)

    @property
    def hub(self) -> Hub:
        """What the processes reach of this one."""
        with self._guard:
            if self._hub is None:
                self._hub = Hub()
                atexit.register(self.close)
            return self._hub

    def pids(self) -> list[int]:
        """The processes that are there."""
        with self._guard:
            return [each.pid for each in (*self._current.values(), *self._leaving)]

    @contextmanager
    def working(self, binary: Path) -> Iterator[WarmServer]:
        """Yields a process to perform operations in; it is not replaced before the block ends."""
        hub = self.hub.folder
        with self._guard:
            current = self._current.get(binary)
            if current is None or not current.usable:
                if current is not None:
                    self._leaving.append(current)
                current = self._current[binary] = WarmServer(binary, hub, self._retire)
            current.users += 1
        try:
            yield current
        finally:
            with self._guard:
                current.users -= 1
            self._close_idle()

    def _retire(self, server: WarmServer) -> None:
        """Have a process finish what runs, and end."""
        with self._guard:
            for binary in [binary for binary, current in self._current.items() if current is server]:
                self._leaving.append(self._current.pop(binary))
        self._close_idle()

    def _close_idle(self) -> None:
        with self._guard:
            idle = [each for each in self._leaving if not each.users]
            self._leaving = [each for each in self._leaving if each.users]
        for each in idle:
            each.close()

    def close(self) -> None:
        """End all processes, and serve nothing any more."""
        with self._guard:
            for each in (*self._current.values(), *self._leaving):
                each.close()
            self._current, self._leaving = {}, []
            if self._hub is not None:
                self._hub.close()
                self._hub = None

    def hang_up(self, seconds: float) -> None:
        """At the end of this process, which waits for nobody: its engines end with it, most of them at once."""
        for each in (*self._current.values(), *self._leaving):
            each.hang_up(seconds)

    def forget(self) -> None:
        """In a process that was forked: all of it is the parent's."""
        for each in (*self._current.values(), *self._leaving):
            each.drop()
        self.__init__()  # type: ignore[misc] # as new: locks that a thread of the parent held would stay held
        atexit.unregister(self.close)


ENGINES: Final = Engines()
os.register_at_fork(after_in_child=ENGINES.forget)
