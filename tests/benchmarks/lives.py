"""Launch, terminate and the whole life, every way in turn, so that what else the machine does meets all alike."""

from __future__ import annotations

from collections.abc import Collection

from .meter import Sample, measure, middle
from .place import Place
from .table import Table, milliseconds, ratio
from .ways import SHIPPED, TERRAFORM, WAYS, Way


def lives(place: Place, rounds: int, only: Collection[str]) -> Table:
    """Each way's medians and its ratios to the two references."""
    ways: list[Way] = [kind(place) for kind in WAYS if not only or kind.key in only]
    there = [way for way in ways if way.absent is None]
    launched: dict[str, list[Sample]] = {way.name: [] for way in there}
    ended: dict[str, list[Sample]] = {way.name: [] for way in there}
    for number in range(rounds + 1):  # the first round is not counted: it fills caches and makes backends
        for way in there:
            place.say(f"round {number} of {rounds}: {way.name}")
            run_id = f"{way.key}-{number}"
            first, second = measure(lambda: way.launch(run_id)), measure(lambda: way.terminate(run_id))  # noqa: B023
            if number:
                launched[way.name].append(first)
                ended[way.name].append(second)
    whole = {name: [a + b for a, b in zip(launched[name], ended[name], strict=True)] for name in launched}
    references = [middle(whole[name]) if name in whole else None for name in (SHIPPED, TERRAFORM)]
    table = Table(
        f"A life, median of {rounds} interleaved rounds; wall/CPU in ms",
        ("way", "launch", "terminate", "whole life", "life, x Automation API", "life, x terraform"),
    )
    for way in ways:
        if way.absent is not None:
            table.add(way.name, f"absent: {way.absent}", "", "", "", "")
            continue
        life = middle(whole[way.name])
        table.add(
            way.name,
            milliseconds(middle(launched[way.name])),
            milliseconds(middle(ended[way.name])),
            milliseconds(life),
            *(ratio(life, reference) for reference in references),
        )
    return table
