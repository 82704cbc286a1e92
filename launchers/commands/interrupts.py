"""Signals that ask a command to leave: Ctrl-C, and what schedulers, service managers and closed terminals send.

All are one to a command, but for its exit code. The library installs no handler; only the command line calls `listen`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

_ASKING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_SOON: Final = 0.01  # seconds after which the callback is over
_GOODBYE: Final = 0.5  # seconds that an engine gets to end; what it still does then, it cancels by itself
_raised: list[Interrupted] = []
_dropped: list[Interrupted] = []


class Interrupted(BaseException):
    """A signal asked this command to leave. Raised in the main thread, wherever it is; again for each signal.

    Whoever catches it does what is left to do, and raises it again.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # as shells have it

    @property
    def repeated(self) -> bool:
        """True if it is not the first one."""
        return self is not _raised[0]


@contextmanager
def noticed() -> Iterator[None]:
    """Raise Interrupted for one that was raised inside, and did not come out as itself.

    It may hit a callback of a library that turns all errors into its own (pydantic's serializers), or drops them.
    """
    before = len(_raised)
    try:
        yield
    except Exception as error:
        if len(_raised) > before:
            raise _raised[-1] from error
        raise
    if len(_raised) > before:
        raise _raised[-1]


def listen() -> None:
    """Raise Interrupted for each signal that asks to leave; one that the caller ignores (nohup) stays ignored."""
    sys.unraisablehook = _raise_again
    for number in _ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def leave(code: int) -> NoReturn:
    """End the process at once: no thread that still waits for something keeps it, and no engine for long."""
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)
    warm = sys.modules.get("stacks.warm_server")  # there where something was launched
    if warm is not None:
        warm.ENGINES.hang_up(_GOODBYE)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _interrupt(number: int, _: FrameType | None) -> None:
    if _dropped:
        raise _dropped.pop()
    _raised.append(Interrupted(number))
    raise _raised[-1]


def _raise_again(dropped: sys.UnraisableHookArgs) -> None:
    """Raise once more what hit a callback of the interpreter's own (importlib has some), which raises to nobody."""
    if isinstance(dropped.exc_value, Interrupted):
        _dropped.append(dropped.exc_value)
        threading.Timer(_SOON, os.kill, (os.getpid(), dropped.exc_value.exit_code - 128)).start()
    else:
        sys.__unraisablehook__(dropped)
