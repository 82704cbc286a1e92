"""Which run is meant: an id, a unique prefix, or `@last`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from launchers.factory import launcher_for
from stacks.errors import RunNotFoundError, UsageError
from stacks.handle import RUN_ID

if TYPE_CHECKING:
    from typing import Any

    from launchers.launcher import RunLauncher
    from launchers.workspace import Workspace
    from stacks.records import Record, Records

LAST: Final = "@last"
_SHOWN: Final = 10  # candidates that a refusal lists


def find_run(workspace: Workspace, name: str) -> tuple[Record, RunLauncher[Any]]:
    """The record of the run that is meant, and its launcher; raises RunNotFoundError, or UsageError for several."""
    record = find_record(workspace.records, name)
    return record, launcher_for(record.run_id, workspace=workspace)


def find_record(records: Records, name: str) -> Record:
    """The record of the run that is meant; an exact id wins over a prefix."""
    if name == LAST:
        return _last(records)
    record = records.read(name) if RUN_ID.fullmatch(name) and name.strip(".") else None
    if record is not None:
        return record
    ids = records.ids()
    candidates = [each for each in ids if name and each.startswith(name)]
    if len(candidates) > 1:
        raise UsageError(_ambiguous(name, candidates))
    record = records.read(candidates[0]) if candidates else None
    if record is None:
        raise RunNotFoundError(_unknown(name, ids))
    return record


def _last(records: Records) -> Record:
    newest = max(records.all(lambda _: None), key=lambda record: record.wanted_at, default=None)
    if newest is None:
        message = "no run was launched here yet"
        raise RunNotFoundError(message)
    return newest


def _ambiguous(name: str, candidates: list[str]) -> str:
    shown = ", ".join(candidates[:_SHOWN])
    more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    return f"{name!r} may be any of {len(candidates)} runs: {shown}{more}"


def _unknown(name: str, ids: list[str]) -> str:
    near = difflib.get_close_matches(name[:200], ids, n=3)
    if near:
        return f"no run {name!r} is known here; did you mean {' or '.join(map(repr, near))}?"
    return f"no run {name!r} is known here (`run-launcher ps --all` lists all that are)"
