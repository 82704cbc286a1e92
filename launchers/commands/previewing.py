"""preview: what a launch would make, and from where each of its values comes, without an effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from launchers.commands.effective import CALLER, Value, effective, shown
from launchers.commands.launching import Wanted, read_launch
from launchers.commands.output import Shape, table, write
from launchers.commands.shapes import ChangeInfo, PreviewInfo, SettingInfo
from stacks.errors import LaunchConflictError, LimitReachedError, PolicyError, RunLauncherError

if TYPE_CHECKING:
    from launchers.commands.session import Session
    from launchers.launcher import RunLauncher
    from programs.args import Run
    from stacks.engine import Change

_ENGINES_OWN: Final = "pulumi:"
"""How the types of resources begin that every stack has, and that no user of `launch` need know of."""


@dataclass(frozen=True)
class Answer:
    """What a launch would answer: start a worker, start nothing, or refuse; and in the end, what it would make."""

    word: str
    message: str
    changes: tuple[Change, ...] = ()
    refusal: RunLauncherError | None = None


def preview(session: Session, wanted: Wanted, output: Shape) -> int:
    """See the command."""
    settings = session.config_with_origins(launch__timeout=wanted.timeout)
    launch = read_launch(wanted, settings.config, session.workspace(settings.config))
    answer = foresee(launch.launcher, launch.run)
    values = effective(launch, wanted, settings.settings)
    write(output, _info(launch.run, answer, values), lambda: _text(answer, values), [launch.run.id])
    return 0 if answer.refusal is None else session.report(answer.refusal)


def foresee(launcher: RunLauncher[Any], run: Run) -> Answer:
    """What a launch of this run would answer; raises what it would raise for a run that cannot be launched at all."""
    try:
        known = launcher.foresee(run)
    except (LaunchConflictError, LimitReachedError, PolicyError) as error:
        return Answer("refused", str(error), refusal=error)
    if known is not None:
        return Answer("nothing", f"run {run.id} was launched before and is {known.state}: nothing would be started")
    changes = tuple(each for each in launcher.preview(run) if not _type(each).startswith(_ENGINES_OWN))
    return Answer("start", f"run {run.id} would be launched", changes)


def _info(run: Run, answer: Answer, values: list[Value]) -> PreviewInfo:
    changes = (ChangeInfo(operation=each.operation, type=_type(each), name=_name(each)) for each in answer.changes)
    return PreviewInfo(
        run_id=run.id,
        attempt=run.attempt,
        answer=answer.word,
        message=answer.message,
        changes=tuple(changes),
        values=tuple(SettingInfo(key=each.key, value=each.value, origin=each.origin) for each in values),
    )


def _text(answer: Answer, values: list[Value]) -> list[str]:
    changes = [(each.operation, _type(each), _name(each)) for each in answer.changes]
    return [
        answer.message,
        "",
        *([*table(("OPERATION", "TYPE", "NAME"), changes), ""] if changes else []),
        *table(("KEY", "VALUE", "ORIGIN"), _rows(values)),
    ]


def _rows(values: list[Value]) -> Iterator[tuple[str, str, str]]:
    """One row per value, and one for all variables that the caller's environment gives."""
    inherited = [each for each in values if each.key.startswith("env.") and each.origin == CALLER]
    for each in values:
        if each not in inherited:
            yield each.key, shown(each), each.origin
        elif each is inherited[0]:
            yield "env", f"{len(inherited)} variables (-o json names them)", CALLER


def _type(change: Change) -> str:
    return change.urn.split("::")[2].rpartition("$")[2]


def _name(change: Change) -> str:
    return change.urn.split("::", 3)[3]
