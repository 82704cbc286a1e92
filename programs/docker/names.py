"""The names of what is made on a Docker Engine, and of the engine itself."""

from __future__ import annotations

import re
from typing import Final

_ATTEMPT: Final = re.compile(r".*\.\d+")
PLACE: Final = "docker:"
"""A place is this and the daemon's own id."""


def container_name(run_id: str, attempt: int) -> str:
    """The container's name; no two pairs of id and attempt share one ("a.1" is attempt 0 of "a.1", or 1 of "a")."""
    return f"run-{run_id}.{attempt}" if attempt or _ATTEMPT.fullmatch(run_id) else f"run-{run_id}"


def own_name(run_id: str, attempt: int, index: int) -> str:
    """The name of a network or volume that is made for one run."""
    return f"{container_name(run_id, attempt)}.{index}"
