"""Launches and reconciles in a process of its own, watched by Python's own account of what it does to files.

    python sharing_program.py (launch TEMPLATE RUN_ID... | again TEMPLATE NAME SEED COUNT | reconcile UNTIL)

WATCH_LOG     a file: a line for each handover of a shared folder, and for each try at the claim on a shared stack
WATCH_KILL    "n:pattern": SIGKILL at the n-th event that matches
WATCH_PAUSE   a pattern, and WATCH_GATE a file: at the first event that matches, or, where the pattern begins with
              "after ", at the next event of its thread, `<gate>.there` is made and the gate waited for
An event is its name and its first two arguments that are files. https://docs.python.org/3/library/audit_events.html
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from launchers import Run, load_launcher
from launchers.factory import make_workspace
from launchers.launcher import HasLogs
from launchers.reconcile import Reconciler

EVENTS: Final = {
    "open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir", "fcntl.flock",
}  # fmt: skip
NOTED: Final = re.compile(r"os\.rename .*/shared/[^/]+/handover\.json$|fcntl\.flock .*/claims/shared-")
TELLS: Final = 'stat -c "%i %Z" "$RUN_LAUNCHER_FILES"; cat "$RUN_LAUNCHER_FILES/f"'
CHECKS: Final = 'for n in 1 2 3; do [ "$(cat "$RUN_LAUNCHER_FILES/f")" = "$1" ] || exit 9; sleep 0.03; done'


def watch() -> None:
    log, kill, pause = (os.environ.get(f"WATCH_{name}", "") for name in ("LOG", "KILL", "PAUSE"))
    at, _, deadly = kill.partition(":")
    counted, armed, paused = itertools.count(1), set[int](), list[bool]()

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event not in EVENTS:
            return
        named = args[:1] if event == "fcntl.flock" else args[:2]  # how it locks is a number that is no descriptor
        told = f"{event} {' '.join(map(_name, named))}"
        if log and NOTED.search(told):
            fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{told}\n".encode())
            os.close(fd)
        if kill and re.search(deadly, told) and next(counted) == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        if pause and not paused:
            now = threading.get_ident() in armed or re.search(pause, told) is not None
            if re.search(pause.removeprefix("after "), told) and pause.startswith("after "):
                armed.add(threading.get_ident())
            elif now:
                paused.append(True)
                _wait(Path(os.environ["WATCH_GATE"]))

    sys.addaudithook(hook)


def _name(argument: object) -> str:
    if isinstance(argument, int):
        try:
            return str(Path(f"/proc/self/fd/{argument}").readlink())
        except OSError:
            return str(argument)
    return os.fsdecode(argument) if isinstance(argument, (bytes, str)) else str(argument)


def _wait(gate: Path) -> None:
    gate.with_suffix(".there").touch()
    while not gate.exists():
        time.sleep(0.01)


def launch(template: str, *run_ids: str) -> None:
    """Launch them at once; a line of JSON for each, with what its worker printed, or the error."""
    launcher = load_launcher(template)
    assert isinstance(launcher, HasLogs)
    begin = threading.Barrier(len(run_ids))

    def one(run_id: str) -> None:
        begin.wait()
        try:
            status = launcher.wait(launcher.launch(Run(id=run_id, command=("sh", "-c", TELLS))).handle)
            said = b"".join(launcher.logs(launcher.record(run_id))).decode()
            told = {"id": run_id, "code": status.exit_code, "said": said}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            told = {"id": run_id, "error": repr(error)}
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()

    with ThreadPoolExecutor(len(run_ids)) as threads:
        list(threads.map(one, run_ids))


def again(template: str, name: str, seed: str, count: str) -> None:
    """Launch one after the other, of templates with other files each, and end it; a line for each that lost them."""
    chance = random.Random(f"{seed} {name}")  # noqa: S311 - repeatable
    loaded = load_launcher(template)
    for number in range(int(count)):
        text = f"version {chance.randint(1, 3)}"
        value = loaded.template.model_copy(update={"files": {"f": text}})
        launcher = load_launcher(value, workspace=loaded.workspace)
        run = Run(id=f"{name}-{number}", command=("sh", "-c", CHECKS, "sh", text))
        status = launcher.wait(launcher.launch(run).handle)
        if status.exit_code != 0:
            sys.stdout.write(f"{run.id} of {text}: {status}\n")
        launcher.terminate(run.id)
        time.sleep(chance.uniform(0, 0.05))


def reconcile(until: str) -> None:
    """Reconcile pass after pass until a file is there; a line of JSON for each action."""
    reconciler = Reconciler(make_workspace())
    while True:
        last = Path(until).exists()
        for action in reconciler.once():
            sys.stdout.write(f"{json.dumps([action.subject, action.what, action.error])}\n")
            sys.stdout.flush()
        if last:
            return


if __name__ == "__main__":
    watch()
    programs: dict[str, Callable[..., None]] = {"launch": launch, "again": again, "reconcile": reconcile}
    programs[sys.argv[1]](*sys.argv[2:])
