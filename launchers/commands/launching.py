"""launch: starts the worker of a run, and may stay with it to its end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from launchers.commands.ending import told
from launchers.commands.following import copy_logs
from launchers.commands.interrupts import Interrupted, noticed
from launchers.commands.looking import run_table
from launchers.commands.output import OutputError, Shape, in_words, lasted, write
from launchers.commands.runs import find_record
from launchers.commands.session import say
from launchers.commands.shapes import launched_info
from launchers.commands.tidying import tidy
from launchers.commands.waiting import EXIT_CODES
from launchers.factory import load_launcher
from launchers.templates.choosing import Chosen, choose
from launchers.templates.keeping import SEPARATOR
from programs.args import Run
from stacks.errors import UsageError
from stacks.handle import WorkerHandle, WorkerState
from stacks.records import Phase

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from launchers.settings import Config
    from launchers.values import Launched
    from launchers.workspace import Workspace
    from stacks.handle import WorkerStatus
    from stacks.records import Record

_FLAGS = {"id": "--run-id", "env": "--env", "attempt": "--attempt", "tags": "--tag", "command": "the command"}


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line."""

    command: tuple[str, ...]
    template: str | None
    run_id: str | None
    attempt: int
    env: tuple[str, ...]
    env_files: tuple[Path, ...]
    tags: tuple[str, ...]
    timeout: str | None
    follow: bool = False
    remove: bool = False
    worker_code: bool = False
    break_lock: bool = False
    wait_for_capacity: bool = False
    output: Shape = Shape.TABLE
    changes: tuple[str, ...] = ()
    like: str | None = None

    @property
    def stays(self) -> bool:
        """True if the command stays until the worker has ended."""
        return self.follow or self.remove


def perform(session: Session, wanted: Wanted) -> int:
    """See the command."""
    config = session.config(launch__timeout=wanted.timeout)
    launch = read_launch(wanted, config, session.workspace(config))
    launcher, run = launch.launcher, launch.run
    launched = _launch(launcher, run, wanted)
    _tell(launcher, launched, wanted)
    code = Stay(launcher, run.id, wanted).to_the_end() if wanted.stays else 0
    tidy(launcher.workspace, list(launcher.workspace.records.beside(run.id, lambda _: None)))
    return code


@dataclass(frozen=True)
class AskedLaunch:
    """What a call asks to be launched: the run, its launcher, and why it is this template's."""

    run: Run
    launcher: RunLauncher[Any]
    chosen: Chosen


def read_launch(wanted: Wanted, config: Config, workspace: Workspace) -> AskedLaunch:
    """The launch that the words on the command line describe; raises UsageError, TemplateError or PolicyError."""
    refuse_contradictions(wanted)
    own = None if wanted.template is None else Chosen(wanted.template, "flag --template")
    if wanted.like is not None:
        record = find_record(workspace.records, wanted.like)
        run = like(record, wanted)
        own = Chosen(f"{record.template}{SEPARATOR}{record.digest}", "flag --like")
    else:
        run = make_run(wanted)
    chosen = choose(config, run.tags, own)
    launcher = load_launcher(chosen.template, config=config, workspace=workspace)
    if wanted.changes:
        launcher = launcher.overridden(wanted.changes)
    return AskedLaunch(run, launcher, chosen)


def like(record: Record, wanted: Wanted) -> Run:
    """The run that was asked for, with command, tags and folder of an earlier one where it says nothing else."""
    run = make_run(replace(wanted, command=wanted.command or record.command))
    missing = sorted(set(record.env_names) - set(run.env))
    if missing:
        flags = " ".join(f"-e {name}" for name in missing)
        message = f"run {record.run_id} had variables of its own, whose values are kept nowhere: give them with {flags}"
        raise UsageError(message)
    _enter(record)
    return run.model_copy(update={"tags": {**record.tags, **run.tags}})


def _enter(record: Record) -> None:
    """Go to the folder that a run was launched from: its command may name files by a relative path."""
    try:
        os.chdir(record.cwd or ".")
    except OSError as error:
        message = f"run {record.run_id} was launched in {record.cwd}, which cannot be entered: {error.strerror}"
        raise UsageError(message) from error


def make_run(wanted: Wanted) -> Run:
    """The run that the words on the command line describe; raises UsageError."""
    env = {**_env([line for path in wanted.env_files for line in _lines(path)], "--env-file"), **_env(wanted.env, "-e")}
    tags = dict(_pair(tag, "--tag") for tag in wanted.tags)
    try:
        run_id = wanted.run_id if wanted.run_id is not None else Run.new(wanted.command).id
        return Run(id=run_id, command=wanted.command, env=env, tags=tags, attempt=wanted.attempt)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else "run"
        message = f"{_FLAGS.get(field, field)}: {problem['msg'].removeprefix('Value error, ')}"
        raise UsageError(message) from error


