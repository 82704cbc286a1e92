"""Whether a launch has room within the limits of its template and its owner: the runs that are there are asked.

What counts is a listing, never a counter: the runs whose worker is STARTING, RUNNING or UNKNOWN, each asked of its own
target, and the launches in flight. So nothing has to be given back, and a crash of anybody leaves no count behind.

Races, listed once:
- two launches of one limit: count and record are made under a claim of the limit; the second counts the first's record.
- a launch that ends while it is counted: its record says `wanted`, and no one works on it any more: it is read again.
- a launch that died: nobody holds its claim, so its record counts only if its worker is found, or cannot be asked for.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar

from launchers.ages import age
from programs.args import Resources
from stacks.engine import StackName
from stacks.errors import (
    BackendError,
    ConfigurationError,
    LimitReachedError,
    PolicyError,
    RunLauncherError,
    StackLockedError,
    Started,
)
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Phase, Record

if TYPE_CHECKING:
    from launchers.caps import Cap
    from launchers.launcher import RunLauncher

T = TypeVar("T")
PROJECT: Final = "limits"
"""Stands where run stacks have their project: the claims of limits are beside theirs, and mixed up with none."""
_COUNTED: Final = {WorkerState.STARTING, WorkerState.RUNNING, WorkerState.UNKNOWN}
_PAUSE: Final = (0.2, 3.0)  # seconds between two looks for room: first, last
_SAMPLES: Final = {"cpu": "500m", "memory": "1Gi", "gpu": "0"}
_NAMED: Final = 10  # runs that a message names


@dataclass(frozen=True)
class Counted:
    """A run that takes room, and how much; how its worker is, as its target tells it."""

    record: Record
    status: WorkerStatus
    takes: Resources

    def told(self, cap: Cap) -> str:
        """The run in words: id, share and age, and what makes its share uncertain."""
        share = cap.share(self.takes)
        words = [] if share == 1 and cap.unit == "runs" else ["unknown" if share is None else cap.amount(share)]
        words.append(age(self.record.launched_at or self.record.wanted_at))
        if self.status.state is WorkerState.UNKNOWN:
            words.append(f"cannot be asked: {self.status.message}" if self.status.message else "cannot be asked")
        return f"run {self.record.run_id} ({', '.join(words)})"


class Room:
    """The limits that hold for one launch. Where there is none, nothing here lists, asks or claims anything."""

    def __init__(self, launcher: RunLauncher[Any], run_id: str) -> None:
        self._launcher = launcher
        self._workspace = launcher.workspace
        self._run_id = run_id
        self._takes = launcher.template.counts()
        self._caps = launcher.workspace.limits.of(launcher.name, launcher.template.owner)
        self._owners: dict[str, str | None] = {}

    def check(self) -> None:
        """Refuse what no waiting helps: ConfigurationError for a share that nobody knows, PolicyError for one above."""
        for cap in self._caps:
            share = cap.share(self._takes)
            if share is None:
                message = (
                    f"{cap.whose} is limited in {cap.unit} ({cap.where}), and the template "
                    f"{self._launcher.name} does not say how much of it a worker takes: add it to the template, like "
                    f"`resources: {{{cap.unit}: {_SAMPLES[cap.unit]}}}`, or take the limit out"
                )
                raise ConfigurationError(message)
            if share > cap.most:
                message = (
                    f"this run takes {cap.amount(share)} {cap.unit}, and {cap.whose} may never have more than "
                    f"{cap.amount(cap.most)} ({cap.where})"
                )
                raise PolicyError(message)

    def look(self) -> None:
        """Raise LimitReachedError where there is no room now; changes nothing."""
        if not self._caps:
            return
        counted = list(self._counted())
        for cap in self._caps:
            share = cap.share(self._takes) or Decimal(0)
            mine = [each for each in counted if self._holds(cap, each.record)]
            used = sum((cap.share(each.takes) or Decimal(0) for each in mine), Decimal(0))
            if used + share > cap.most:
                raise LimitReachedError(_full(cap, used, share, mine))

    @contextmanager
    def taken(self, left: Callable[[], timedelta]) -> Iterator[None]:
        """Keep the room for whoever writes here that the run is wanted; raises LimitReachedError where there is none.

        Nobody else counts meanwhile. Claims are taken in one order, so that two launches never wait for each other.
        """
        with ExitStack() as held:
            claims = [held.enter_context(self._hold(stack, left())) for stack in sorted({*map(_claim, self._caps)})]
            self.look()
            for claim in claims:
                claim.assure()
            yield

    def patiently(
        self, perform: Callable[[], T], left: Callable[[], timedelta], *, waits: bool, looks_first: bool
    ) -> T:
        """Perform what takes room; where there is none and it `waits`, look again until there is or the time is over.

        No claim is held between two looks. With `looks_first` nothing is begun where there is no room.
        """
        pause = _PAUSE[0]
        while True:
            try:
                if looks_first:
                    self.look()
                return perform()
            except LimitReachedError:
                if not waits or not left():
                    raise
            looks_first = True
            time.sleep(min(random.uniform(0.5, 1.0) * pause, left().total_seconds()))  # noqa: S311 - never in step
            pause = min(pause * 1.5, _PAUSE[1])

    @contextmanager
    def _hold(self, stack: StackName, timeout: timedelta) -> Iterator[Any]:
        with ExitStack() as held:
            try:
                claim = held.enter_context(self._workspace.backend.claims.hold(stack, "count of a limit", timeout))
            except StackLockedError as error:
                message = f"other launches of the same limit were counted all the time; launch it again ({error})"
                raise StackLockedError(message, started=Started.NO) from error
            yield claim

    def _counted(self) -> Iterator[Counted]:
        """The other runs of these limits that take room; records that cannot be read are left out."""
        groups: dict[tuple[str, str], list[Record]] = {}
        for record in self._workspace.records.all(lambda _: None):
            if (
                record.is_live
                and record.run_id != self._run_id
                and any(self._holds(each, record) for each in self._caps)
            ):
                groups.setdefault((record.target, record.digest), []).append(record)
        for group in groups.values():
            for each in self._asked(group):
                if each.status.state in _COUNTED:
                    yield each

    def _asked(self, group: list[Record]) -> list[Counted]:
        """How the workers of one template's runs are; all are UNKNOWN where its target cannot be asked."""
        from launchers.looking import look  # noqa: PLC0415 - it builds on the procedures that launch by this

        takes = Resources()
        try:
            launcher = self._launcher_of(group[0])
            takes = launcher.template.counts()
            statuses = [_seen_again(launcher, *each) for each in zip(group, look(launcher, group), strict=True)]
        except BackendError:
            raise
        except RunLauncherError as error:
            statuses = [WorkerStatus(state=WorkerState.UNKNOWN, message=str(error))] * len(group)
        return [Counted(record, status, takes) for record, status in zip(group, statuses, strict=True)]

    def _launcher_of(self, record: Record) -> RunLauncher[Any]:
        from launchers.factory import launcher_for  # noqa: PLC0415 - what it makes launches by this

        if (record.target, record.digest) == (self._launcher.target, self._launcher.template.digest()):
            return self._launcher
        return launcher_for(record, workspace=self._workspace)

    def _holds(self, cap: Cap, record: Record) -> bool:
        """True if a run is one of those that a limit is of; its owner is that of the template it was launched with."""
        if cap.kind == "template":
            return record.template == cap.name
        return self._owner(record.digest) == cap.name

    def _owner(self, digest: str) -> str | None:
        if digest not in self._owners:
            kept = self._workspace.records.template(digest)
            self._owners[digest] = None if kept is None else str(kept.get("owner", ""))
        return self._owners[digest]


