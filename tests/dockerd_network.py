"""A slice of addresses for each dockerd of a machine, and the network devices in it."""

from __future__ import annotations

import ipaddress
import json
import random
import subprocess
from typing import Any, Final

SLICES: Final = list(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=20))
"""Of addresses that no public network has (RFC 2544): one for each daemon, whose bridge has its number for a name."""


def take() -> int:
    """The number of a slice that is nobody's: making a bridge of its name is what takes it."""
    used = [
        ipaddress.IPv4Network(f"{each['local']}/{each['prefixlen']}", strict=False)
        for link in _shown("-4", "address", "show")
        for each in link["addr_info"]
    ]
    for number in random.sample(range(len(SLICES)), len(SLICES)):
        name = bridge_of(number)
        if any(SLICES[number].overlaps(network) for network in used) or not _done("add", name, "type", "bridge"):
            continue
        _ip("address", "add", f"{SLICES[number][1]}/24", "dev", name)
        _ip("link", "set", name, "up")
        return number
    message = f"no bridge could be made, and {len(SLICES)} names were tried"
    raise OSError(message)


def bridge_of(number: int) -> str:
    """The daemon's own bridge, whose network is the first of the slice."""
    return f"rld{number}"


def pool(number: int) -> ipaddress.IPv4Network:
    """Where further networks of the daemon are: the slice's second half."""
    return list(SLICES[number].subnets())[1]


def links(number: int) -> list[str]:
    """The network devices of a slice: its bridge and those of its daemon's networks, what hangs on them first."""
    bridges = [
        link["ifname"]
        for link in _shown("-4", "address", "show", "type", "bridge")
        for each in link["addr_info"]
        if ipaddress.IPv4Address(each["local"]) in SLICES[number]
    ]
    hanging = [link["ifname"] for link in _shown("link", "show") if link.get("master") in bridges]
    return [*hanging, *sorted(bridges, key=bridge_of(number).__eq__)]


def free(number: int) -> None:
    """Remove the devices of a slice. Its own bridge is the last: in the next moment the slice may be another's."""
    own = bridge_of(number)
    while others := [name for name in links(number) if name != own]:
        for name in others:
            _done("delete", name)
    _done("delete", own)


def _shown(*words: str) -> list[dict[str, Any]]:
    """What the kernel lists; it may miss some while others change the list, and says so."""
    while True:
        told = subprocess.run(["ip", "-j", *words], check=True, capture_output=True, text=True)
        if "interrupted" not in told.stderr:
            return [each for each in json.loads(told.stdout or "[]") if each]


def _done(*words: str) -> bool:
    return subprocess.run(["ip", "link", *words], check=False, capture_output=True).returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
