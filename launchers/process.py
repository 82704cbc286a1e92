"""The target `process`: a process group on this host."""

from __future__ import annotations

import errno
import os
import platform
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Final

from launchers.launcher import RunLauncher
from launchers.shared import Shared
from launchers.values import Data, Found
from programs.args import ProgramArgs, Run
from programs.process.environment import build_environment, is_inherited
from programs.process.template import ProcessTemplate
from programs.provider import worker
from programs.provider.folder import (
    ExitRecord,
    ForeignFolderError,
    Identity,
    RunFolder,
    WorkerRecord,
    discard,
    read_ending,
)
from programs.provider.place import Place, boot_id
from programs.provider.shared_folder import CONTENT, SharedFolder, digest, keep_place, read_place
from stacks.engine import AttachedProvider, StackName, stack_name
from stacks.errors import (
    BackendError,
    DamagedFileError,
    EngineError,
    LaunchFailedError,
    Started,
    TemplateError,
    UsageError,
)
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus
from stacks.records import Record
from stacks.shared_records import SharedKind, SharedRecord

_REASONS: Final = {
    "max_runtime": ("max_runtime", "ended by the template's max_runtime"),
    "start_timeout": ("start_timeout", "did not start within the template's start_timeout"),
    "terminated": ("terminated", "ended by terminate"),
    "start_failed": ("start failed", "its command could not be started"),
}
"""What the shim writes, in our words; any other end is the command's own."""
_STAGES: Final = {
    "command": "its command cannot be executed: {why} (a script's first line may name a program that is not there)",
    "folder": "its working folder cannot be entered: {why}",
    "limit": "the system does not allow the template's limits: {why}",
    "output": "its output file cannot be opened: {why}",
    "start_timeout": "it did not start within the template's start_timeout",
    "terminated": "it was terminated before it started",
    "closed": "it was terminated before it started",
}
"""The stages at which a start fails, as the shim names them; any other is the system's own failure."""
_MAX_ARGUMENT: Final = 131072  # bytes of one word: MAX_ARG_STRLEN of Linux
_FOLLOW: Final = 0.05  # seconds between two looks at a log that is followed


