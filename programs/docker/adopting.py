"""How a container that a dead launch left enters the state, so that the published provider finds nothing to change.

What a program declares stands as inputs and outputs; the provider fills in the rest when it refreshes. Four outputs of
a container that it never reads have to stand there before, or it would replace what it adopts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from programs.args import ProgramArgs
from programs.docker.program import WORKER, container_inputs, own_objects
from programs.docker.template import DockerTemplate

CONTAINER: Final = "docker:index/container:Container"
NETWORK: Final = "docker:index/network:Network"
VOLUME: Final = "docker:index/volume:Volume"
SECRET: Final = ("envs",)
"""The environment, which a refresh reads from the daemon: it is kept encrypted."""
_NEVER_READ: Final = {"attach": False, "logs": False, "wait": False, "envs": []}
_KEYED: Final = frozenset({"tmpfs", "sysctls", "logOpts", "storageOpts", "options", "driverOpts"})
"""Inputs whose keys are the user's own."""


def own_resources(args: ProgramArgs[DockerTemplate]) -> list[tuple[str, str, dict[str, Any]]]:
    """The networks and volumes of the run's own: type, name in the stack, and inputs."""
    types = {"network": NETWORK, "volume": VOLUME}
    return [(types[kind], resource, wire(inputs)) for kind, resource, inputs in own_objects(args)]


def worker_state(args: ProgramArgs[DockerTemplate]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of the container, as the state is to have them."""
    inputs = wire(container_inputs(args))
    return inputs, {**inputs, **_NEVER_READ}


def wire(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs under the names that the provider knows them by."""
    return {name: value if name in _KEYED else _nested(value) for name, value in _named(inputs)}


def _named(inputs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(re.sub(r"_([a-z])", lambda match: match[1].upper(), name), value) for name, value in inputs.items()]


def _nested(value: Any) -> Any:  # noqa: ANN401 - whatever an input is
    if isinstance(value, list):
        return [_nested(each) for each in value]
    return wire(value) if isinstance(value, dict) else value


__all__ = ["CONTAINER", "NETWORK", "SECRET", "VOLUME", "WORKER", "own_resources", "wire", "worker_state"]
