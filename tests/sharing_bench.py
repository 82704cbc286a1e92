"""A home whose runs share, the programs that launch and reconcile in it, and what is there past our code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from servers import Place
from targets import ProcessRow, terminate_all

from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import Config, ReconcileSettings, SharedSettings
from launchers.testing.contract import eventually

PROGRAM: Final = str(Path(__file__).with_name("sharing_program.py"))
_NOW: Final = timedelta(0)
AT_ONCE: Final = {"shared": SharedSettings(keep=_NOW, wait=_NOW), "reconcile": ReconcileSettings(orphan_age=_NOW)}
"""Settings with which reconcile removes what nobody uses at its second pass."""


class SharingBench:
    """A row with its own home. `files` is what the template of the programs shares."""

    def __init__(self, folder: Path, engine: str, place: Place | None = None) -> None:
        self.row = ProcessRow(folder, place, engine)
        self.folder = folder
        self.log = folder / "watched"
        self.gate = folder / "gate"

    def launcher(self, **template: object) -> RunLauncher[Any]:
        return self.row.launcher(**{"files": {"f": "text"}, "grace": "1s", **template})

    def template(self, **template: object) -> str:
        """The path of a template's file, for the programs."""
        path = self.folder / "etl.yaml"
        path.write_text(self.launcher(**template).template.canonical())
        return str(path)

    def config(self) -> Config:
        return self.row.config().model_copy(update=AT_ONCE)

    def reconcile(self) -> list[tuple[str, str]]:
        """One pass; what it did, without the names of stacks."""
        told = list(Reconciler(make_workspace(self.config())).once())
        assert [each.error for each in told if each.error] == []
        return [(each.subject.partition("-")[0], each.what) for each in told]

    # ---- programs ----

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a program."""
        backend = self.row.config().backend
        shared = {"URL": backend.url, "PASSPHRASE_FILE": str(backend.passphrase_file)} if backend.url else {}
        return {
            **{f"RUN_LAUNCHER_BACKEND__{name}": value for name, value in shared.items() if value},
            "RUN_LAUNCHER_HOME": str(self.row.home),
            "RUN_LAUNCHER_ENGINE__KIND": self.row.engine.kind,
            "RUN_LAUNCHER_SHARED__KEEP": "0s",
            "RUN_LAUNCHER_SHARED__WAIT": "0s",
            "WATCH_LOG": str(self.log),
        }

    def begin(self, *words: str, **watched: str) -> subprocess.Popen[str]:
        told = {f"WATCH_{name.upper()}": value for name, value in watched.items()}
        return subprocess.Popen(
            [sys.executable, PROGRAM, *words],
            env={**os.environ, **self.settings, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **watched: str) -> tuple[int, list[Any]]:
        """The exit code of a program, and its lines."""
        with self.begin(*words, **watched) as process:
            return self.ended(process)

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, list[Any]]:
        said, errors = process.communicate(timeout=240)
        assert process.returncode <= 0, errors
        return process.returncode, [json.loads(line) for line in said.splitlines()]

    @contextmanager
    def paused(self, *words: str, at: str) -> Iterator[subprocess.Popen[str]]:
        """A program that stands still at an event until `go_on`."""
        with self.begin(*words, pause=at, gate=str(self.gate)) as process:
            try:
                assert eventually(lambda: self.gate.with_suffix(".there").exists() or process.poll() is not None)
                assert process.poll() is None, process.communicate()
                yield process
            finally:
                self.gate.touch()
                process.wait(60)

    # ---- what is there ----

    def watched(self, what: str) -> int:
        """How often a program did something that it is watched for."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return sum(line.startswith(what) for line in lines)

    def makings(self) -> int:
        """How often a program of this home began to make a shared folder: its handovers."""
        return self.watched("os.rename")

    def folders(self) -> list[str]:
        """The kinds of the shared folders that are there."""
        return sorted(path.name.rpartition("-")[0] for path in self.row.home.glob("shared/*/"))

    def content(self, name: str = "files") -> Path:
        (path,) = self.row.home.glob(f"shared/*.{name}-*/content")
        return path

    def records(self) -> list[Path]:
        return sorted(self.row.home.glob("state/shared/*/*.json"))

    def left(self) -> list[str]:
        """All that should not be there once nothing is used; durable data may stay."""
        kept = tuple(f"shared/{name}" for name in ("place", "process.folder"))
        claims = [str(path) for path in self.row.home.glob("state/claims/*/*")]
        stacks = [str(path) for path in self.row.home.glob("state/.pulumi/stacks/*/*.json")]
        return [*(each for each in self.row.leftovers() if not each.startswith(kept)), *claims, *stacks]

    def clean(self) -> None:
        """End every run, and let reconcile remove what they shared."""
        terminate_all(self.launcher())
        for _ in range(3):
            self.reconcile()


@contextmanager
def shared_home(folder: Path, engine: str) -> Iterator[SharingBench]:
    """A bench of which nothing may be left at the end."""
    bench = SharingBench(folder, engine)
    yield bench
    bench.clean()
    assert bench.left() == []
    bench.row.close()
