"""Watches workers by looking again and again, for targets that tell of no events themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from launchers.values import Event, Found
from stacks.handle import WorkerState, WorkerStatus

if TYPE_CHECKING:
    from launchers.launcher import RunLauncher

_PAUSE: Final = 0.5  # seconds between two looks


def watch(launcher: RunLauncher[Any]) -> Iterator[Event]:
    """See RunLauncher.watch. What changes twice between two looks is told as it is at the second."""
    seen: dict[tuple[str, int], Found] = {}
    while True:
        there = {(each.handle.run_id, each.handle.attempt): each for each in launcher.find(None)}
        for key in [key for key in seen if key not in there]:
            yield Event(gone(seen.pop(key)), "")
        for key, found in there.items():
            if key not in seen or seen[key].status.state is not found.status.state:
                yield Event(found, "")
            seen[key] = found
        time.sleep(_PAUSE)


def gone(found: Found) -> Found:
    """A worker that was removed."""
    return Found(found.handle, WorkerStatus(state=WorkerState.NOT_FOUND, message="it was removed"), found.labels)
