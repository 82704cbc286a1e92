"""The one removal that `launch` and `ps` do when their own work is done: nothing piles up without `reconcile`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from launchers.reconcile import Reconciler
from stacks.engines import choose_engine
from stacks.errors import RunLauncherError
from stacks.setup import tools_folder

if TYPE_CHECKING:
    from launchers.workspace import Workspace
    from stacks.records import Record


def tidy(workspace: Workspace, records: list[Record]) -> None:
    """Remove at most one of these runs that has ended and is past its keep; whatever is in the way is left alone.

    The engine is not brought for it, and nothing is told: it is a courtesy of commands that have done their work.
    """
    with suppress(RunLauncherError, OSError):
        if choose_engine(workspace.kind, tools_folder(), workspace.cli).program is not None:
            Reconciler(workspace).remove_one(records)