class Stay:
    """A command that stays with its run to the end: it shows the output, removes the run, and exits as it ended."""

    def __init__(self, launcher: RunLauncher[Any], run_id: str, wanted: Wanted) -> None:
        self._launcher = launcher
        self._run_id = run_id
        self._wanted = wanted
        self._record = launcher.record(run_id)
        self._shown = 0

    def to_the_end(self) -> int:
        """Return the exit code. Interrupted, it terminates the run, after saying so; a second time it leaves it."""
        try:
            with noticed():
                self._show()
                status = self._launcher.wait(self._run_id)
        except Interrupted:
            self._terminate()
            raise
        except OutputError:
            self._say_left("running")
            raise
        ended = f"run {self._run_id} {_ended(status)}"
        if self._wanted.remove:
            self._remove(ended)
        else:
            say(ended, *([f"  run-launcher why {self._run_id}"] if status.state is WorkerState.FAILED else []))
        if self._wanted.worker_code and status.state is WorkerState.FAILED and status.exit_code:
            return status.exit_code
        return EXIT_CODES[status.state]

    def _show(self) -> None:
        if not self._wanted.follow:
            return
        for shown in copy_logs(self._launcher, self._record, follow=True, skip=self._shown):
            self._shown = shown

    def _remove(self, ended: str) -> None:
        try:
            with noticed():
                say(ended)
                self._launcher.clean(self._run_id)
                self._launcher.discard(self._launcher.record(self._run_id))
        except Interrupted:
            self._say_left("ended, but not removed")
            raise

    def _terminate(self) -> None:
        left = "running"
        try:
            with noticed():
                say(f"terminating run {self._run_id}; Ctrl-C again leaves it to end by itself")
                self._launcher.terminate(self._run_id, wait=False)
                left = "to end by itself"
                with suppress(OutputError):  # as where the terminal was closed
                    self._show()  # what it prints while it ends
                say(told(self._launcher.terminate(self._run_id)))
                if self._wanted.remove:
                    self._launcher.discard(self._launcher.record(self._run_id))
        except Interrupted:
            self._say_left(left)
            raise

    def _say_left(self, how: str) -> None:
        say(f"left run {self._run_id} {how}", _hint(self._run_id))


def describe(handle: WorkerHandle) -> str:
    """A worker as people know it."""
    pid = handle.coordinates.get("pid")
    return f"{handle.target} (pid {pid})" if pid else handle.target


def _launch(launcher: RunLauncher[Any], run: Run, wanted: Wanted) -> Launched:
    """Launch; on Ctrl-C nothing of it stays but its record, unless the run was there before."""
    before = launcher.workspace.records.read(run.id)
    try:
        with noticed():
            return launcher.launch(run, break_lock=wanted.break_lock, wait_for_capacity=wanted.wait_for_capacity)
    except Interrupted as interrupted:
        now = launcher.workspace.records.read(run.id)
        ours = now is not None and (before is None or before.attempt < now.attempt)
        if now is not None and ours and now.phase in {Phase.WANTED, Phase.LAUNCHED}:
            _give_up(launcher, run.id, at_once=interrupted.repeated)
        say(f"the launch of run {run.id} was interrupted")
        raise


def _give_up(launcher: RunLauncher[Any], run_id: str, *, at_once: bool) -> None:
    """Remove what an interrupted launch could not take back; interrupted once more, leave that to the next command."""
    try:
        if not at_once:
            say(f"terminating run {run_id}")
            with noticed():
                launcher.terminate(run_id)
            return
    except Interrupted:
        say(_hint(run_id))
        raise
    say(_hint(run_id))


def _hint(run_id: str) -> str:
    return f"  run-launcher terminate {run_id}   removes what is left of it"


def _tell(launcher: RunLauncher[Any], launched: Launched, wanted: Wanted) -> None:
    run_id = launched.handle.run_id
    if not launched.created:
        say(f"run {run_id} was launched before and is {launched.state}; nothing was started")
    elif wanted.follow:
        say(f"run {run_id} launched as a {describe(launched.handle)}; Ctrl-C terminates it")
    if wanted.follow:
        return
    record = launcher.record(run_id)
    info = launched_info(record, launched.status, created=launched.created)
    write(wanted.output, info, lambda: run_table([(record, launched.status)]), [run_id])


def _ended(status: WorkerStatus) -> str:
    return f"{in_words(status)}{lasted(status)}"


def refuse_contradictions(wanted: Wanted) -> None:
    """Raise UsageError for options that do not go together."""
    if not wanted.command and wanted.like is None:
        message = "a command is missing: what the worker executes, or the run whose command it is (--like RUN)"
        raise UsageError(message)
    if wanted.like is not None and wanted.template is not None:
        message = "--like launches with the template of that run, as it was then: leave --template away"
        raise UsageError(message)
    if wanted.attempt and wanted.run_id is None:
        message = "--attempt needs the --run-id of the run that it is an attempt of"
        raise UsageError(message)
    if wanted.worker_code and not wanted.stays:
        message = "--exit-code-from-worker needs --follow or --rm: without them the launch does not wait for the worker"
        raise UsageError(message)
    if wanted.follow and wanted.output is not Shape.TABLE:
        message = "with --follow the worker's output is the result: leave --output away"
        raise UsageError(message)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"--env-file: cannot read {path}: {reason}"
        raise UsageError(message) from error
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _env(words: Iterable[str], flag: str) -> dict[str, str]:
    env: dict[str, str] = {}
    for word in words:
        name, given, value = word.partition("=")
        if not given:
            if name not in os.environ:
                message = f"{flag} {name}: your environment has no {name}; write {name}=VALUE"
                raise UsageError(message)
            value = os.environ[name]
        env[name] = value
    return env


def _pair(word: str, flag: str) -> tuple[str, str]:
    name, given, value = word.partition("=")
    if not given or not name:
        message = f"{flag} {word}: write NAME=VALUE"
        raise UsageError(message)
    return name, value
