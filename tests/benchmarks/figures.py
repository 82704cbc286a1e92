"""The other figures: start-up, the shim's memory, many launches at once, and growth with the number of runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from launchers import Run
from programs.provider.worker import SHIM
from stacks.engine import shard

from .meter import Sample, measure, middle
from .place import BIN, WORKER, Place
from .table import Table, milliseconds, ratio
from .ways import launcher

STARTS: Final = 20
AT_ONCE: Final = 50
FEW: Final = 10
MANY: Final = 5000
LISTED: Final = 1000


def start_up(place: Place, rounds: int) -> Table:  # noqa: ARG001 - as many as the promise needs
    """What a user waits for before anything happens, with the bytecode cached."""
    home = place.home("start")
    ours = launcher(home)
    ours.launch(Run(id="here", command=WORKER))
    commands = (("--version",), ("--help",), ("status", "here"))
    samples: dict[tuple[str, ...], list[Sample]] = {words: [] for words in commands}
    for number in range(STARTS + 1):
        for words in commands:
            sample = measure(lambda: _ours(place, home, *words))  # noqa: B023
            if number:
                samples[words].append(sample)
    ours.terminate("here")
    table = Table(f"Start-up, median of {STARTS}; in ms", ("command", "wall / CPU"))
    for words in commands:
        table.add(" ".join(("run-launcher", *words)), milliseconds(middle(samples[words])))
    return table


def shim_memory(place: Place, rounds: int) -> Table:
    """What stays resident beside each worker, the largest of a few."""
    home = place.home("shim")
    ours = launcher(home)
    run_ids = [f"shim-{number}" for number in range(rounds)]
    for run_id in run_ids:
        ours.launch(Run(id=run_id, command=WORKER))
    shims = [process for process in psutil.process_iter() if _is_shim(process, home)]
    resident = max(process.memory_info().rss for process in shims)
    shares = [share for share in (_proportional(process.pid) for process in shims) if share is not None]
    for run_id in run_ids:
        ours.terminate(run_id)
    table = Table(f"The shim's memory, the largest of {len(shims)}; in KiB", ("figure", "KiB"))
    table.add("resident set", f"{resident / 1024:.0f}")
    table.add("proportional set", f"{max(shares)}" if shares else "not told by this platform")
    return table


def at_once(place: Place, rounds: int) -> Table:
    """Many launches at once in one process, then as many terminations; a single one beside them."""
    ours = launcher(place.home("once"))
    run_ids = [f"once-{number}" for number in range(AT_ONCE)]
    _life(ours, "warm")
    alone = [middle(part) for part in zip(*(_life(ours, f"alone-{number}") for number in range(rounds)), strict=True)]

    def launch(run_id: str) -> None:
        ours.launch(Run(id=run_id, command=WORKER))

    samples = [measure(lambda: _together(work, run_ids)) for work in (launch, ours.terminate)]  # noqa: B023
    table = Table(
        f"{AT_ONCE} at once in one process; wall/CPU in ms",
        ("what", "together", "each", "x one alone"),
    )
    for name, sample, single in zip(("launch", "terminate"), samples, alone, strict=True):
        each = Sample(sample.wall / AT_ONCE, sample.cpu / AT_ONCE)
        table.add(name, milliseconds(sample), milliseconds(each), ratio(each, single))
    return table


def growth(place: Place, rounds: int) -> Table:
    """A launch and a termination beside few and beside many runs, and `ps` of many."""
    homes = {count: _filled(place, count) for count in (FEW, MANY, LISTED)}
    launched: dict[int, list[Sample]] = {FEW: [], MANY: []}
    ended: dict[int, list[Sample]] = {FEW: [], MANY: []}
    for number in range(rounds):
        for count in (FEW, MANY):
            place.say(f"round {number + 1} of {rounds}: beside {count} runs")
            first, second = _life(launcher(homes[count]), f"new-{number}")
            launched[count].append(first)
            ended[count].append(second)
    listed = [measure(lambda: _ours(place, homes[LISTED], "ps")) for _ in range(rounds)]
    table = Table(f"Growth, median of {rounds}; wall/CPU in ms", ("what", f"beside {FEW}", f"beside {MANY}", "ratio"))
    for name, samples in (("launch", launched), ("terminate", ended)):
        few, many = middle(samples[FEW]), middle(samples[MANY])
        table.add(name, milliseconds(few), milliseconds(many), ratio(many, few))
    table.add(f"ps of {LISTED} runs", "", milliseconds(middle(listed)), "")
    return table


def _ours(place: Place, home: Path, *words: str) -> None:
    place.run([str(BIN / "run-launcher"), *words], home, RUN_LAUNCHER_HOME=str(home))


def _life(ours: Any, run_id: str) -> tuple[Sample, Sample]:  # noqa: ANN401 - a launcher
    launched = measure(lambda: ours.launch(Run(id=run_id, command=WORKER)))
    return launched, measure(lambda: ours.terminate(run_id))


def _together(work: Callable[[str], object], run_ids: list[str]) -> None:
    with ThreadPoolExecutor(len(run_ids)) as threads:
        list(threads.map(work, run_ids))


def _filled(place: Place, count: int) -> Path:
    """A home with the traces of so many runs that have ended: those of a real one, copied under other ids."""
    home = place.home(f"beside-{count}")
    ours, origin = launcher(home), "origin"
    ours.launch(Run(id=origin, command=("true",)))
    ours.wait(origin)
    kept = [path for path in home.rglob("*") if path.is_file() and re.search(rf"/{origin}\b", str(path))]
    texts = {path.relative_to(home): path.read_text(encoding="utf-8") for path in kept}
    for number in range(count - 1):
        run_id = f"origi-{number:05}"
        for path, text in texts.items():
            copy = home / _renamed(str(path), origin, run_id)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(_renamed(text, origin, run_id), encoding="utf-8")
    return home


def _renamed(text: str, origin: str, run_id: str) -> str:
    """The text with another run in it, in the folders of that run's shard."""
    old, new = shard(origin), shard(run_id)
    return text.replace(f"/{old}/", f"/{new}/").replace(f"runs-{old}", f"runs-{new}").replace(origin, run_id)


def _is_shim(process: psutil.Process, home: Path) -> bool:
    """A shim that stays, not the copy of it that becomes the command."""
    with suppress(psutil.Error):
        return process.cmdline()[:1] == [str(SHIM)] and process.cmdline()[1].startswith(str(home))
    return False


def _proportional(pid: int) -> int | None:
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        return int(rollup.partition("\nPss:")[2].split()[0])
    return None
