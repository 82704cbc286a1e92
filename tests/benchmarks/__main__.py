"""`python -m tests.benchmarks`: speed, side by side with the tools that run-launcher replaces.

Prints figures and fails at no figure: a shared machine's times are no promise, ratios of one run are. Everything is
made in a temporary folder and gone at the end, after Ctrl-C too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests are no package: servers.py is found by its name

from .containers import containers, docker_runs
from .figures import at_once, growth, shim_memory, start_up
from .flow import backends, first, flow
from .lives import lives
from .on_dagster import queue, runs
from .place import Place, place
from .table import Table
from .ways import WAYS

FIGURES: Final[dict[str, Callable[[Place, int], Table]]] = {
    "start": start_up,
    "shim": shim_memory,
    "once": at_once,
    "growth": growth,
    "flow": flow,
    "first": first,
    "backends": backends,
    "dagster": runs,
    "queue": queue,
    "containers": containers,
    "dagster-docker": docker_runs,
}


def main() -> int:
    """Measure what was asked for; returns the exit code."""
    keys = [way.key for way in WAYS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Speed, side by side.")
    parser.add_argument("--rounds", type=_above_zero, default=7, help="rounds that are counted (default: 7)")
    parser.add_argument("--only", nargs="+", default=[], choices=[*keys, *FIGURES], help="ways or figures")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with place(_say) as here:
            _measure(here, asked.rounds, asked.only)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    return 0


def _measure(here: Place, rounds: int, only: Collection[str]) -> None:
    ways = {way.key for way in WAYS}.intersection(only)
    if ways or not only:
        _show(lives(here, rounds, ways))
    for name, figure in FIGURES.items():
        if not only or name in only:
            _say(f"measuring: {name}")
            _show(figure(here, rounds))


def _show(table: Table) -> None:
    sys.stdout.write(f"\n{table.text()}\n")
    sys.stdout.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _above_zero(word: str) -> int:
    if (number := int(word)) < 1:
        raise ValueError(word)
    return number


if __name__ == "__main__":
    sys.exit(main())
