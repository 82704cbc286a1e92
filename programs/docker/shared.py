"""Networks and volumes that are made for runs: how, and what the daemon shows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from programs.args import LABEL_PREFIX
from programs.docker.reach import Daemon, NotFound
from programs.docker.template import Network, Volume

SHARED: Final = f"{LABEL_PREFIX}shared"
"""The label of what was made here: the name of its stack. What has it not is somebody else's, and never removed."""
Kind = Literal["network", "volume"]


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


def is_ours(there: Mapping[str, Any], stack: str) -> bool:
    """True of what was made by this stack."""
    return (there.get("Labels") or {}).get(SHARED) == stack
