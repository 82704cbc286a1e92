"""What programs are told: the shapes of every result, as declared models. Their keys are never taken away.

A result about one run is an object where the call names one run; a call that names several, or selects, gives a list.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, JsonValue

from stacks.errors import Repair, RunLauncherError, Started
from stacks.handle import WorkerHandle, WorkerState, WorkerStatus

if TYPE_CHECKING:
    from launchers.values import Explanation, Terminated
    from stacks.records import Record


class Told(BaseModel, frozen=True, extra="forbid"):
    """A result, or a part of one."""


class AttemptInfo(Told, frozen=True):
    """A run's attempt and how its worker is."""

    run_id: str
    attempt: int
    state: WorkerState
    message: str
    exit_code: int | None
    reason: str | None
    started_at: datetime | None
    ended_at: datetime | None


class RunInfo(AttemptInfo, frozen=True):
    """A run: ps, status, wait, terminate --dry-run."""

    target: str
    template: str
    digest: str
    command: tuple[str, ...]
    tags: dict[str, str]
    cwd: str
    wanted_at: datetime
    launched_at: datetime | None
    handle: WorkerHandle | None
    removed: bool


class LaunchedInfo(RunInfo, frozen=True):
    """launch; `created` is False where the run had been launched before."""

    created: bool


class ExplainedInfo(RunInfo, frozen=True):
    """why."""

    facts: dict[str, str]
    last_lines: tuple[str, ...]


class EndedInfo(AttemptInfo, frozen=True):
    """terminate; `done` is False where the end was only begun."""

    objects: int
    left: int
    done: bool


class LogLine(Told, frozen=True):
    """logs: one line of output, with U+FFFD for bytes that are no UTF-8."""

    run_id: str
    attempt: int
    line: str


class FindingInfo(Told, frozen=True):
    """One line of doctor's report; a note is worth knowing, but in nobody's way."""

    name: str
    value: str
    level: Literal["ok", "note", "broken"]


class Examination(Told, frozen=True):
    """doctor."""

    ok: bool
    findings: tuple[FindingInfo, ...]


class EngineInfo(Told, frozen=True):
    """setup; `folders` come first on PATH for a `pulumi` run by hand, `kind` and `why` tell the engine of launches.

    `warm` is the warm engine's program, empty where it could not be had.
    """

    path: str
    version: str
    origin: str
    tools: str
    language_host: bool
    folders: tuple[str, ...]
    kind: Literal["warm", "cli"]
    why: str
    warm: str


class SettingInfo(Told, frozen=True):
    """config --show-origin, and in preview; config without it is an object of keys and values."""

    key: str
    value: JsonValue
    origin: str


class ChangeInfo(Told, frozen=True):
    """What an engine would do to one object."""

    operation: str
    type: str
    name: str


class PreviewInfo(Told, frozen=True):
    """preview; `answer` is start, nothing or refused."""

    run_id: str
    attempt: int
    answer: str
    message: str
    changes: tuple[ChangeInfo, ...]
    values: tuple[SettingInfo, ...]


class TemplateLine(Told, frozen=True):
    """template list; `problem` is the first thing that is wrong, and then only name and origin are told."""

    name: str
    origin: str
    target: str
    owner: str
    description: str
    digest: str
    problem: str


class TemplateInfo(Told, frozen=True):
    """template show; `bases` are the files that it extends, the nearest first."""

    name: str
    origin: str
    bases: tuple[str, ...]
    digest: str
    target: str
    owner: str
    values: tuple[SettingInfo, ...]


class SharedInfo(Told, frozen=True):
    """template retire: an object that all runs of a template share, who uses it, and how much it holds.

    `removed` is False where it was only looked at; files and bytes are null where the target cannot tell.
    """

    stack: str
    name: str
    users: tuple[str, ...]
    files: int | None
    bytes: int | None
    removed: bool


class FlawInfo(Told, frozen=True):
    """template lint; `line` is 0 for a file as a whole, `error` False for a note."""

    origin: str
    line: int
    text: str
    error: bool


class EjectedInfo(Told, frozen=True):
    """eject."""

    run_id: str
    attempt: int
    folder: str
    stack: str
    files: tuple[str, ...]
    backend_named: bool


class Problem(Told, frozen=True):
    """What went wrong: with `-o json` and `-o yaml`, one line of JSON on stderr.

    `repair` and `started` answer who can repair it, and whether a worker of the run has started; `run_id` is told where
    a command works on several runs.
    """

    error: str
    message: str
    exit_code: int
    retryable: bool
    repair: Repair
    started: Started
    details: str
    run_id: str | None

    @classmethod
    def of(cls, error: Exception, message: str, exit_code: int, run_id: str | None) -> Problem:
        """The account of an error; nobody knows much of one that was not foreseen."""
        ours = error if isinstance(error, RunLauncherError) else None
        return cls(
            error=type(error).__name__,
            message=_text(message),
            exit_code=exit_code,
            retryable=ours is not None and ours.retryable,
            repair=ours.repair if ours else Repair.OPERATOR,
            started=ours.started if ours else Started.UNKNOWN,
            details=_text(ours.details) if ours else "",
            run_id=run_id,
        )


def run_info(record: Record, status: WorkerStatus) -> RunInfo:
    """A run, for programs."""
    return RunInfo(**_run(record, status))


def launched_info(record: Record, status: WorkerStatus, *, created: bool) -> LaunchedInfo:
    """A launch, for programs."""
    return LaunchedInfo(**_run(record, status), created=created)


def explained_info(record: Record, told: Explanation) -> ExplainedInfo:
    """An explanation, for programs."""
    return ExplainedInfo(**_run(record, told.status), facts=dict(told.facts), last_lines=told.last_lines)


def ended_info(ended: Terminated) -> EndedInfo:
    """A termination, for programs."""
    attempt = {"run_id": ended.run_id, "attempt": ended.attempt, **_of(ended.status, EndedInfo)}
    return EndedInfo(**attempt, objects=ended.objects, left=ended.left, done=ended.done)


def _run(record: Record, status: WorkerStatus) -> dict[str, Any]:
    return {**_of(record, RunInfo), **_of(status, RunInfo), "removed": record.removed is not None}


def _of(value: BaseModel, shape: type[Told]) -> dict[str, Any]:
    """The fields of a value that a shape has too."""
    return {name: getattr(value, name) for name in shape.model_fields if name in type(value).model_fields}


def _text(words: str) -> str:
    """The words as Unicode: a name from the command line may hold bytes that are none."""
    return words.encode("utf-8", "backslashreplace").decode()
