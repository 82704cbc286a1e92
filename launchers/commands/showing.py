"""demo: one run from its launch to its end, and proof that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from launchers.commands.ending import told
from launchers.commands.following import Stream
from launchers.commands.launching import describe
from launchers.commands.output import emit, in_words, lasted
from launchers.commands.session import say
from launchers.factory import load_launcher, make_workspace
from launchers.settings import Config
from programs.args import Run
from programs.process.template import ProcessTemplate
from stacks.handle import WorkerHandle, WorkerState

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher

_PROGRAM: Final = """
import time
for step in range(1, 4):
    print(f"step {step} of 3", flush=True)
    time.sleep(1)
"""
_HASH: Final = 8  # characters that are shown of one


def demo(session: Session) -> int:
    """See the command. It keeps everything in a folder of its own, and removes that."""
    engine = session.config().engine
    home = Path(tempfile.mkdtemp(prefix="run-launcher-demo-"))
    try:
        begun = time.monotonic()
        config = Config(home=home, engine=engine)
        workspace = make_workspace(config, say)
        workspace.engine.prepare()
        _tell(f"engine ready: {workspace.engine.name}", time.monotonic() - begun)
        launcher = load_launcher(ProcessTemplate(), config=config, workspace=workspace)
        left = _live(launcher, Run.new((sys.executable, "-u", "-c", _PROGRAM)), home)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    for each in left:
        _tell(f"left: {each}")
    if left:
        return 1
    _tell("left: nothing (no process and no file but its record, asked of the system)")
    emit("Next: run-launcher launch --follow -- python your_script.py")
    return 0


def _live(launcher: RunLauncher[Any], run: Run, home: Path) -> list[str]:
    """The run's whole life, told; returns what is left of it."""
    try:
        begun = time.monotonic()
        launched = launcher.launch(run)
        _tell(f"run {run.id} launched as a {describe(launched.handle)}", time.monotonic() - begun)
        _tell(f"handle: {_shortened(launched.handle)}")
        _tell(f"status: {in_words(launched.status)}")
        for _, line in Stream(launcher, launcher.record(run.id), follow=True).lines():
            _tell(f"| {line.decode(errors='replace')}")
        status = launcher.wait(run.id)
        _tell(f"run {run.id} {in_words(status)}{lasted(status)}")
    finally:
        begun = time.monotonic()
        if launcher.workspace.records.read(run.id) is not None:
            ended = launcher.terminate(run.id)
            _tell(f"terminate: {told(ended)}", time.monotonic() - begun)
            launcher.discard(launcher.record(run.id))
    odd = [] if status.state is WorkerState.SUCCEEDED else [f"a run that {status.state}"]
    return [*odd, *_processes(home), *_files(home, run.id)]


def _processes(home: Path) -> Iterator[str]:
    """The processes that name the demo's folder in their command or environment, as the kernel shows them."""
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        words: list[str] = []
        with suppress(psutil.Error):  # one that has ended meanwhile, or of another user
            words += process.cmdline()
            words += process.environ().values()
        if any(str(home) in word for word in words):
            yield f"process {process.pid}"


def _files(home: Path, run_id: str) -> Iterator[str]:
    """The files and folders that carry the run's name, but for its record."""
    for path in home.rglob(f"*{run_id}*"):
        if path.relative_to(home).parts[:2] != ("state", "records"):
            yield f"file {path.relative_to(home)}"


def _shortened(handle: WorkerHandle) -> str:
    short = {name: f"{getattr(handle, name)[:_HASH]}..." for name in ("backend", "digest", "fingerprint")}
    return handle.model_copy(update=short).to_json()


def _tell(line: str, seconds: float | None = None) -> None:
    took = "" if seconds is None else f"{seconds:5.1f} s"
    emit(f"  {line:<68}{took}".rstrip())
