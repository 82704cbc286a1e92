"""A launch that is stopped or killed at an exact moment: its record says that it is wanted, or its worker is there."""

from __future__ import annotations

import signal
from typing import Final

from targets import ProcessRow

from launchers import Run

_CODE: Final = """
import os, sys
from launchers import Run, load_launcher
from stacks.records import Records
written = Records.write_first

def after(self, *words):
    written(self, *words)
    os.kill(os.getpid(), int(sys.argv[4]))

def before(self, *words):
    os.kill(os.getpid(), int(sys.argv[4]))

if sys.argv[3] == "wanted":
    Records.write_first = after
else:
    Records.write_and_see = before
load_launcher(sys.argv[1]).launch(Run.model_validate_json(sys.argv[2]))
"""


def interrupted_launch(row: ProcessRow, run: Run, moment: str, by: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command of a launch that gets a signal once its record is written, or before the worker that is there is."""
    template = row.shared / "process.yaml"
    template.write_text(row.launcher().template.canonical())
    return row.another_process(_CODE, str(template), run.model_dump_json(), moment, str(int(by)))
