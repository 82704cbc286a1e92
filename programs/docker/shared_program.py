"""Declares a network or volume that runs of a docker template share, and that outlives them."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi

from programs.docker.declaring import declare, listed
from programs.docker.reach import Daemon
from programs.docker.shared import Kind, inspect_made, is_ours, made_as
from programs.docker.template import Network, Volume


def program(daemon: Daemon, kind: Kind, wanted: Network | Volume, name: str, labels: Mapping[str, str]) -> None:
    """Declare it under its name and export that; one that somebody else made is used as it is.

    One that is there is never replaced, since runs use it and a volume holds their data: other options hold for what is
    made once it was retired.
    """
    there = inspect_made(daemon, kind, name)
    if there is None or is_ours(there, labels):
        keep = pulumi.ResourceOptions(ignore_changes=["*"])
        declare(kind, kind, {"name": name, "labels": listed(labels), **made_as(wanted)}, keep)
    pulumi.export("name", name)
