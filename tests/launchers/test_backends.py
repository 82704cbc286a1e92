"""Backends on other hosts: keys, secrets in URLs, servers that are away, and Pulumi's own listing at them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from servers import ACCOUNT, PASSWORD, Place, Server, serving
from targets import ProcessRow

from launchers import load_launcher
from launchers.factory import launcher_for, make_workspace
from launchers.launcher import RunLauncher
from launchers.settings import BackendSettings, Config
from launchers.testing.contract import eventually
from stacks.cli import CliEngine
from stacks.engine import stack_name
from stacks.errors import BackendAccessError, BackendError, ConfigurationError, KeyMismatchError, RunLauncherError
from stacks.handle import WorkerState
from stacks.location import Location
from stacks.setup import ensure_cli, tools_folder
from stacks.state import StateFiles
from stacks.store import open_store

KINDS = ["s3", "postgres"]
MAIN = "from launchers.cli import main; main()"
SECRETS = (PASSWORD, quote(PASSWORD), quote(PASSWORD, safe=""))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"{request.param}_place")
    return found


@pytest.fixture
def row(tmp_path: Path, place: Place) -> Iterator[ProcessRow]:
    made = ProcessRow(tmp_path, place)
    yield made
    made.close()


def command(row: ProcessRow, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(row.another_process(MAIN, *words), capture_output=True, text=True, check=False, timeout=120)


# ---- keys ----


def test_a_shared_backend_without_a_key_is_refused_with_the_lines_to_add(place: Place, tmp_path: Path) -> None:
    environment = {**os.environ, "RUN_LAUNCHER_BACKEND__URL": place.url}
    words = [sys.executable, "-c", MAIN, "launch", "--run-id", "r", "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 2
    assert "backend:\n    passphrase_file: /" in done.stderr
    assert [secret for secret in SECRETS if secret in done.stderr] == []
    assert place.content() == {}
    assert not (tmp_path / "home").exists()


def test_another_key_is_refused_by_every_command_and_nothing_is_changed(row: ProcessRow, place: Place) -> None:
    launcher = row.launcher()
    run = row.run("sleep 600")
    handle = launcher.launch(run).handle
    key = row.shared / "key"
    right = key.read_text()
    key.write_text("another")
    before = place.content()
    attempts: list[Callable[[RunLauncher[Any]], object]] = [
        lambda it: it.launch(row.run("true")),
        lambda it: it.launch(run.model_copy(update={"attempt": 1})),
        lambda it: it.terminate(handle),
        lambda it: it.terminate(handle, wait=False),
        lambda it: it.clean(run.id),
        lambda it: it.adopt(run.id),
        lambda it: it.preview(row.run("true")),
    ]

    for attempt in attempts:
        with pytest.raises(KeyMismatchError, match="nothing was done") as refused:
            attempt(row.launcher())
        assert refused.value.exit_code == 3
    assert place.content() == before
    assert row.alive(handle)
    key.write_text(right)
    assert row.launcher().terminate(handle).left == 0


def test_two_homes_with_the_same_key_share_runs(row: ProcessRow, place: Place, tmp_path: Path) -> None:
    run = row.run("sleep 600")
    handle = row.launcher().launch(run).handle
    backend = BackendSettings(url=place.url, passphrase_file=row.shared / "key")
    other = Config(home=tmp_path / "other", backend=backend)
    there = launcher_for(run.id, config=other)

    assert there.status(handle).state is WorkerState.RUNNING
    assert load_launcher(row.launcher().template, config=other).launch(run).handle == handle
    assert there.terminate(handle).left == 0
    assert not row.alive(handle)
    assert row.leftovers() == []


# ---- Pulumi's own client of PostgreSQL ----


def test_eight_launches_at_once_end_at_postgres(postgres_place: Place, tmp_path: Path) -> None:
    row = ProcessRow(tmp_path, postgres_place)
    runs = [row.run("exit 0") for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        handles = [each.handle for each in threads.map(lambda run: row.launcher().launch(run), runs)]
    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(lambda handle: row.launcher().terminate(handle), handles))

    assert [each.left for each in ended] == [0] * 8
    assert row.leftovers() == []


def test_twenty_stacks_at_postgres_are_listed_by_pulumi(postgres_place: Place, tmp_path: Path) -> None:
    row = ProcessRow(tmp_path, postgres_place, engine="cli")
    workspace = make_workspace(row.config())
    workspace.backend.open()
    stacks = StateFiles(workspace.backend.store)
    for index in range(20):
        stacks.make(stack_name(f"run-{index}", 0))
    cli = ensure_cli(tools_folder(), print)
    engine = workspace.engine
    assert isinstance(engine, CliEngine)
    environment = {**os.environ, "PULUMI_HOME": str(tmp_path), **engine._environment(None)}

    words = [str(cli.path), "stack", "ls", "--all", "--json", "--non-interactive"]
    listed = subprocess.run(words, capture_output=True, check=True, timeout=60, env=environment, cwd=tmp_path)

    assert len(json.loads(listed.stdout)) == 20
    assert len(list(engine.stacks())) == 20


# ---- what may be shown ----


def test_a_password_in_the_url_is_shown_nowhere(postgres_place: Place, tmp_path: Path) -> None:
    row = ProcessRow(tmp_path, postgres_place)
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    seen.append(" ".join(process.cmdline()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        row.launcher().launch(row.run("exit 0", run_id="r"))
        row.launcher().terminate("r")
    finally:
        over.set()
        watcher.join()
    calls = (["config"], ["config", "-o", "json"], ["doctor"], ["-v", "ps"])
    environment = {**os.environ, "RUN_LAUNCHER_BACKEND__URL": postgres_place.url, "RUN_LAUNCHER_HOME": str(row.home)}
    environment["RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE"] = str(row.shared / "key")
    said = []
    for words in calls:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *words], capture_output=True, text=True, check=False, env=environment
        )
        said.append(done.stdout + done.stderr)

    assert any("pulumi" in line for line in seen)
    assert ["postgres://tester:***@" in text for text in said] == [True, True, True, False]
    assert [secret for secret in SECRETS for text in (*said, *seen) if secret in text] == []
    assert postgres_place.url not in repr(row.config()) + repr(row.launcher().workspace)


def test_what_others_say_of_a_url_is_told_without_its_secrets() -> None:
    url = "postgres://me:ge%2Fheim@host/db?sslpassword=also+secret&sslmode=require"
    location = Location(url)

    assert f"{location}" == "postgres://me:***@host/db?sslpassword=***&sslmode=require"
    assert (
        location.hide(f"cannot open {url}: ge/heim, ge%2Fheim, also secret") == f"cannot open {location}: ***, ***, ***"
    )
    assert "ge" not in Location("s3://b?endpoint=http://me:geheim@host").shown.partition("@")[0].partition("me:")[2]


def test_a_wrong_password_is_told_as_such(postgres_place: Place) -> None:
    url = postgres_place.url.replace(quote(PASSWORD, safe=""), "wrong-one")

    with pytest.raises(BackendAccessError, match="password authentication failed") as refused:
        open_store(Location(url)).read("x")
    assert refused.value.exit_code == 3
    assert "wrong-one" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"), [("s3://b", "s3fs", "s3"), ("postgres://h/d", "psycopg", "postgres")]
)
def test_a_missing_extra_is_told_with_the_line_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigurationError, match=rf"pip install 'run-launcher\[{extra}\]'"):
        open_store(Location(url)).read("x")


# ---- a backend that is away ----


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the test's own, which it may stop."""
    request.getfixturevalue(request.param)  # skips where there is none
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    with serving(request.param) as server:
        yield server


