"""A store on another host, as its callers meet it: every failure is one clear error, told without secrets."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

from stacks.errors import BackendAccessError, BackendError, RunLauncherError, Started
from stacks.location import Location
from stacks.store import Store

T = TypeVar("T")
_SLOW: Final = 1.0  # seconds: a failure that took longer is not waited for again at once
_PAUSE: Final = 5.0  # seconds for which the backend then counts as away, so that a command ends soon
_REFUSED: Final = (
    "authentication failed",
    "credentials",
    "no password supplied",
    "permission denied",
    "pg_hba.conf",
    "role ",
)
"""Words of PostgreSQL and of the AWS SDKs for a caller that they do not let in."""


class Reached:
    """See Store. Raises BackendError, or BackendAccessError where the backend refuses the caller."""

    def __init__(self, store: Store, location: Location) -> None:
        self._store = store
        self._location = location
        self._away: tuple[float, str] = (0.0, "")

    def read(self, path: str) -> bytes | None:
        """See Store."""
        return self._told(lambda: self._store.read(path))

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        self._told(lambda: self._store.write(path, content))

    def create(self, path: str, content: bytes) -> bool:
        """See Store."""
        return self._told(lambda: self._store.create(path, content))

    def delete(self, path: str) -> None:
        """See Store."""
        self._told(lambda: self._store.delete(path))

    def clear(self, path: str) -> None:
        """See Store."""
        self._told(lambda: self._store.clear(path))

    def together(self, *calls: Callable[[], object]) -> None:
        """See Store."""
        self._store.together(*calls)

    def names(self, path: str) -> list[str]:
        """See Store."""
        return self._told(lambda: self._store.names(path))

    def age(self, path: str) -> timedelta | None:
        """See Store."""
        return self._told(lambda: self._store.age(path))

    def _told(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        until, why = self._away
        if began < until:
            raise self._error(why)
        try:
            return call()
        except RunLauncherError:
            raise
        except Exception as error:
            why = self._location.hide(_words(error))
            if time.monotonic() - began > _SLOW:
                self._away = time.monotonic() + _PAUSE, why
            raise self._error(why) from error

    def _error(self, why: str) -> BackendError:
        if any(word in why.lower() for word in _REFUSED):
            return BackendAccessError(f"the backend {self._location} lets nobody in with what is given here: {why}")
        message = f"the backend {self._location} cannot be used now: {why}"
        return BackendError(message, started=Started.UNKNOWN)


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__