class ProcessLauncher(RunLauncher[ProcessTemplate]):
    """Runs each command in a process group of its own, under a shim that records how it ended."""

    target: ClassVar[str] = "process"
    create_takes_over: ClassVar[bool] = True
    runs_here: ClassVar[bool] = True
    program_on_disk: ClassVar[str] = "programs.process.program"

    def program(self, args: ProgramArgs[ProcessTemplate]) -> None:
        """See RunLauncher."""
        from programs.process.program import program  # noqa: PLC0415 - loads Pulumi

        program(args)

    def place(self) -> str:
        """See RunLauncher: host, boot, pid namespace and user."""
        return str(Place.own())

    def reaches(self, place: str) -> bool:
        """See RunLauncher: nothing outlives a restart of its host."""
        there = Place.parse(place)
        return there is not None and (there.here or there.restarted)

    def where(self, place: str) -> str:
        """See RunLauncher."""
        there = Place.parse(place)
        return super().where(place) if there is None else there.in_words()

    def providers(self) -> tuple[AttachedProvider, ...]:
        """See RunLauncher."""
        from programs.provider.attach import register, serve  # noqa: PLC0415 - loads gRPC

        return (AttachedProvider("runworker", serve, register),)

    def coordinates(self, args: ProgramArgs[ProcessTemplate]) -> dict[str, str]:
        """See RunLauncher."""
        return {"folder": args.context.folder}

    def inherited(self) -> Collection[str]:
        """See RunLauncher."""
        return [name for name in os.environ if is_inherited(name)] if self.template.inherit_env else ()

    def check(self, run: Run) -> None:
        """See RunLauncher: what can be seen to fail before anything is made."""
        environment = build_environment(self.template, run, os.environ)
        cwd = self.template.cwd or Path.cwd()
        if not cwd.is_dir():
            message = f"template {self.name}: the working folder {cwd} is not there"
            raise TemplateError(message)
        if os.fsencode(cwd) != str(cwd).encode(errors="replace"):
            message = f"the name of the working folder {str(cwd)!r} is not UTF-8 text: start from another one"
            raise UsageError(message)
        _check_command(run.command[0], cwd, environment.get("PATH"))
        _check_size(run, environment)
        self._check_limits()

    def shared(self, run: Run) -> Sequence[Shared]:  # noqa: ARG002 - the template alone says it
        """See RunLauncher: a durable folder, and one that holds files."""
        found = []
        if self.template.shared_folder:
            found.append(Shared(SharedKind.DURABLE, "folder", {}, self._folder_program(None)))
        if self.template.files:
            inputs = {"files": digest(self.template.files)}
            found.append(Shared(SharedKind.VERSIONED, "files", inputs, self._folder_program(self.template.files)))
        return found

    def shared_place(self) -> str:
        """See RunLauncher: the home folder, whatever host or container sees it."""
        try:
            return keep_place(self._shared_folders)
        except OSError as error:
            message = f"what runs share cannot be kept in {self._shared_folders}: {error.strerror}"
            raise LaunchFailedError(message) from error
        except ForeignFolderError as error:
            raise LaunchFailedError(str(error)) from error

    def reaches_shared(self, place: str) -> bool:
        """See RunLauncher."""
        with suppress(ForeignFolderError, PermissionError):
            return place == read_place(self._shared_folders)
        return False

    def has_shared(self, record: SharedRecord) -> bool:
        """See RunLauncher."""
        return (self._shared_folders / record.stack.stack / CONTENT).is_dir()

    def sweep_shared(self, record: SharedRecord, *, data: bool) -> None:
        """See RunLauncher."""
        try:
            SharedFolder(self._shared_folders / record.stack.stack).remove(data=data)
        except ForeignFolderError as error:
            raise EngineError(str(error)) from error

    def data_of(self, record: SharedRecord) -> Data:
        """See RunLauncher."""
        return Data(*SharedFolder(self._shared_folders / record.stack.stack).measure())

    @property
    def _shared_folders(self) -> Path:
        return self.workspace.backend.home / "shared"

    def _folder_program(self, files: Mapping[str, str] | None) -> Callable[[StackName], None]:
        def declare(stack: StackName) -> None:
            from programs.process.shared import program  # noqa: PLC0415 - loads Pulumi

            program(self._shared_folders / stack.stack, self.workspace.backend.identity() or "", files)

        return declare

    def find(self, runs: Collection[Record] | None) -> Iterator[Found]:
        """See RunLauncher."""
        if runs is None:
            backend = self.workspace.backend.identity()
            for path in self.workspace.backend.home.glob("runs/*/*"):
                with suppress(DamagedFileError, PermissionError):  # its record tells of it
                    found = _found(RunFolder(path))
                    if found is not None and found.handle.backend == backend:
                        yield found
            return
        for record in runs:
            if "folder" in record.coordinates:
                there = _asked(RunFolder(Path(str(record.coordinates["folder"]))), record)
                if there is not None:
                    yield there

    def remove(self, found: Found, grace: timedelta) -> None:
        """See RunLauncher."""
        folder = Path(str(found.handle.coordinates["folder"]))
        self._remove(found.handle.run_id, folder, self._archive(found.handle), grace, _identity(found.handle))

    def sweep(self, record: Record) -> None:
        """See RunLauncher: the folder of a worker that was never started, with what was handed over to it."""
        if "folder" in record.coordinates:
            archive = Path(record.archive) if record.archive else None
            self._remove(record.run_id, Path(str(record.coordinates["folder"])), archive, None)

    def begin_end(self, record: Record) -> bool:
        """See RunLauncher: the shim gives the worker its grace, then kills what is left."""
        if "folder" not in record.coordinates:
            return False
        try:
            worker.ask_to_stop(RunFolder(Path(str(record.coordinates["folder"]))))
        except ForeignFolderError as error:
            raise EngineError(str(error), started=Started.UNKNOWN) from error
        return True

    def ended_of(self, record: Record) -> WorkerStatus | None:
        """See RunLauncher: the end that was archived with the output."""
        ending = read_ending(Path(record.archive)) if record.archive else None
        return None if ending is None else _ended(ending, None)

    def discard(self, record: Record) -> None:
        """See RunLauncher: the archived output of this attempt."""
        if record.archive:
            discard(Path(record.archive))

    def failure(self, details: str) -> str | None:
        """See RunLauncher."""
        from programs.provider.folder_resource import FOLDER_FAILED  # noqa: PLC0415
        from programs.provider.servicer import START_FAILED  # noqa: PLC0415

        unmade = re.search(rf"{re.escape(FOLDER_FAILED)} (\d+): ([^\n]*)", details)
        if unmade is not None:
            return f"{FOLDER_FAILED} {unmade[2]}{_room(int(unmade[1]))}"
        match = re.search(rf"{re.escape(START_FAILED)} ([\w ]+) (\d+):", details)
        if match is None:
            return None
        why = os.strerror(int(match[2]))
        account = _STAGES.get(match[1], f"{match[1]}: {{why}}").format(why=why)
        return f"the worker did not start: {account}{_room(int(match[2]))}"

    def facts(self, record: Record) -> Mapping[str, str]:
        """See RunLauncher: folder, limits met, and what was used."""
        facts = {"folder": record.cwd}
        folder = RunFolder(Path(str(record.coordinates.get("folder", ""))))
        there = folder.worker()
        ending = folder.ending() or (read_ending(Path(record.archive)) if record.archive else None)
        limits: Mapping[str, object] = there.meta.get("limits", {}) if there else {}
        facts |= {f"limit {name}": str(value) for name, value in limits.items()}
        if ending is not None:
            facts["peak memory of a process"] = f"{ending.max_rss / 2**20:.1f} MiB"
            facts["CPU time"] = f"{ending.cpu_time.total_seconds():.2f} s"
        if record.env_names:
            facts["environment of the run"] = ", ".join(record.env_names)
        return facts

    def logs(self, record: Record, *, follow: bool = False) -> Iterator[bytes]:
        """The worker's output in pieces, both streams in order; with `follow` until the worker has ended."""
        folder = RunFolder(Path(str(record.coordinates["folder"])))
        archive = Path(record.archive) if record.archive else None
        for path in (folder.output, archive):
            if path is None:
                continue
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            with file:
                while True:
                    over = not follow or not self._runs(folder)
                    while piece := file.read(65536):
                        yield piece
                    if over:
                        return
                    time.sleep(_FOLLOW)

    def _runs(self, folder: RunFolder) -> bool:
        there = folder.worker()
        return there is not None and folder.ending() is None and worker.alive(there.shim)

    @staticmethod
    def _remove(
        run_id: str, folder: Path, archive: Path | None, grace: timedelta | None, alone: Identity | None = None
    ) -> None:
        try:
            gone = worker.remove(folder, archive, grace, alone)
        except ForeignFolderError as error:
            raise EngineError(str(error), started=Started.UNKNOWN) from error
        if not gone:
            message = f"the worker of run {run_id} does not end; terminate it again"
            raise EngineError(message, started=Started.YES)

    def _archive(self, handle: WorkerHandle) -> Path | None:
        try:
            record = self.workspace.records.read(handle.run_id)
        except BackendError:  # a worker of this host can be ended without it
            return self.workspace.backend.paths(stack_name(handle.run_id, handle.attempt))[1]
        return Path(record.archive) if record is not None and record.archive else None

    def _check_limits(self) -> None:
        limits = self.template.limits
        if limits.memory is not None and platform.system() != "Linux":
            message = f"template {self.name}: limits.memory cannot be enforced on {platform.system()}"
            raise TemplateError(message)
        wanted = {
            "memory": (resource.RLIMIT_AS, limits.memory),
            "cpu_time": (resource.RLIMIT_CPU, None if limits.cpu_time is None else limits.cpu_time.total_seconds() + 1),
            "open_files": (resource.RLIMIT_NOFILE, limits.open_files),
        }
        for name, (kind, value) in wanted.items():
            hard = resource.getrlimit(kind)[1]
            if value is not None and hard != resource.RLIM_INFINITY and value > hard and os.geteuid() != 0:
                message = f"template {self.name}: limits.{name} is above what this user may have ({hard})"
                raise TemplateError(message)