@pytest.mark.parametrize("how", ["stopped", "hangs"])
def test_each_command_tells_that_the_backend_is_away_and_leaves_nothing(own: Server, tmp_path: Path, how: str) -> None:
    row = ProcessRow(tmp_path, own.place())
    row.launcher().launch(row.run("sleep 600", run_id="r"))
    before = sorted(row.home.rglob("*"))
    calls = (
        ["ps"],
        ["status", "r"],
        ["logs", "r"],
        ["wait", "r"],
        ["why", "r"],
        ["terminate", "r"],
        ["launch", "--timeout", "20s", "--run-id", "s", "--", "true"],
    )
    if how == "stopped":
        own.stop()
    else:
        os.kill(own.pid, signal.SIGSTOP)
        for child in psutil.Process(own.pid).children():
            child.suspend()
    try:
        with ThreadPoolExecutor(3) as threads:
            done = list(threads.map(lambda words: command(row, *words), calls))
    finally:
        if how == "hangs":
            for child in psutil.Process(own.pid).children():
                child.resume()
            os.kill(own.pid, signal.SIGCONT)

    assert [each.returncode for each in done] == [4] * len(calls)
    assert [each.stderr.startswith("run-launcher: the backend ") for each in done] == [True] * len(calls)
    assert [len(each.stderr.splitlines()) for each in done] == [1] * len(calls)
    assert sorted(row.home.rglob("*")) == before
    for process in row._processes(None):
        process.kill()


def test_a_launch_whose_backend_goes_away_ends_in_time_and_leaves_no_worker(own: Server, tmp_path: Path) -> None:
    row = ProcessRow(tmp_path, own.place())
    row.launcher().launch(row.run("exit 0"))  # the engine is there
    run = row.run("sleep 600", run_id="r")
    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        launch = threads.submit(row.launcher().launch, run, timeout=timedelta(seconds=15))
        assert eventually(lambda: row.executions(run.id) == 1 or launch.done())
        own.stop()
        error = launch.exception()

    assert isinstance(error, RunLauncherError)
    assert time.monotonic() - began < 60  # its limit, and the time that the engine gets to end
    assert row.executions(run.id) == 0
    assert [process for process in row._processes(run.id) if process.is_running()] == []
    assert not isinstance(error, BackendError) or error.retryable
