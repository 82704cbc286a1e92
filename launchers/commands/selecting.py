"""Which runs a choice means: its selectors read, and held against the records; states are asked only if one needs them.

Without names, selectors choose among what `ps` lists: the runs of which more is left than a record, with `--all` every
run of this backend. With names, they choose among the runs named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from launchers.commands.runs import find_record
from launchers.commands.session import say
from launchers.factory import launcher_for
from launchers.near_miss import near_miss
from programs.args import parse_duration
from stacks.errors import DamagedFileError, RunLauncherError, RunNotFoundError, UsageError
from stacks.handle import WorkerState, WorkerStatus
from stacks.records import Record

if TYPE_CHECKING:
    from launchers.commands.choice import Choice
    from launchers.launcher import RunLauncher
    from launchers.workspace import Workspace

_DIGEST: Final = re.compile(r"[0-9a-f]{1,64}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Selector:
    """What all runs that are meant have in common; by default nothing."""

    states: frozenset[WorkerState] = frozenset()
    template: str | None = None
    digest: str = ""
    tags: tuple[tuple[str, str | None], ...] = ()
    before: datetime | None = None
    since: datetime | None = None

    @classmethod
    def read(cls, choice: Choice) -> Selector:
        """The selectors of a call; raises UsageError with the words that are valid."""
        now = datetime.now(UTC)
        template, digest = (None, "") if choice.template is None else _template(choice.template)
        return cls(
            states=frozenset(_state(word) for word in choice.states),
            template=template,
            digest=digest,
            tags=tuple(_tag(word) for word in choice.tags),
            before=None if choice.older is None else _ago(now, choice.older, "--older"),
            since=None if choice.newer is None else _ago(now, choice.newer, "--newer"),
        )

    def admits(self, record: Record) -> bool:
        """True of a run that has all that can be told without asking its target."""
        return (
            self.template in {None, record.template}
            and record.digest.startswith(self.digest)
            and all(name in record.tags and value in {None, record.tags[name]} for name, value in self.tags)
            and (self.before is None or record.wanted_at <= self.before)
            and (self.since is None or record.wanted_at >= self.since)
        )


class Asking:
    """Asks how runs are: each target once for each place, and never those that nobody wants to know of."""

    def __init__(self, workspace: Workspace, records: Iterable[Record]) -> None:
        self._groups: dict[tuple[str, str], list[str]] = {}
        self._launchers: dict[tuple[str, str], RunLauncher[Any]] = {}
        self._workspace = workspace
        for record in records:
            self._groups.setdefault((record.target, record.place), []).append(record.run_id)

    def statuses(self, among: Collection[str] | None = None) -> dict[str, WorkerStatus]:
        """The states by run id, of all runs or of some. One that cannot be asked is UNKNOWN."""
        states: dict[str, WorkerStatus] = {}
        for group, all_ids in self._groups.items():
            ids = [run_id for run_id in all_ids if among is None or run_id in among]
            if ids:
                states.update(zip(ids, self._ask(group, ids), strict=True))
        return states

    def _ask(self, group: tuple[str, str], ids: list[str]) -> list[WorkerStatus]:
        try:
            if group not in self._launchers:
                self._launchers[group] = launcher_for(ids[0], workspace=self._workspace)
            return self._launchers[group].statuses(ids)
        except RunLauncherError as error:
            return [WorkerStatus(state=WorkerState.UNKNOWN, message=str(error))] * len(ids)


def choose(workspace: Workspace, choice: Choice, *, or_all: bool = False) -> dict[str, Record]:
    """The records of the runs that are meant, by id: as they were named, else the newest first.

    Empty if there is none. Raises RunNotFoundError for a name that no run has, and UsageError where nothing was said at
    all, unless that means all.
    """
    selector = Selector.read(choice)
    if not (choice.names or choice.selects or or_all):
        message = "name a run, or select runs with --state, --template, --tag, --older or --newer"
        raise UsageError(message)
    if choice.names:
        records = [find_record(workspace.records, name) for name in choice.names]
    else:
        records = [each for each in workspace.records.all(say_damage) if choice.gone or each.is_live]
        records.sort(key=lambda record: (record.wanted_at, record.run_id), reverse=True)
    admitted = {record.run_id: record for record in records if selector.admits(record)}
    if not selector.states:
        return admitted
    states = Asking(workspace, admitted.values()).statuses()
    return {run_id: record for run_id, record in admitted.items() if states[run_id].state in selector.states}


def chosen(workspace: Workspace, choice: Choice) -> dict[str, Record]:
    """The runs that are meant, at least one; raises RunNotFoundError where there is none."""
    records = choose(workspace, choice)
    if not records:
        raise RunNotFoundError(nothing(choice))
    return records


def nothing(choice: Choice) -> str:
    """What a command says whose selectors match no run."""
    among = "none of these runs matches" if choice.names else "no run here matches"
    return f"{among} {choice}" if choice.names or choice.gone else f"{among} {choice} (--all: also those removed)"


def shaped(choice: Choice, results: list[_T]) -> _T | list[_T]:
    """One result for a call that names one run, else the list: a program knows from its own call which it gets."""
    return results[0] if choice.one and results else results


def say_damage(error: DamagedFileError) -> None:
    """Tell of a record that cannot be read; it hinders no other run."""
    say(f"run-launcher: {error}")


def duration(text: str, flag: str) -> timedelta:
    """The duration that a flag holds; raises UsageError."""
    try:
        value: timedelta = parse_duration(text)  # type: ignore[assignment] # of text it makes nothing else
    except ValueError as error:
        message = f"{flag}: {error}"
        raise UsageError(message) from error
    return value


def _state(word: str) -> WorkerState:
    try:
        return WorkerState(word.upper())
    except ValueError as error:
        near = near_miss(word, list(WorkerState))
        meant = f"; did you mean {near}?" if near else ""
        message = f"--state {word}: the states are {', '.join(WorkerState)}{meant}"
        raise UsageError(message) from error


def _template(word: str) -> tuple[str, str]:
    name, at, digest = word.partition("@")
    if not name or (at and not _DIGEST.fullmatch(digest)):
        message = f"--template {word}: write NAME, or NAME@ and the first hex digits of its digest"
        raise UsageError(message)
    return name, digest


def _tag(word: str) -> tuple[str, str | None]:
    name, given, value = word.partition("=")
    if not name:
        message = f"--tag {word}: write NAME=VALUE, or NAME for any value"
        raise UsageError(message)
    return name, value if given else None


def _ago(now: datetime, text: str, flag: str) -> datetime:
    try:
        return now - duration(text, flag)
    except OverflowError:  # longer ago than there are dates
        return datetime.min.replace(tzinfo=UTC)
