"""Kills one process of a launch, a termination or a reconcile at one of its writes, and looks at what is left.

Kill points: the n-th write of the launcher or of the provider plugin (fault_victim.py counts them), or the n-th of
some system calls of one thread of the command line, of the warm engine's process or of the shim, which `strace` kills
as it enters the call.
Observer: the kernel (processes by a mark in their environment, and by the folders in their command lines), the files,
and a line that each worker writes where only the test reads it. Each trial is told apart by a seed and a number, and
is the same each time, as far as the threads of the engine are.
"""

from __future__ import annotations

import functools
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from targets import ProcessRow, terminate_all

from launchers import Run
from launchers.factory import make_workspace
from launchers.launcher import RunLauncher
from launchers.reconcile import Reconciler
from launchers.settings import ReconcileSettings
from launchers.testing.contract import eventually
from programs.provider.worker import SHIM
from stacks.errors import LaunchConflictError
from stacks.records import Phase
from stacks.scratch import socket_folder
from stacks.setup import ensure_cli, tools_folder
from stacks.warm_setup import ensure_warm

SEED: Final = "2026-11"
CALLS: Final = {
    "cli": (("mkdirat", 3), ("renameat", 6), ("unlinkat", 8), ("openat", 30)),
    "engine": (("write", 8), ("read", 14), ("connect", 1), ("accept4", 1), ("epoll_pwait", 20)),
    "shim": (("openat", 8), ("linkat", 1), ("unlinkat", 2), ("renameat", 1), ("write", 3), ("clone,fork,vfork", 2)),
}
"""For each victim sets of system calls, and about how many of them one of its threads makes."""
_TRACED: Final = """#!/bin/sh
[ "$1" = version ] && exec {program} "$@"
(setsid strace -f -qq -o '{trace}' {inject} -p $$ </dev/null >/dev/null 2>&1 &)
for _ in $(seq 500); do grep -q '^TracerPid:.*[1-9]' /proc/$$/status && break; done
exec {program} "$@"
"""
"""Runs a program under a tracer that is no relative of it and holds none of its pipes."""
MARK: Final = "FAULT_TRIAL"
VICTIM: Final = Path(__file__).with_name("fault_victim.py")


@dataclass(frozen=True)
class Trial:
    """One kill: which command, which of its processes, and the number that everything else is drawn from."""

    command: str
    victim: str
    number: int
    seed: str = SEED

    @property
    def chance(self) -> random.Random:
        return random.Random(f"{self.seed} {self.command} {self.victim} {self.number}")  # noqa: S311 - repeatable

    def __str__(self) -> str:
        return f"{self.command}, {self.victim} killed, trial {self.number} of seed {self.seed!r}"