def _room(number: int) -> str:
    return "; make room, then try again" if number in {errno.ENOSPC, errno.EDQUOT} else ""


def _check_command(command: str, cwd: Path, path: str | None) -> None:
    where = str(cwd / command) if "/" in command else command
    if shutil.which(where, path=path or os.defpath) is not None:
        return
    if "/" in command and Path(where).is_dir():
        message = f"cannot run {command!r}: it is a folder"
    elif "/" in command and Path(where).exists():
        message = f"cannot run {command!r}: it is not an executable file (chmod +x makes it one)"
    elif "/" in command:
        message = f"cannot run {command!r}: there is no such file (working folder: {cwd})"
    else:
        message = f"cannot run {command!r}: no such command on PATH; name the path of its file, or correct PATH"
    raise UsageError(message)


def _check_size(run: Run, environment: Mapping[str, str]) -> None:
    words = [*run.command, *(f"{name}={value}" for name, value in environment.items())]
    sizes = [len(os.fsencode(word)) + 1 for word in words]
    limit = os.sysconf("SC_ARG_MAX") - 4096
    if sum(sizes) + 8 * len(words) > limit or max(sizes) > _MAX_ARGUMENT:
        message = (
            f"command and environment are too long for this system ({sum(sizes)} bytes in all, {max(sizes)} in one "
            f"word; the limits are {limit} and {_MAX_ARGUMENT}): pass large values in a file"
        )
        raise UsageError(message)


