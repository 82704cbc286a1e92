"""eject: writes the folder in which a plain `pulumi` operates a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from launchers.commands.output import Shape, write
from launchers.commands.runs import find_run
from launchers.commands.session import say
from launchers.commands.shapes import EjectedInfo

if TYPE_CHECKING:
    from launchers.commands.session import Session


def eject(session: Session, name: str, folder: Path, output: Shape) -> None:
    """See the command."""
    record, launcher = find_run(session.workspace(), name)
    ejected = launcher.eject(record.run_id, folder)
    if not ejected.backend_named:
        say("the backend's URL holds a password, and is not written there: set PULUMI_BACKEND_URL before `. ./env`")
    info = EjectedInfo(
        run_id=ejected.run_id,
        attempt=ejected.attempt,
        folder=str(ejected.folder),
        stack=ejected.stack,
        files=ejected.files,
        backend_named=ejected.backend_named,
    )
    line = f"cd {shlex.quote(str(ejected.folder))} && . ./env && pulumi preview"
    write(output, info, lambda: [line], [ejected.run_id])
