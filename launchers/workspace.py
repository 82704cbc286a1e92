"""What all launchers of one configuration share: the backend, its records, and the engine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launchers.caps import Caps
from launchers.connections import Connections
from launchers.templates import Library
from stacks.backend import Backend
from stacks.processes import here, user_name
from stacks.records import Records
from stacks.shared_records import SharedRecords

if TYPE_CHECKING:
    from stacks.engine import Engine


@dataclass(frozen=True)
class Workspace:
    """One backend and one engine, for any number of launchers and threads.

    `progress` gets a line for whatever takes longer than a second, such as bringing the engine at the first launch.
    """

    backend: Backend
    progress: Callable[[str], None] = field(compare=False)
    kind: Literal["auto", "warm", "cli"] = "auto"
    cli: Path | None = None
    launch_timeout: timedelta = timedelta(seconds=60)
    engine_timeout: timedelta = timedelta(minutes=5)
    owner: str = ""
    records_keep: timedelta = timedelta(days=90)
    orphan_age: timedelta = timedelta(minutes=10)
    shared_keep: timedelta = timedelta(days=7)
    shared_wait: timedelta = timedelta(minutes=2)
    templates: Library = field(default_factory=lambda: Library(()), compare=False)
    limits: Caps = field(default_factory=Caps)
    connections: Connections = field(default_factory=Connections)

    @cached_property
    def records(self) -> Records:
        """The records beside the stacks."""
        return Records(self.backend.store)

    @cached_property
    def shared_records(self) -> SharedRecords:
        """The records of what runs share."""
        return SharedRecords(self.backend.store)

    @cached_property
    def engine(self) -> Engine:
        """The engine; loads Pulumi, and brings the engine's program at its first operation."""
        from stacks.engines import make_engine  # noqa: PLC0415 - reading does without Pulumi
        from stacks.setup import tools_folder  # noqa: PLC0415

        return make_engine(self.backend, self.kind, tools_folder(), self.progress, self.cli)

    @property
    def place_name(self) -> str:
        """A short name of where this process looks from: host, boot, pid namespace and user."""
        return hashlib.sha256(f"{here()} {os.geteuid()}".encode()).hexdigest()[:12]

    @property
    def caller(self) -> str:
        """Who asks, in words: user and host."""
        return f"{user_name()}@{os.uname().nodename}"
