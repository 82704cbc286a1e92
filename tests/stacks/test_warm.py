"""The warm engine's process: shared, replaced, killed, paused, forked from; and the plugins that it keeps."""

from __future__ import annotations

import asyncio
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pulumi
import pytest
from noting import write_plugin
from targets import take_engine

from launchers.testing.contract import eventually
from stacks import warm_server
from stacks.backend import Backend
from stacks.engine import Deployment, StackName, stack_name
from stacks.errors import EngineError, ForkedError
from stacks.setup import tools_folder
from stacks.state import StateFiles
from stacks.warm import WarmEngine
from stacks.warm_server import ENGINES, WarmServer
from stacks.warm_setup import ensure_warm

LIMIT = timedelta(seconds=60)
IN_ANOTHER = """
import pathlib, sys, threading, datetime
import pulumi
from stacks.backend import Backend
from stacks.engine import Deployment, stack_name
from stacks.setup import tools_folder
from stacks.warm import WarmEngine
from stacks.warm_server import ENGINES
from stacks.warm_setup import ensure_warm
backend = Backend.at(pathlib.Path(sys.argv[1]))
engine = WarmEngine(backend, lambda: ensure_warm(tools_folder(), print))
def program():
    print(*[each.pid for each in ENGINES._current.values()], ENGINES.hub.folder, flush=True)
    sys.stdin.readline()
    pulumi.export("value", 1)
stack = stack_name("other", 0)
with backend.claims.hold(stack, "launch", datetime.timedelta(0)) as claim:
    print(engine.up(Deployment(stack, program), claim, datetime.timedelta(seconds=60)), flush=True)
"""


@dataclass
class Bench:
    """An engine with a backend of its own."""

    backend: Backend
    engine: WarmEngine

    def up(self, name: str, program: Any) -> dict[str, Any]:  # noqa: ANN401 - what a test declares
        stack = stack_name(name, 0)
        with self.backend.claims.hold(stack, "test", LIMIT) as claim:
            return self.engine.up(Deployment(stack, program), claim, LIMIT)

    def destroy(self, stack: StackName) -> int:
        with self.backend.claims.hold(stack, "test", LIMIT) as claim:
            return self.engine.destroy(stack, claim, timeout=LIMIT)

    def server(self) -> WarmServer:
        with ENGINES.working(ensure_warm(tools_folder(), print)) as server:
            return server


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    take_engine(request, "warm")
    backend = Backend.at(tmp_path / "home")
    backend.open()
    return Bench(backend, WarmEngine(backend, lambda: ensure_warm(tools_folder(), print)))


