"""How time is taken: wall time, and CPU of this process together with every process that was waited for on its behalf.

CPU is the difference of getrusage(RUSAGE_SELF) and getrusage(RUSAGE_CHILDREN), user and system. The second counts a
process once its parent, and so on up to this one, has waited for it: all tools here do, for what they start. The warm
engine's process, which goes on, is asked by its own clock. What detaches itself on purpose, the shim of a worker (3 or
4 ms in its life), is nobody's child and is not counted.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from stacks.warm_server import ENGINES


@dataclass(frozen=True)
class Sample:
    """Seconds."""

    wall: float
    cpu: float

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.wall + other.wall, self.cpu + other.cpu)


def measure(work: Callable[[], object]) -> Sample:
    """Do something once."""
    begun, used = time.perf_counter(), _cpu()
    work()
    return Sample(time.perf_counter() - begun, _cpu() - used)


def middle(samples: Iterable[Sample]) -> Sample:
    """The median of each figure by itself."""
    kept = list(samples)
    return Sample(median(each.wall for each in kept), median(each.cpu for each in kept))


def _cpu() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in usages) + sum(_clock(pid) for pid in ENGINES.pids())


def _clock(pid: int) -> float:
    """Seconds of CPU that a live process has used (man 3 clock_getcpuclockid: how Linux numbers such clocks)."""
    return time.clock_gettime((~pid << 3) | 2)