def _asked(folder: RunFolder, record: Record) -> Found | None:
    """The worker of one run; one that cannot be looked at is UNKNOWN, and keeps no other from being seen."""
    try:
        return _found(folder) or _without_folder(record)
    except (DamagedFileError, PermissionError) as error:
        if record.handle is None:
            raise
        reason = str(error) if isinstance(error, DamagedFileError) else f"{folder.path} belongs to another user"
        return Found(record.handle, WorkerStatus(state=WorkerState.UNKNOWN, message=reason), {})


def _without_folder(record: Record) -> Found | None:
    """A worker that lives although somebody removed its folder: the handle's process still runs."""
    identity, there = _identity(record.handle) if record.handle else None, Place.parse(record.place)
    if record.handle is None or identity is None or there is None or not (there.here and worker.alive(identity)):
        return None
    status = WorkerStatus(state=WorkerState.RUNNING, message="its folder was removed, and its exit code will be lost")
    return Found(record.handle, status, {})


def _identity(handle: WorkerHandle) -> Identity | None:
    pid, start = str(handle.coordinates.get("pid", "")), str(handle.coordinates.get("start_time", ""))
    return Identity(int(pid), int(start)) if pid.isdigit() and start.isdigit() else None


def _found(folder: RunFolder) -> Found | None:
    there = folder.worker()
    if there is None:
        return None
    base = WorkerHandle.model_validate(there.meta["handle"])
    identity = {"folder": str(folder.path), "pid": there.worker.pid, "start_time": str(there.worker.start_time)}
    return Found(base.model_copy(update={"coordinates": identity}), _status(folder, there), there.meta["labels"])


def _status(folder: RunFolder, there: WorkerRecord) -> WorkerStatus:
    ending = folder.ending()
    lives = ending is None and worker.alive(there.shim)  # looked at once: it may end at any moment
    if ending is None and not lives:
        ending = folder.ending()  # it may have ended between the two looks
    if ending is not None:
        return _ended(ending, there)
    if there.boot_id != boot_id():
        message = "its host was restarted while it ran"
        return WorkerStatus(state=WorkerState.FAILED, reason="lost", message=message, started_at=there.started_at)
    if lives:
        state = WorkerState.RUNNING if worker.executes(there.worker) else WorkerState.STARTING
        return WorkerStatus(state=state, started_at=there.started_at)
    message = "its shim was killed, and the exit code is lost with it"
    return WorkerStatus(state=WorkerState.FAILED, reason="lost", message=message, started_at=there.started_at)


def _ended(ending: ExitRecord, there: WorkerRecord | None) -> WorkerStatus:
    reason, message = _REASONS.get(ending.reason, (None, ""))
    code = ending.exit_code
    if ending.signal is not None:
        code = 128 + ending.signal
        name = _signal_name(ending.signal)
        reason = reason or name
        message = message or f"ended by {name}"
    if code is not None and ending.reason == "start_failed":
        message = f"{message}: {os.strerror(ending.error)}"
    good = code == 0 and ending.reason == "exited"
    return WorkerStatus(
        state=WorkerState.SUCCEEDED if good else WorkerState.FAILED,
        message=message or ("" if good else f"exit code {code}"),
        exit_code=code,
        reason=reason,
        started_at=there.started_at if there else None,
        ended_at=ending.ended_at,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
