"""Lets a first few pass at once, and then so many a second: for calls whose rate a target limits."""

from __future__ import annotations

import threading
import time


class TokenBucket:
    """Safe from many threads; holds for one process. Who is late is served in the order of asking."""

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._guard = threading.Lock()
        self._free_at = 0.0

    def wait(self, limit: float) -> bool:
        """Wait for a turn; False, at once and without having taken one, if it comes after so many seconds."""
        with self._guard:
            now = time.monotonic()
            earliest = max(self._free_at, now - self._burst / self._rate) + 1 / self._rate
            if earliest - now > limit:
                return False
            self._free_at = earliest
        time.sleep(max(0.0, earliest - now))
        return True
