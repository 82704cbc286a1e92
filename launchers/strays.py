"""What no run owns: workers, stacks, claims, leases, wishes and folders that somebody left and no record tells of.

A run's record is written before anything else of it and removed last, so what has no record belongs to no run. A
backend that was restored from an older copy has lost records of runs that live: `reconcile --dry-run` shows them first.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil

from launchers.factory import launchers_of
from launchers.launcher import RunLauncher
from launchers.registry import target_names
from launchers.values import Found
from launchers.workspace import Workspace
from programs.args import HANDLE_OUTPUT
from stacks.engine import StackName, stack_name
from stacks.errors import RunLauncherError
from stacks.handle import WorkerHandle
from stacks.leases import dead_owners
from stacks.records import Record
from stacks.scratch import temporary_files

_NOW: Final = timedelta(0)


@dataclass(frozen=True)
class Stray:
    """Something that no run owns; `remove` looks once more and answers False if a run owns it by now."""

    subject: str
    why: str
    remove: Callable[[], bool]


def strays(
    workspace: Workspace,
    stacks: set[StackName],
    records: list[Record],
    launcher_of: Callable[[Record], RunLauncher[Any]],
) -> Iterator[Stray]:
    """All that no run owns, as far as it can be seen from here; `stacks` were listed before `records`."""
    launchers = _launchers(workspace, records, launcher_of)
    known = {record.stack: record for record in records}
    for launcher in launchers:
        with suppress(RunLauncherError):  # a place that does not answer: another time
            yield from _workers(workspace, launcher, known)
    for stack in sorted(stacks - known.keys()):
        yield from _stack(workspace, launchers, stack)
    for stack in workspace.backend.claims.stale():
        why = "its holder died; the next command on this run would break it too"
        yield Stray(f"claim on {stack.stack}", why, partial(_release, workspace, stack))
    for stack in sorted(set(workspace.records.wishes()) - known.keys()):
        why = "it wishes for the end of a run that has no record"
        yield Stray(f"wish for {stack.stack}", why, partial(_grant, workspace, stack))
    for owner in dead_owners(workspace.backend.store):
        why = "its process did not renew it and is gone"
        yield Stray(f"lease of {owner}", why, partial(_bury, workspace, owner))
    temporary = temporary_files().glob("run-launcher-preview-*")
    for folder in (*workspace.backend.home.glob("work/preview-*"), *temporary):
        if _abandoned(folder, workspace.orphan_age):
            yield Stray(f"folder {folder.name}", "the preview that made it was killed", partial(_delete, folder))


def _launchers(
    workspace: Workspace, records: list[Record], launcher_of: Callable[[Record], RunLauncher[Any]]
) -> list[RunLauncher[Any]]:
    """One launcher for each target and connection that can be asked for all its workers."""
    found: dict[tuple[str, str], RunLauncher[Any]] = {}
    for record in records:
        launcher = launcher_of(record)
        found[record.target, launcher.template.connection] = launcher
    for target in target_names():
        for launcher in launchers_of(target, workspace):
            found.setdefault((target, launcher.template.connection), launcher)
    return list(found.values())


def _workers(workspace: Workspace, launcher: RunLauncher[Any], known: dict[StackName, Record]) -> Iterator[Stray]:
    for found in launcher.find(None):
        stack = stack_name(found.handle.run_id, found.handle.attempt)
        old = found.status.started_at is None or datetime.now(UTC) - found.status.started_at > workspace.orphan_age
        if old and launcher.reaches(found.handle.place) and not _owns(known.get(stack)):
            remove = partial(_remove_worker, workspace, launcher, found, stack)
            yield Stray(found.handle.run_id, f"no run owns this worker, which is {found.status.state}", remove)


def _owns(record: Record | None) -> bool:
    """True if this is the record of a run that may have a worker."""
    return record is not None and record.is_live


def _remove_worker(workspace: Workspace, launcher: RunLauncher[Any], found: Found, stack: StackName) -> bool:
    with workspace.backend.claims.hold(stack, "reconcile", _NOW) as claim:
        record = workspace.records.read(found.handle.run_id)
        if record is not None and record.stack == stack and _owns(record):
            return False
        launcher.remove(found, launcher.template.grace)
        workspace.engine.destroy(stack, claim, launcher.providers(), workspace.engine_timeout)
        workspace.engine.remove(stack, claim)
        return True


def _stack(workspace: Workspace, launchers: list[RunLauncher[Any]], stack: StackName) -> Iterator[Stray]:
    handle = (workspace.engine.outputs(stack) or {}).get(HANDLE_OUTPUT)
    if not handle:
        why = "no run owns this stack, which has no worker"
        yield Stray(f"stack {stack.stack}", why, partial(_remove_stack, workspace, None, stack))
        return
    read = WorkerHandle.model_validate(handle)
    for launcher in launchers:
        if launcher.target == read.target and _reaches(launcher, read.place):
            why = "no run owns this stack"
            yield Stray(f"stack {stack.stack}", why, partial(_remove_stack, workspace, launcher, stack))
            return


def _reaches(launcher: RunLauncher[Any], place: str) -> bool:
    try:
        return launcher.reaches(place)
    except RunLauncherError:  # its own place does not answer
        return False


def _remove_stack(workspace: Workspace, launcher: RunLauncher[Any] | None, stack: StackName) -> bool:
    """Destroy a stack and forget it; without a launcher it has made nothing that could be destroyed from here."""
    with workspace.backend.claims.hold(stack, "reconcile", _NOW) as claim:
        if any(record.stack == stack for record in workspace.records.all(lambda _: None)):
            return False
        if launcher is not None:
            workspace.engine.destroy(stack, claim, launcher.providers(), workspace.engine_timeout)
        workspace.engine.remove(stack, claim)
        return True


def _release(workspace: Workspace, stack: StackName) -> bool:
    with workspace.backend.claims.hold(stack, "reconcile", _NOW) as claim:
        workspace.engine.unlock(stack, claim)
    return True


def _grant(workspace: Workspace, stack: StackName) -> bool:
    with workspace.backend.claims.hold(stack, "reconcile", _NOW):
        workspace.records.grant(stack)
    return True


def _bury(workspace: Workspace, owner: str) -> bool:
    workspace.backend.lease.bury(owner)
    return True


def _abandoned(folder: Path, age: timedelta) -> bool:
    """True if the folder is ours, the process of its name is gone, and no other place's has used it lately."""
    pid = folder.name.partition("preview-")[2].partition("-")[0]
    with suppress(FileNotFoundError):
        info = folder.lstat()
        old = info.st_uid == os.geteuid() and time.time() - info.st_mtime > age.total_seconds()
        return old and pid.isdigit() and not psutil.pid_exists(int(pid))
    return False


def _delete(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return True
