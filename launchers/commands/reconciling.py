"""reconcile: puts right what nobody waits for any more, once or for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from launchers.commands.output import Shape, emit, table, write
from launchers.commands.selecting import duration
from launchers.commands.session import say
from launchers.reconcile import Action, Reconciler
from stacks.errors import RunLauncherError, StackLockedError, UsageError

if TYPE_CHECKING:
    from launchers.commands.session import Session

_GAP: Final = "   "
FAILED: Final = 4  # something could not be put right


class Reconciles(Protocol):
    """What works in passes, of which one process leads."""

    def lead(self, timeout: timedelta = ...) -> AbstractContextManager[None]:
        """Be the only one; raises StackLockedError that names the leader."""

    def once(self, *, dry_run: bool = False) -> Iterator[Action]:
        """Do what is due and tell it."""


def reconcile(session: Session, output: Shape, *, watch: str | None, dry_run: bool) -> int:
    """See the command."""
    pause = pause_of(watch, "--watch")
    return passes(Reconciler(session.workspace()), output, pause, dry_run=dry_run)


def pause_of(text: str | None, option: str) -> timedelta | None:
    """The pause between two passes; None where only one is asked for. Raises UsageError."""
    pause = None if text is None else duration(text, option)
    if pause is not None and pause <= timedelta(0):
        message = f"{option}: the pause is longer than 0s"
        raise UsageError(message)
    return pause


def passes(
    reconciler: Reconciles,
    output: Shape,
    pause: timedelta | None,
    *,
    dry_run: bool,
    after: Callable[[], None] = lambda: None,
) -> int:
    """One pass, or pass after pass; `after` is called when one is done. Returns the exit code."""
    if dry_run:
        return _write(list(reconciler.once(dry_run=True)), output)
    if pause is None:
        return _once(reconciler, output)
    return _for_ever(reconciler, pause, output, after)


def _once(reconciler: Reconciles, output: Shape) -> int:
    try:
        with reconciler.lead():
            return _write(list(reconciler.once()), output)
    except StackLockedError as error:
        say(f"run-launcher: another reconcile is at it: {error}")
        return _write([], output)


def _for_ever(reconciler: Reconciles, pause: timedelta, output: Shape, after: Callable[[], None]) -> int:
    """Lead until interrupted. A pass that fails, as where the backend is away, is told once and tried again."""
    with ExitStack() as leading:
        _lead(reconciler, leading, pause)
        told = ""
        while True:
            try:
                for action in reconciler.once():
                    _say_one(action, output)
                after()
                told = ""
            except (RunLauncherError, OSError) as error:
                if str(error) != told:
                    say(f"run-launcher: {error}")
                told = str(error)
            time.sleep(pause.total_seconds())


def _lead(reconciler: Reconciles, leading: ExitStack, pause: timedelta) -> None:
    """Wait until no other leads; says so once."""
    said = False
    while True:
        try:
            leading.enter_context(reconciler.lead(pause))
        except StackLockedError as error:
            if not said:
                say(f"standing by: {error}")
            said = True
        else:
            return


def _say_one(action: Action, output: Shape) -> None:
    """One action as it happens: a line of the table, a line of JSON, or an item of a list in YAML."""
    if output is Shape.JSON:
        emit(json.dumps(asdict(action)))
    else:
        write(output, [asdict(action)], lambda: [_GAP.join(_cells(action))], [action.subject])


def _write(actions: list[Action], output: Shape) -> int:
    lines = table(("SUBJECT", "WHAT", "WHY"), [_cells(each) for each in actions])
    write(output, [asdict(each) for each in actions], lambda: lines, (each.subject for each in actions))
    return FAILED if any(each.error for each in actions) else 0


def _cells(action: Action) -> tuple[str, str, str]:
    if action.error:
        return action.subject, f"not {action.what}", f"{action.why}; {action.error}"
    return action.subject, action.what if action.done else f"to be {action.what}", action.why