def runs(pid: int) -> bool:
    """True while the process runs; nobody may be there to reap one whose parent was killed."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def exporting(value: object) -> Any:  # noqa: ANN401 - a program
    return lambda: pulumi.export("value", value)


# ---- one process for all threads ----


def test_all_threads_share_one_process_and_each_gets_its_own_outputs(bench: Bench) -> None:
    bench.up("first", exporting(0))
    pid = bench.server().pid
    with ThreadPoolExecutor(16) as threads:
        outputs = list(threads.map(lambda number: bench.up(f"run-{number}", exporting(number)), range(48)))

    assert outputs == [{"value": number} for number in range(48)]
    assert bench.server().pid == pid


def test_a_failing_a_hanging_and_a_good_program_do_not_disturb_each_other(bench: Bench) -> None:
    never = threading.Event()

    def failing() -> None:
        message = "no such thing"
        raise LookupError(message)

    with ThreadPoolExecutor() as threads:
        hanging = threads.submit(bench.up, "hanging", lambda: (never.wait(30), None)[1])
        failed = threads.submit(bench.up, "failing", failing)
        good = [threads.submit(bench.up, f"good-{number}", exporting(number)) for number in range(8)]
        values = [each.result()["value"] for each in good]
        error = failed.exception()
        never.set()

    assert values == list(range(8))
    assert isinstance(error, EngineError)
    assert "no such thing" in error.details
    assert "debug: " not in error.details
    assert hanging.result() == {}


def test_a_process_is_replaced_before_it_has_grown_and_finishes_its_last_operation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(30)
        pulumi.export("value", "old")

    with ThreadPoolExecutor() as threads:
        last = threads.submit(bench.up, "slow", slow)
        assert begun.wait(30)
        old = bench.server()
        monkeypatch.setattr(warm_server, "_WORN", old._begun)
        fresh = bench.up("fresh", exporting("new"))
        pid = bench.server().pid
        go_on.set()

        assert last.result() == {"value": "old"}
    bench.up("again", exporting(1))
    assert fresh == {"value": "new"}
    assert pid != old.pid
    assert eventually(lambda: not runs(old.pid))


def test_a_process_that_is_replaced_stays_for_those_who_are_about_to_work_in_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = StateFiles.lock
    taken: list[int] = []

    def lock_late(files: StateFiles, stack: StackName) -> tuple[str, bool]:
        if not taken:  # between the choice of a process and the operation in it, it is replaced and others come and go
            taken.append(bench.server().pid)
            monkeypatch.setattr(warm_server, "_WORN", 0)
            bench.up("meanwhile", exporting(0))
            bench.up("and-again", exporting(0))
            monkeypatch.undo()
        return lock(files, stack)

    monkeypatch.setattr(StateFiles, "lock", lock_late)

    assert bench.up("r", exporting(1)) == {"value": 1}
    assert bench.server().pid not in taken
    assert eventually(lambda: not runs(taken[0]))


# ---- deaths ----


def test_a_process_that_is_killed_fails_its_operations_and_the_next_starts_another(bench: Bench) -> None:
    begun, never = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        never.wait(30)

    with ThreadPoolExecutor() as threads:
        launch = threads.submit(bench.up, "r", slow)
        assert begun.wait(30)
        os.kill(bench.server().pid, signal.SIGKILL)
        error = launch.exception()
        never.set()

    assert isinstance(error, EngineError)
    assert "signal 9" in str(error)
    assert bench.up("r", exporting(2)) == {"value": 2}


def test_a_process_that_crashes_tells_its_trace(bench: Bench) -> None:
    """Go ends in the same way when it panics and when it gets this signal."""
    with pytest.raises(EngineError, match="the engine's process ended in the middle of this") as caught:
        bench.up("r", lambda: os.kill(ENGINES.pids()[0], signal.SIGQUIT))

    assert "goroutine" in caught.value.details
    assert bench.up("r", exporting(2)) == {"value": 2}


def test_a_process_that_is_asked_to_end_finishes_what_runs_and_the_next_operation_starts_another(bench: Bench) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(30)
        pulumi.export("value", "finished")

    with ThreadPoolExecutor() as threads:
        launch = threads.submit(bench.up, "r", slow)
        assert begun.wait(30)
        (old,) = ENGINES.pids()
        os.kill(old, signal.SIGTERM)
        assert eventually(lambda: bench.server().pid != old)
        there = runs(old)
        go_on.set()

        assert launch.result() == {"value": "finished"}
    assert there
    assert eventually(lambda: not runs(old))


def test_an_idle_process_ends_when_it_is_asked_to(bench: Bench) -> None:
    bench.up("r", exporting(1))
    old = bench.server().pid
    os.kill(old, signal.SIGTERM)

    assert eventually(lambda: not runs(old))
    assert bench.up("r", exporting(2)) == {"value": 2}


def begun_elsewhere(bench: Bench) -> tuple[subprocess.Popen[str], int, Path]:
    """Another process in the middle of an operation, its engine, and the folder of its sockets."""
    command = [sys.executable, "-c", IN_ANOTHER, str(bench.backend.home)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, folder = process.stdout.readline().split()
    return process, int(pid), Path(folder)


def test_the_engine_of_a_killed_launcher_ends_with_its_sockets_and_no_other(bench: Bench) -> None:
    bench.up("mine", exporting(1))
    own = bench.server().pid
    process, pid, folder = begun_elsewhere(bench)
    with process:
        process.kill()

    assert eventually(lambda: not runs(pid))
    assert eventually(lambda: not folder.exists())
    assert bench.up("other", exporting(3)) == {"value": 3}
    assert bench.server().pid == own


def test_a_launcher_that_is_paused_holds_up_nobody_and_goes_on(bench: Bench) -> None:
    process, _, _ = begun_elsewhere(bench)
    with process:
        process.send_signal(signal.SIGSTOP)
        values = [bench.up(f"mine-{number}", exporting(number))["value"] for number in range(5)]
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("go\n", timeout=60)

    assert values == list(range(5))
    assert said == "{'value': 1}\n"


def test_a_fork_is_refused_and_its_parent_goes_on(bench: Bench) -> None:
    bench.up("before", exporting(1))
    pid = bench.server().pid
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()

    def child() -> None:
        try:
            bench.up("child", exporting(2))
        except ForkedError as error:
            queue.put(str(error))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    said = queue.get()
    process.join()

    assert "forked" in said
    assert bench.up("after", exporting(3)) == {"value": 3}
    assert bench.server().pid == pid


def test_an_operation_of_another_process_is_stopped_and_its_process_goes_on(bench: Bench) -> None:
    process, pid, _ = begun_elsewhere(bench)
    with process:
        assert bench.engine.cancel(stack_name("other", 0), timedelta(seconds=20))
        alive = runs(pid)
        files = [path for path in bench.backend.root.rglob("*") if path.is_file()]
        process.stdin.close() if process.stdin else None
        process.wait(60)

    assert alive
    assert [path for path in files if {"locks", "cancels"} & {*path.parts}] == []


# ---- plugins ----


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A provider on PATH that notes what it is asked for; a process of the engine that finds it."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name, "log")
        write_plugin(Path(name), log)
        monkeypatch.setenv("PATH", f"{name}{os.pathsep}{os.environ['PATH']}")
        ENGINES.close()
        yield log
        ENGINES.close()


def noted(log: Path) -> list[list[Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def making(name: str, **config: str) -> Any:  # noqa: ANN401 - a program
    def program() -> None:
        provider = pulumi.ProviderResource("noting", "configured", config)
        pulumi.CustomResource("noting:index:Thing", name, {}, pulumi.ResourceOptions(provider=provider))

    return program


def test_a_plugin_is_started_and_configured_once_for_many_stacks(bench: Bench, plugin: Path) -> None:
    for number in range(5):
        bench.up(f"run-{number}", making("thing"))
    with ThreadPoolExecutor(4) as threads:
        objects = list(threads.map(lambda number: bench.destroy(stack_name(f"run-{number}", 0)), range(5)))
    told = noted(plugin)

    assert objects == [1] * 5
    assert len({pid for _, pid in told}) == 1
    assert sorted(what for what, _ in told) == ["configure", *["create"] * 5, *["delete"] * 5]


def test_of_several_things_each_is_in_the_state_before_the_next_is_made(bench: Bench, plugin: Path) -> None:
    def program() -> None:
        first = pulumi.CustomResource("noting:index:Thing", "first", {})
        pulumi.CustomResource("noting:index:Thing", "hang", {}, pulumi.ResourceOptions(depends_on=[first]))

    with ThreadPoolExecutor(1) as thread:
        launched = thread.submit(bench.up, "r", program)
        assert eventually(lambda: plugin.exists() and plugin.read_text().count("create") == 2)
        (checkpoint,) = bench.backend.root.glob(".pulumi/stacks/*/r.json")
        kept = json.loads(checkpoint.read_text())["checkpoint"]["latest"]["resources"]
        os.kill(bench.server().pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="signal 9"):
            launched.result()

    assert [each["urn"].rpartition("::")[2] for each in kept if each["type"].startswith("noting:")] == ["first"]
    assert bench.destroy(stack_name("r", 0)) == 1


def test_what_was_made_before_an_interrupt_is_in_the_state(
    bench: Bench, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> None:
        pulumi.CustomResource("noting:index:Thing", "first", {})
        pulumi.export("never", pulumi.Output.from_input(asyncio.sleep(60)))

    def interrupted(*_: object) -> None:
        if plugin.exists() and "create" in plugin.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(WarmEngine, "_look_around", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.up("r", program)
    monkeypatch.undo()

    assert bench.destroy(stack_name("r", 0)) == 1
    assert [what for what, _ in noted(plugin)].count("delete") == 1


def test_what_cannot_be_kept_stops_the_operation(bench: Bench, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> None:
        first = pulumi.CustomResource("noting:index:Thing", "first", {})
        pulumi.CustomResource("noting:index:Thing", "second", {}, pulumi.ResourceOptions(depends_on=[first]))

    write, full = StateFiles.write, [True]

    def fail_once(files: StateFiles, stack: StackName, deployment: dict[str, Any]) -> None:
        if full:
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(files, stack, deployment)

    monkeypatch.setattr(StateFiles, "write", fail_once)
    with pytest.raises(EngineError, match="that holds the state is full"):
        bench.up("r", program)

    assert [what for what, _ in noted(plugin)].count("create") == 1
    assert bench.destroy(stack_name("r", 0)) == 1


def test_another_configuration_gets_a_plugin_of_its_own(bench: Bench, plugin: Path) -> None:
    for number, region in enumerate(["east", "west", "east"]):
        bench.up(f"run-{number}", making("thing", region=region))
    creators = [pid for what, pid in noted(plugin) if what == "create"]

    assert creators[0] == creators[2] != creators[1]


def test_changed_credentials_get_a_plugin_of_their_own(
    bench: Bench, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, key in enumerate(["old", "new", "old"]):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        bench.up(f"run-{number}", making("thing"))
    creators = [pid for what, pid in noted(plugin) if what == "create"]

    assert creators[0] == creators[2] != creators[1]
    assert b"AWS_ACCESS_KEY_ID=new" in Path(f"/proc/{creators[1]}/environ").read_bytes().split(b"\0")


def test_a_plugin_that_dies_fails_who_uses_it_and_is_replaced(bench: Bench, plugin: Path) -> None:
    bench.up("before", making("thing"))
    with pytest.raises(EngineError, match="ended while it was asked"):
        bench.up("killer", making("die"))
    bench.up("after", making("thing"))
    creators = [pid for what, pid in noted(plugin) if what == "create"]

    assert creators[0] == creators[1] != creators[2]
    assert bench.server().stats()["plugins"] == 1


def test_plugins_die_with_their_engine(bench: Bench, plugin: Path) -> None:
    bench.up("r", making("thing"))
    pid = noted(plugin)[0][1]
    os.kill(bench.server().pid, signal.SIGKILL)

    assert eventually(lambda: not runs(pid))
    assert shutil.which("pulumi-resource-noting")
