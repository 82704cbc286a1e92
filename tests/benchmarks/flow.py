"""The warm engine's figures: lives in flight, the first launch of a process, and what a backend elsewhere costs."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

from launchers import ProcessTemplate, Run, load_launcher
from launchers.settings import BackendSettings, Config, EngineSettings

from .meter import Sample, measure, middle
from .place import WORKER, CommandError, Place
from .table import Table, milliseconds, ratio
from .ways import launcher

LIVES: Final = 400
IN_FLIGHT: Final = 8
DELAY: Final = 0.02  # seconds from a client to the object store
_FIRST: Final = """
import sys, time
from pathlib import Path
from launchers import Config, ProcessTemplate, Run, load_launcher
launcher = load_launcher(ProcessTemplate(), config=Config(home=Path(sys.argv[1])))
launcher.launch(Run(id=sys.argv[2], command=("sleep", "600")))
"""

_LIVES: Final = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from launchers import Config, ProcessTemplate, Run, load_launcher
home, count, at_once, name = sys.argv[1:]
launcher = load_launcher(ProcessTemplate(), config=Config(home=Path(home)))

def life(number):
    launcher.terminate(launcher.launch(Run(id=f"{name}-{number}", command=("sleep", "600"))).handle)

life("first")
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(int(at_once)) as threads:
    list(threads.map(life, range(int(count))))
print("done", flush=True)
"""


def flow(place: Place, rounds: int) -> Table:  # noqa: ARG001 - as many as the promise needs
    """Whole lives, several in flight at any time, by one launcher process and by two, each with an engine of its own.

    CPU is that of the launchers from their start to their end, and of their engines.
    """
    title = f"{LIVES} lives, {IN_FLIGHT} in flight"
    table = Table(title, ("launcher processes", "lives a second", "CPU of a life in ms"))
    for count in (1, 2):
        cpu = _children()
        wall = _flow(place, place.home(f"flow-{count}"), count)
        table.add(str(count), f"{LIVES / wall:.1f}", f"{(_children() - cpu) / LIVES * 1000:.1f}")
    return table


def _flow(place: Place, home: Path, count: int) -> float:
    """Seconds from when all launchers are ready to when all are done."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = (str(home), str(LIVES // count), str(IN_FLIGHT // count))
    with ExitStack() as held:
        launchers = [
            held.enter_context(subprocess.Popen([sys.executable, "-c", _LIVES, *words, f"f{number}"], **pipes))  # type: ignore[call-overload]
            for number in range(count)
        ]
        for each in launchers:
            each.stdout.readline()
        begun = time.perf_counter()
        for each in launchers:
            each.stdin.write("go\n")
            each.stdin.flush()
        for each in launchers:
            if each.stdout.readline() != "done\n":
                message = "a launcher of many lives failed"
                raise CommandError(message)
        took = time.perf_counter() - begun
    place.say(f"{count} launchers: {took:.1f} s")
    return took


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def first(place: Place, rounds: int) -> Table:
    """A new process: Python, imports, the engine's start, and the first launch."""
    home = place.home("first")
    samples = [
        measure(lambda: place.run([sys.executable, "-c", _FIRST, str(home), f"first-{number}"], home))  # noqa: B023
        for number in range(rounds + 1)
    ]
    ours = launcher(home, "warm")
    for number in range(rounds + 1):
        ours.terminate(f"first-{number}")
    table = Table(f"A process that launches one run, median of {rounds}; in ms", ("what", "wall / CPU"))
    table.add("from its start to its end", milliseconds(middle(samples[1:])))
    return table


def backends(place: Place, rounds: int) -> Table:
    """Launch and termination on each kind of backend, interleaved; the object store is 20 ms away."""
    with _urls() as urls:
        key = place.folder / "key"
        key.write_text("a key that all hosts share")
        launchers: dict[str, Any] = {"file": launcher(place.home("backend-file"), "warm")}
        for name, url in urls.items():
            config = Config(
                home=place.home(f"backend-{name}"),
                engine=EngineSettings.model_validate({"kind": "warm"}),
                backend=BackendSettings(url=url, passphrase_file=key),
            )
            launchers[name] = load_launcher(ProcessTemplate(), config=config)
        samples: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in launchers}
        for number in range(rounds + 1):
            for name, ours in launchers.items():
                both = _life(ours, f"there-{number}")
                if number:
                    samples[name].append(both)
    title = f"Backends, median of {rounds}; wall/CPU in ms, the object store {DELAY * 1000:g} ms away"
    table = Table(title, ("backend", "launch", "x file", "terminate", "x file"))
    middles = {name: [middle(part) for part in zip(*pairs, strict=True)] for name, pairs in samples.items()}
    for name, (launched, ended) in middles.items():
        factors = [ratio(one, other) for one, other in zip((launched, ended), middles["file"], strict=True)]
        table.add(name, milliseconds(launched), factors[0], milliseconds(ended), factors[1])
    return table


def _life(ours: Any, run_id: str) -> tuple[Sample, Sample]:  # noqa: ANN401 - a launcher
    launched = measure(lambda: ours.launch(Run(id=run_id, command=WORKER)))
    return launched, measure(lambda: ours.terminate(run_id))


@contextmanager
def _urls() -> Iterator[dict[str, str]]:
    """Backends of the servers that can be had here; moto's behind a way that takes a while."""
    from servers import ACCOUNT, absent, serving  # noqa: PLC0415 - beside the tests, and needs what they need

    urls: dict[str, str] = {}
    if absent("postgres") is None:
        with serving("postgres") as server:
            urls["postgres"] = server.place().url
            with _object_store(ACCOUNT, absent, serving) as url:
                yield urls | url
    else:
        with _object_store(ACCOUNT, absent, serving) as url:
            yield urls | url


@contextmanager
def _object_store(account: dict[str, str], absent: Any, serving: Any) -> Iterator[dict[str, str]]:  # noqa: ANN401
    if absent("s3") is not None:
        yield {}
        return
    os.environ.update(account)
    with serving("s3") as server:
        url = server.place().url
        address = urlsplit(url.partition("endpoint=")[2].partition("&")[0])
        with _Far(str(address.hostname), int(address.port or 0)).served() as port:
            yield {"s3": url.replace(f"{address.hostname}:{address.port}", f"127.0.0.1:{port}")}


@dataclass
class _Far:
    """Passes bytes on to a server; those that a client sends are on their way for a while."""

    host: str
    port: int

    @contextmanager
    def served(self) -> Iterator[int]:
        """Serve on a loopback port; yields it."""
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                yield int(listener.getsockname()[1])
            finally:
                listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((self.host, self.port))
                for source, target, delay in ((client, server, DELAY), (server, client, 0.0)):
                    under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                    for run, end in ((_set_out, source), (_arrive, target)):
                        threading.Thread(target=run, args=(end, under_way, delay), daemon=True).start()


def _set_out(source: socket.socket, under_way: SimpleQueue[tuple[float, bytes]], delay: float) -> None:
    piece = b"-"
    while piece:
        try:
            piece = source.recv(1 << 20)
        except OSError:
            piece = b""
        under_way.put((time.monotonic() + delay, piece))


def _arrive(target: socket.socket, under_way: SimpleQueue[tuple[float, bytes]], _: float) -> None:
    while True:
        due, piece = under_way.get()
        time.sleep(max(0.0, due - time.monotonic()))
        with suppress(OSError):
            target.sendall(piece) if piece else target.shutdown(socket.SHUT_RDWR)
        if not piece:
            return