def _seen_again(launcher: RunLauncher[Any], record: Record, status: WorkerStatus) -> WorkerStatus:
    """How the worker of a launch is that was in flight when its record was read, and over when its claim was."""
    if record.phase is not Phase.WANTED or status.state is not WorkerState.NOT_FOUND:
        return status
    again = launcher.workspace.records.read(record.run_id)
    return status if again is None or again.stack != record.stack else launcher.status_of(again)


def _claim(cap: Cap) -> StackName:
    """The claim of a limit's runs; their name may be any text."""
    return StackName(PROJECT, f"{cap.kind}-{hashlib.sha256(cap.name.encode()).hexdigest()[:16]}")


def _full(cap: Cap, used: Decimal, share: Decimal, counted: list[Counted]) -> str:
    ordered = sorted(counted, key=lambda each: (each.record.wanted_at, each.record.run_id))
    runs = [each.told(cap) for each in ordered[:_NAMED]]
    runs += [f"and {len(ordered) - _NAMED} more"] if len(ordered) > _NAMED else []
    takes = f"; this run takes {cap.amount(share)}" if cap.unit != "runs" else ""
    in_use = f"{cap.whose} has {cap.amount(used)} of {cap.amount(cap.most)} {cap.unit} in use"
    return f"{in_use} ({cap.where}): {', '.join(runs)}{takes}"
