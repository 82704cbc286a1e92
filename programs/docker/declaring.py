"""Declares networks and volumes, whoever they are for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
import pulumi_docker as docker

from programs.docker.shared import Kind


def declare(
    kind: Kind, name: str, inputs: Mapping[str, Any], options: pulumi.ResourceOptions | None = None
) -> pulumi.Resource:
    """Declare a network or volume under a name in its stack."""
    if kind == "network":
        return docker.Network(name, **inputs, opts=options)
    return docker.Volume(name, **inputs, opts=options)


def listed(labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Labels as the provider takes them."""
    return [{"label": name, "value": value} for name, value in sorted(labels.items())]
