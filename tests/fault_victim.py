"""A command of ours that dies by SIGKILL at its n-th write: the victim of the fault driver in fault_driver.py.

    python fault_victim.py (launch TEMPLATE RUN | terminate RUN_ID | reconcile | plugin)

FAULT_AT is the number of the write, 0 for none; the number of all is written to FAULT_COUNT, if the process comes to
its end. A write is what Python reports before it happens: a file opened for writing, renamed, linked or removed, a
folder made or removed, a lock taken, a process started. https://docs.python.org/3/library/audit_events.html
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from launchers import Config, Run, launcher_for, load_launcher
from launchers.factory import make_workspace
from launchers.reconcile import Reconciler
from launchers.settings import EngineSettings, ReconcileSettings
from programs.provider import __main__ as plugin
from programs.provider import worker
from stacks import engines

WRITES = {
    "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "fcntl.flock",
    "subprocess.Popen", "shutil.move",
}  # fmt: skip
counted = itertools.count(1)
last = [0]


def watch(at: int) -> None:
    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if event == "open" or event in WRITES:
            last[0] = next(counted)
            if last[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    what, *words = sys.argv[1:]
    home, program, shim = (os.environ.get(name) for name in ("FAULT_HOME", "FAULT_PROGRAM", "FAULT_SHIM"))
    kind = os.environ["FAULT_ENGINE"]
    if shim:
        worker.SHIM = Path(shim)  # type: ignore[misc] # a wrapper that kills it
    if what == "plugin":
        watch(int(os.environ["FAULT_AT"]))
        plugin.main()
        return
    settings = ReconcileSettings(orphan_age=timedelta(0))
    cli = Path(program) if program and kind == "cli" else None
    if program and kind == "warm":
        engines.ensure_warm = lambda *_: Path(program)  # type: ignore[attr-defined] # a wrapper that kills it
    engine = EngineSettings.model_validate({"kind": kind, "cli": cli})
    config = Config(home=Path(str(home)), engine=engine, reconcile=settings)
    workspace = make_workspace(config)
    _ = workspace.engine  # everything is loaded before the writes are counted
    watch(int(os.environ["FAULT_AT"]))
    if what == "launch":
        load_launcher(words[0], config=config, workspace=workspace).launch(Run.model_validate_json(words[1]))
    elif what == "terminate":
        launcher_for(words[0], workspace=workspace).terminate(words[0])
    else:
        errors = [action.error for action in Reconciler(workspace).once() if action.error]
        assert not errors, errors
    total = last[0]
    if "FAULT_COUNT" in os.environ:
        Path(os.environ["FAULT_COUNT"]).write_text(str(total))


if __name__ == "__main__":
    main()
