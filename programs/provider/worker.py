"""Starts, watches and ends the process group of a worker, in the place where this process runs."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psutil

from programs.provider.folder import EXIT, Identity, RunFolder, WorkerRecord
from programs.provider.place import Place, boot_id, pid_namespace

SHIM: Final = Path(__file__).with_name("shim")
MARKER: Final = "RUN_LAUNCHER_WORKER"
_MARGIN: Final = 2.0  # seconds that the shim gets beyond the grace to end what it can end


class StartError(Exception):
    """The worker did not start; `stage` is what failed and `errno` why."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(f"{stage}: {os.strerror(number)}")
        self.stage = stage
        self.errno = number


def start_time(pid: int) -> int | None:
    """When the process started, in the unit that the shim records; None for one that is gone or a zombie."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else int(fields[19])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time() * 1_000_000)
    except psutil.NoSuchProcess:
        return None


def alive(identity: Identity) -> bool:
    """True while exactly this process runs."""
    return start_time(identity.pid) == identity.start_time


def executes(worker: Identity) -> bool:
    """True once the worker has become its command; until then it is a copy of the shim (seen on Linux only)."""
    with suppress(OSError):
        return not Path(f"/proc/{worker.pid}/exe").samefile(SHIM)
    return True


def start(folder: RunFolder) -> WorkerRecord:
    """Start what was handed over in the folder, at most once ever; returns the worker that is or was there.

    Returns when the command runs. May be repeated, from any process. Raises StartError.
    """
    there = folder.worker()
    if there is not None:
        return there
    answer = _run_shim(folder.path)
    there = folder.worker()
    taken_elsewhere = answer[:1] == ["taken"] or answer[:2] == ["error", "handover"]
    if there is not None and (answer[:1] == ["started"] or taken_elsewhere):
        return there
    if answer[:1] == ["taken"]:
        stage = "closed"  # a termination came first
        raise StartError(stage, errno.ECANCELED)
    stage, number = (" ".join(answer[1:-1]), int(answer[-1])) if answer[:1] == ["error"] else ("shim", errno.ECHILD)
    raise StartError(stage, number)


def _run_shim(path: Path) -> list[str]:
    """Run the shim and return the words of its report; empty if it died without one.

    It gets no environment: a launcher that is itself in a worker would hand down that worker's marker, and the shim
    would be ended with it.
    """
    done = subprocess.run([str(SHIM), str(path)], stdin=subprocess.DEVNULL, capture_output=True, check=False, env={})
    return done.stdout.decode("ascii", "replace").splitlines()[0].split() if done.stdout else []


def stop(folder: RunFolder, grace: timedelta | None = None) -> bool:
    """End the worker and everything that it started; True when the kernel shows none of it any more.

    With a grace the shim's own is cut to it; without, the shim's own holds. Repeatable. May be asked only in the
    worker's own place, else nothing is touched and the answer is False.
    """
    worker = folder.worker()
    if worker is None:
        return True
    if (worker.boot_id, worker.pid_namespace) != (boot_id(), pid_namespace()):
        lived = Place.parse(str(worker.meta.get("handle", {}).get("place", "")))
        return lived is not None and lived.restarted
    _ask_and_force(worker.shim, grace)
    if sys.platform == "linux" and folder.ending() is not None:
        return True  # the shim writes it when the kernel shows it no descendant any more
    return _end_rest(worker)


def _stop_without_folder(worker: Identity, grace: timedelta) -> bool:
    """End a worker whose folder somebody removed, with its shim, which leads its session; True when it is gone."""
    with suppress(ProcessLookupError):
        leader = os.getsid(worker.pid)
        born = start_time(leader)
        if alive(worker) and born is not None and leader != os.getsid(0):
            shim = Identity(leader, born)
            _ask_and_force(shim, grace)
            return _end_rest(WorkerRecord(boot_id(), pid_namespace(), shim, worker, datetime.now(UTC), {}))
    return not alive(worker)


def _ask_and_force(shim: Identity, grace: timedelta | None) -> None:
    """Have the shim end its worker: gracefully, and when the grace has passed by force."""
    if alive(shim):
        _signal(shim, signal.SIGTERM)
        if not await_end(shim, None if grace is None else grace.total_seconds()):
            _signal(shim, signal.SIGQUIT)
            await_end(shim, _MARGIN)


def remove(path: Path, archive: Path | None, grace: timedelta | None = None, alone: Identity | None = None) -> bool:
    """End the worker of a run's folder, archive its output and how it ended, and remove the folder.

    Repeatable. False if the worker lives in another place or does not end; then the folder is kept. `alone` is the
    worker that is to be ended where somebody removed the folder by hand; it must be known to live here.
    """
    folder = RunFolder(path)
    try:
        folder.check()
    except FileNotFoundError:
        return alone is None or _stop_without_folder(alone, grace or timedelta())
    with suppress(FileExistsError):
        folder.close()
    if not stop(folder, grace):
        return False
    if archive is not None and folder.output.exists():
        archive.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.move(folder.output, archive)
        with suppress(FileNotFoundError):
            shutil.move(path / EXIT, archive.with_suffix(".exit.json"))
    shutil.rmtree(path, ignore_errors=False)
    return True


def ask_to_stop(folder: RunFolder) -> None:
    """Let the shim begin to end its worker; returns at once. Raises ForeignFolderError."""
    with suppress(FileNotFoundError):
        folder.check()  # else whoever wrote what stands there would have us end a process of their choice
    worker = folder.worker()
    if worker is not None and (worker.boot_id, worker.pid_namespace) == (boot_id(), pid_namespace()):
        _signal(worker.shim, signal.SIGTERM)


def await_end(identity: Identity, seconds: float | None) -> bool:
    """Wait until the process is gone; False when the time passed first (None: no limit)."""
    deadline = None if seconds is None else time.monotonic() + seconds
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(identity.pid)
            try:
                if not alive(identity):
                    return True
                milliseconds = None if seconds is None else max(0, round(seconds * 1000))
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                return bool(poll.poll(milliseconds))
            finally:
                os.close(fd)
        return True
    while alive(identity):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _signal(identity: Identity, number: signal.Signals) -> None:
    """Signal exactly this process: a reused pid is never hit."""
    with suppress(ProcessLookupError):
        if sys.platform != "linux":
            if alive(identity):
                os.kill(identity.pid, number)
            return
        fd = os.pidfd_open(identity.pid)  # holds the pid while we look whose it is
        try:
            if alive(identity):
                signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def _end_rest(worker: WorkerRecord) -> bool:
    """Kill what a dead shim left: the shim's session, the worker's group, and whatever carries the run's marker."""
    for _ in range(50):
        rest = remains(worker)
        if not rest:
            return True
        for identity in rest:
            _signal(identity, signal.SIGKILL)
        for identity in rest:
            await_end(identity, 0.1)
    return False


def remains(worker: WorkerRecord) -> list[Identity]:
    """The processes of this worker that run now, found by session and marker, not by our own book-keeping.

    The worker's group is part of the shim's session. A session outlives its leader, and its number is not given to a
    new process before it is empty: where another process has that number by now, the session is not ours any more.
    """
    token = worker.meta.get("token", "")
    session = worker.shim.pid if start_time(worker.shim.pid) in (None, worker.shim.start_time) else None
    found = []
    for process in psutil.process_iter():
        born = start_time(process.pid)
        if born is not None and born >= worker.shim.start_time and _belongs(process.pid, session, str(token)):
            found.append(Identity(process.pid, born))
    return found


def _belongs(pid: int, session: int | None, token: str) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        if os.getsid(pid) == session:
            return True
    with suppress(psutil.Error, OSError):
        return bool(token) and psutil.Process(pid).environ().get(MARKER) == token
    return False
