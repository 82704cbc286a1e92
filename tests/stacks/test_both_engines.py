"""Each engine picks up the other's stacks, in the middle of a life too: same files, same key, same locks."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pulumi
import pytest
from targets import take_engine

from launchers import ProcessTemplate, Run
from launchers.process import ProcessLauncher
from launchers.workspace import Workspace
from stacks.backend import Backend
from stacks.cli import CliEngine
from stacks.engine import Deployment, Engine, stack_name
from stacks.errors import EngineError, StackLockedError
from stacks.setup import ensure_cli, tools_folder
from stacks.warm import WarmEngine
from stacks.warm_server import ENGINES
from stacks.warm_setup import ensure_warm

LIMIT = timedelta(seconds=60)
STACK = stack_name("r", 0)


@dataclass
class Pair:
    """Two engines of one backend: one begins, the other goes on."""

    backend: Backend
    first: Engine
    second: Engine
    launcher: ProcessLauncher

    def deployment(self, *command: str) -> Deployment:
        return self.launcher.deployment(self.launcher.args(Run(id="r", command=command), self.backend.open()))

    def files(self) -> list[Path]:
        return [path for path in (self.backend.root / ".pulumi").rglob("*") if path.is_file()]


@pytest.fixture(params=["cli first", "warm first"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    for engine in ("cli", "warm"):
        take_engine(request, engine)
    backend = Backend.at(tmp_path / "home")
    backend.open()
    engines: list[Engine] = [
        CliEngine(backend, lambda: ensure_cli(tools_folder(), print)),
        WarmEngine(backend, lambda: ensure_warm(tools_folder(), print)),
    ]
    if request.param == "warm first":
        engines.reverse()
    template = ProcessTemplate(grace=timedelta(seconds=1))
    made = Pair(backend, engines[0], engines[1], ProcessLauncher(Workspace(backend, progress=print), template, "test"))
    yield made
    for found in made.launcher.find(None):
        made.launcher.remove(found, timedelta(seconds=1))


def test_one_makes_a_stack_and_the_other_previews_ups_and_destroys_it(pair: Pair) -> None:
    deployment = pair.deployment("sleep", "600")
    with pair.backend.claims.hold(STACK, "test", LIMIT) as claim:
        outputs = pair.first.up(deployment, claim, LIMIT)
        (worker,) = pair.launcher.find(None)
        seen = pair.second.outputs(STACK)
        changes = {change.operation for change in pair.second.preview(deployment)}
        again = pair.second.up(deployment, claim, LIMIT)
        (same,) = pair.launcher.find(None)
        objects = pair.second.destroy(STACK, claim, deployment.providers, LIMIT)
        pair.first.remove(STACK, claim)

    assert seen == outputs == again
    assert changes == {"same"}
    assert same.handle == worker.handle
    assert objects == 1
    assert list(pair.launcher.find(None)) == []
    assert [path for path in pair.files() if path.name != "meta.yaml"] == []


def test_a_secret_that_one_wrote_the_other_reads(pair: Pair) -> None:
    def program() -> None:
        pulumi.export("value", pulumi.Output.secret("geheim"))

    deployment = Deployment(STACK, program)
    with pair.backend.claims.hold(STACK, "test", LIMIT) as claim:
        pair.first.up(deployment, claim, LIMIT)
        pair.second.up(deployment, claim, LIMIT)
        changes = {change.operation for change in pair.first.preview(deployment)}
    kept = b"".join(path.read_bytes() for path in pair.files())

    assert changes == {"same"}
    assert b"geheim" not in kept
    assert json.dumps(pair.backend.salt()) in kept.decode()


def test_one_waits_while_the_other_is_at_work(pair: Pair) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        over.wait(30)
        pulumi.export("value", 1)

    with pair.backend.claims.hold(STACK, "test", LIMIT) as claim, ThreadPoolExecutor() as threads:
        first = threads.submit(pair.first.up, Deployment(STACK, slow), claim, LIMIT)
        assert begun.wait(30)
        with pytest.raises(StackLockedError):
            pair.second.up(Deployment(STACK, lambda: None), claim, timedelta(seconds=1))
        threading.Timer(1, over.set).start()
        second = pair.second.up(Deployment(STACK, lambda: pulumi.export("value", 2)), claim, LIMIT)

    assert first.result() == {"value": 1}
    assert second == {"value": 2}


def test_what_a_killed_engine_left_the_other_puts_right(pair: Pair) -> None:
    begun, never = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        never.wait(30)

    with pair.backend.claims.hold(STACK, "test", LIMIT) as claim, ThreadPoolExecutor() as threads:
        first = threads.submit(pair.first.up, Deployment(STACK, slow), claim, LIMIT)
        assert begun.wait(30)
        (lock,) = (path for path in pair.files() if "locks" in path.parts)
        holder = json.loads(lock.read_text())["pid"]
        os.kill(ENGINES.pids()[0] if holder == os.getpid() else holder, signal.SIGKILL)
        never.set()
        assert isinstance(first.exception(), EngineError)

        assert pair.second.up(Deployment(STACK, lambda: pulumi.export("value", 2)), claim, LIMIT) == {"value": 2}
    assert [path for path in pair.files() if "locks" in path.parts] == []
