"""Networks and volumes that are made for runs: how, and what the daemon shows of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from programs.args import LABEL_PREFIX
from programs.docker.reach import Daemon, NotFound
from programs.docker.template import DockerTemplate, Network, Volume

SHARED: Final = f"{LABEL_PREFIX}shared"
"""The label of what runs share: the name of its stack."""
_BACKEND: Final = f"{LABEL_PREFIX}backend"
Kind = Literal["network", "volume"]


def to_make(template: DockerTemplate, create: Literal["run", "shared"]) -> Iterator[tuple[Kind, int, Network | Volume]]:
    """The networks and volumes that a template has made for each run, or for all: kind, place in their list, wish."""
    lists: tuple[tuple[Kind, Sequence[Network | Volume]], ...] = (
        ("network", template.networks),
        ("volume", template.volumes),
    )
    for kind, wanted in lists:
        yield from ((kind, index, each) for index, each in enumerate(wanted) if each.create == create)


def shared_key(kind: Kind, index: int, wanted: Network | Volume) -> str:
    """Under what the runs of a template share it: its name, else where a volume is mounted, else its place in the list.

    Not the place of what has a name or data: a template with one more in front of it would lead to another one.
    """
    known = wanted.name or (wanted.mount if isinstance(wanted, Volume) else str(index))
    readable = re.sub(r"[^A-Za-z0-9]+", "-", known)[:16].strip("-")
    return f"{kind}-{readable}-{hashlib.sha256(known.encode()).hexdigest()[:6]}"


def made_as(wanted: Network | Volume) -> dict[str, Any]:
    """How it is made, beyond its name and labels."""
    options = "options" if isinstance(wanted, Network) else "driver_opts"
    inputs: dict[str, Any] = {"driver": wanted.driver, options: dict(wanted.options)}
    if isinstance(wanted, Network):
        inputs["internal"] = wanted.internal or None
    return {key: value for key, value in inputs.items() if value}


def inspect_made(daemon: Daemon, kind: Kind, name: str) -> dict[str, Any] | None:
    """What the daemon knows of a network or volume; None where there is none."""
    with daemon.answering():
        try:
            api = daemon.api
            found: dict[str, Any] = api.inspect_network(name) if kind == "network" else api.inspect_volume(name)
        except NotFound:
            return None
    return found


def marks(stack: str, backend: str | None) -> dict[str, str]:
    """The labels of what a stack of a backend made; what has them not is somebody else's, and never removed."""
    return {SHARED: stack, _BACKEND: backend or ""}


def made_name(stack: str, marked: Mapping[str, str]) -> str:
    """The name of what has none in its template: another backend's template of the same name shares something else."""
    return f"{stack}-{hashlib.sha256(marked[_BACKEND].encode()).hexdigest()[:6]}"


def is_ours(there: Mapping[str, Any], marked: Mapping[str, str]) -> bool:
    """True of what has these labels, whatever others it has."""
    labels = there.get("Labels") or {}
    return all(labels.get(name) == value for name, value in marked.items())