class Bench:
    """A row with a backend of its own, and the commands that are killed in it."""

    def __init__(self, folder: Path, engine: str = "cli") -> None:
        self.row = ProcessRow(folder, engine=engine)
        self.folder = folder
        self.mark = os.urandom(8).hex()
        self.lines = self.row.shared / "lines"
        self.engine = engine
        self.cli = ensure_cli(tools_folder(), print).path
        (folder / "tmp").mkdir()

    # ---- what happens before the kill ----

    def prepare(self, trial: Trial, chance: random.Random) -> tuple[Run, list[str]]:
        """The run, and the words of the command that is to be killed on it."""
        run = self.row.run('echo "$RUN_LAUNCHER_RUN_ID" >>"$1"; sleep 600', str(self.lines))
        template = self.folder / "template.yaml"
        template.write_text(self.launcher().template.canonical())
        if trial.command == "launch":
            return run, ["launch", str(template), run.model_dump_json()]
        with self.environment(SHIM=self.traced("shim", SHIM, chance) if trial.victim == "shim" else None) as env:
            words = [sys.executable, str(VICTIM), "launch", str(template), run.model_dump_json()]
            done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0 or trial.victim == "shim", done.stderr
        if trial.command == "reconcile":
            self._make_overdue(run.id, chance)
        return run, [trial.command, *([run.id] if trial.command == "terminate" else [])]

    def _make_overdue(self, run_id: str, chance: random.Random) -> None:
        launcher = self.launcher()
        records = launcher.workspace.records
        record = launcher.record(run_id)
        what = chance.choice(["wished away", "owned by nobody", "half-made"])
        if what == "wished away":
            records.wish_end(record, "a test")
        elif what == "owned by nobody":
            records.delete(run_id)
        else:
            records.write(record.changed(phase=Phase.WANTED, handle=None, launched_at=None))

    # ---- the kill ----

    def kill(self, trial: Trial, words: list[str], chance: random.Random) -> bool:
        """Run the command and have it, or one of its processes, killed at a write; False if it came to its end."""
        at, program = 0, None
        if trial.victim == "launcher":
            at = chance.randint(1, totals(self.engine)[words[0]])
        if trial.victim == "cli":
            program = self.traced("cli", self.cli, chance)
        if trial.victim == "engine":
            program = self.traced("engine", ensure_warm(tools_folder(), print), chance)
        shim = self.traced("shim", SHIM, chance) if (trial.command, trial.victim) == ("launch", "shim") else None
        with self.environment(AT=str(at), PROGRAM=program, SHIM=shim) as env:
            code = self._run([sys.executable, str(VICTIM), *words], env)
        return code == -signal.SIGKILL or self.traced_died()

    def kill_plain(self, trial: Trial, run_id: str, chance: random.Random) -> bool:
        """Run `pulumi destroy` by hand on the run's stack, and have it or its provider killed at a write."""
        workspace = self.launcher().workspace
        plugin = self.folder / "plugin" / "pulumi-resource-runworker"
        plugin.parent.mkdir(exist_ok=True)
        plugin.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(VICTIM))} plugin\n")
        plugin.chmod(0o755)
        cli = self.traced("cli", self.cli, chance) if trial.victim == "cli" else self.cli
        stack = workspace.records.read(run_id).stack.full  # type: ignore[union-attr]
        at = chance.randint(1, 12) if trial.victim == "provider" else 0
        with self.environment(AT=str(at)) as env:
            plain = {
                "PATH": os.pathsep.join([str(plugin.parent), env["PATH"]]),
                "PULUMI_BACKEND_URL": workspace.backend.url,
                "PULUMI_CONFIG_PASSPHRASE_FILE": str(workspace.backend.key_file()),
                "PULUMI_SKIP_UPDATE_CHECK": "1",
                "PULUMI_HOME": str(self.folder / "pulumi"),
            }
            command = [str(cli), "destroy", "-s", stack, "--yes", "--skip-preview", "--non-interactive"]
            code = self._run(command, {**env, **plain})
        return code != 0 or self.traced_died()

    def _run(self, command: list[str], env: dict[str, str]) -> int:
        return subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, timeout=120, check=False
        ).returncode

    def traced_died(self) -> bool:
        """True if the kernel told `strace` of a kill since this was asked last."""
        died = False
        for trace in self.folder.glob("traced-*/trace"):
            died = died or "killed by SIGKILL" in trace.read_text()
            trace.unlink()
        return died

    def traced(self, victim: str, program: Path, chance: random.Random) -> Path:
        """A program that is killed as it enters one of its system calls; `version` asks it for what it is."""
        calls, most = chance.choice(CALLS[victim])
        inject = f"-e trace={calls} -e inject={calls}:signal=SIGKILL:when={chance.randint(1, most)}"
        wrapper = self.folder / f"traced-{victim}" / program.name
        wrapper.parent.mkdir(exist_ok=True)
        wrapper.write_text(
            _TRACED.format(program=shlex.quote(str(program)), trace=wrapper.with_name("trace"), inject=inject)
        )
        wrapper.chmod(0o755)
        return wrapper

    @contextmanager
    def environment(self, AT: str = "0", **words: Path | None) -> Iterator[dict[str, str]]:  # noqa: N803 - as it is spelt there
        given = {f"FAULT_{name}": str(value) for name, value in words.items() if value is not None}
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("PULUMI_")},
            MARK: self.mark,
            "FAULT_HOME": str(self.row.home),
            "FAULT_AT": AT,
            "FAULT_ENGINE": self.engine,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder / "tmp"),
            **given,
        }

    # ---- what comes after ----

    def launcher(self) -> RunLauncher[Any]:
        return self.row.launcher(grace="2s")

    def reconcile(self) -> None:
        settings = ReconcileSettings.model_validate({"orphan_age": "0s"})
        config = self.row.config().model_copy(update={"reconcile": settings})
        told = list(Reconciler(make_workspace(config)).once())
        assert [each.error for each in told if each.error] == []

    def go_on(self, run: Run, chance: random.Random) -> str:
        """The next command on the run: it ends right, whatever was left; returns which it was."""
        what = chance.choice(["launch", "terminate", "reconcile"])
        launcher = self.launcher()
        known = launcher.workspace.records.read(run.id) is not None
        if self.executions().count(run.id) and not known:
            what = "reconcile"  # we took its record away: to launch it again would be another run
        if what == "launch":
            with suppress(LaunchConflictError):  # where it was terminated
                launched = launcher.launch(run)
                assert launcher.launch(run).handle == launched.handle
        elif what == "terminate" and known:
            assert launcher.terminate(run.id).left == 0
        else:
            self.reconcile()
        return what

    def clean_up(self) -> None:
        """End the run whatever it is by now, as a user would."""
        terminate_all(self.launcher())
        self.reconcile()

    def left(self) -> list[str]:
        """All that should not be there: processes that carry our mark, files that are neither record nor archive."""
        eventually(lambda: not list(self.processes()))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("tempfile.tempdir", str(self.folder / "tmp"))
            socket_folder().rmdir()  # as the next launcher there does: it removes those of killed ones
        home = self.row.home
        files = [*home.glob("runs/*/*"), *home.glob("work/*"), *(self.folder / "tmp").iterdir()]
        locks = [path for path in home.glob("state/.pulumi/locks/**/*") if path.is_file()]
        return [*self.processes(), *map(str, [*files, *locks]), *self.row.leftovers(), *self.row.stacks()]

    def processes(self) -> Iterator[str]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    yield f"process {process.pid}: {process.cmdline()}"

    def executions(self) -> list[str]:
        return self.lines.read_text().split() if self.lines.exists() else []

    def close(self) -> None:
        self.row.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def totals(engine: str) -> dict[str, int]:
    """How many writes each command makes of which nobody kills anything; counted on a bench of its own."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="rl-fault-") as name:
        bench, chance = Bench(Path(name), engine), random.Random(1)  # noqa: S311 - repeatable
        for command in ("launch", "terminate", "reconcile"):
            _, words = bench.prepare(Trial(command, "nobody", 0), chance)
            with bench.environment(COUNT=Path(name, "count")) as env:
                done = subprocess.run([sys.executable, str(VICTIM), *words], env=env, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            found[command] = int(Path(name, "count").read_text())
            bench.clean_up()
    return found


def attempt(bench: Bench, trial: Trial) -> bool:
    """One trial, from its preparation to an empty house; False if the victim had come to its end before its time."""
    chance = trial.chance
    run, words = bench.prepare(trial, chance)
    if trial.command == "plain destroy":
        died = bench.kill_plain(trial, run.id, chance)
    else:
        died = bench.kill(trial, words, chance)
    told = bench.go_on(run, chance)
    executed = bench.executions().count(run.id)
    assert executed <= 1, f"{trial}, then {told}: the worker ran {executed} times"
    bench.clean_up()
    left = bench.left()
    assert left == [], f"{trial}, then {told}: left {left}"
    assert bench.executions().count(run.id) <= 1, f"{trial}, then {told}"
    return died
