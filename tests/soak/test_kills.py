"""Lives at once of which the warm engine, its plugin or the launcher is killed at random moments: nothing is lost.

What a kill leaves is put right by the next command. The moments are drawn from a seed; what runs then is as it comes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from left import left, nothing
from noting import write_plugin
from targets import ProcessRow, take_engine

from launchers.factory import make_workspace
from launchers.reconcile import Reconciler
from launchers.settings import ReconcileSettings
from launchers.testing.contract import eventually
from stacks.warm_server import ENGINES

SEED = "2026-11"
SHOWN = 100
SHORT = pytest.param(16, id="short")
SOAK = pytest.param(500, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])
LIVES = """
import sys
from concurrent.futures import ThreadPoolExecutor
import pulumi
from launchers import ProcessTemplate, Run, load_launcher
from launchers.process import ProcessLauncher
from stacks.errors import RunLauncherError

declare_worker = ProcessLauncher.program

def program(self, args):
    pulumi.CustomResource("noting:index:Thing", "beside", {})
    declare_worker(self, args)

ProcessLauncher.program = program
lines, *ids = sys.argv[1:]
launcher = load_launcher(ProcessTemplate(grace="2s"))

def life(run_id):
    command = ("sh", "-c", 'echo "$RUN_LAUNCHER_RUN_ID" >>"$1"; exec sleep 600', "sh", lines)
    try:
        print("begun", run_id, flush=True)
        launcher.terminate(launcher.launch(Run(id=run_id, command=command)).handle)
        print("ended", run_id, flush=True)
    except RunLauncherError as error:
        print("failed", run_id, error, flush=True)

with ThreadPoolExecutor(4) as threads:
    list(threads.map(life, ids))
"""


@pytest.fixture
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessRow]:
    take_engine(request, "warm")
    with tempfile.TemporaryDirectory(prefix="rl-kills-") as name:
        folder = Path(name)
        for each in ("tmp", "bin"):
            (folder / each).mkdir()
        write_plugin(folder / "bin", folder / "noted")
        monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        ENGINES.close()
        row = ProcessRow(folder, engine="warm")
        yield row
        row.close()
        ENGINES.close()


def victims(launcher: int) -> dict[str, list[int]]:
    """The processes that may be killed, by what they are; a worker and its shim are not among them."""
    found: dict[str, list[int]] = {"launcher": [launcher], "engine": [], "plugin": []}
    with suppress(psutil.Error):
        for process in psutil.Process(launcher).children(recursive=True):
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                for name, mark in (("engine", "run-launcher-engine"), ("plugin", "pulumi-resource-noting")):
                    if mark in words:
                        found[name].append(process.pid)
    return found


@pytest.mark.parametrize("count", [SHORT, SOAK])
def test_whoever_is_killed_no_worker_is_lost_or_doubled(
    row: ProcessRow, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - repeatable
    said, lines, killed = row.shared / "said", row.shared / "lines", Counter[str]()
    said.touch()
    ids = [f"life-{number}" for number in range(count)]
    while remaining := [each for each in ids if f"begun {each}\n" not in said.read_text()]:
        with (
            said.open("a") as output,
            subprocess.Popen(
                row.another_process(LIVES, str(lines), *remaining), stdout=output, start_new_session=True
            ) as process,
        ):
            first = said.read_text().count("ended")
            eventually(lambda: said.read_text().count("ended") > first)  # noqa: B023 - asked at once
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(0.02, 1.5))
                kind = chance.choice(["launcher", *["engine", "plugin"] * 4])
                for pid in victims(process.pid)[kind][:1]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed[kind] += 1
    begun = time.perf_counter()
    launcher = row.launcher(grace="2s")
    swept = [launcher.terminate(run_id).left for run_id in launcher.workspace.records.ids()]
    settings = ReconcileSettings.model_validate({"orphan_age": "0s"})
    config = row.config().model_copy(update={"reconcile": settings})
    errors = [each.error for each in Reconciler(make_workspace(config)).once() if each.error]
    ends = Counter(line.split()[0] for line in said.read_text().splitlines())

    if count > SHOWN:
        took = f"{time.perf_counter() - begun:.1f} s"
        with capsys.disabled():
            print(f"\n{count} lives, killed {dict(killed)}: {dict(ends)}, put right in {took}")  # noqa: T201
    assert killed.total() > 0
    assert errors == []
    assert set(swept) <= {0}
    assert set(Counter(lines.read_text().split() if lines.exists() else []).values()) <= {1}
    assert ends["ended"] > 0, said.read_text()
    assert left(row) == nothing()
