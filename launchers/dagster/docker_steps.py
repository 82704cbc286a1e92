"""The launcher that `docker_executor` sees in a worker on the target `docker`: its steps get what the worker has.

The executor takes image, networks, variables and mounts from its instance's DockerRunLauncher, below what its own
configuration says (dagster_docker/docker_executor.py). Values of variables are left to the worker's own environment.
"""

from __future__ import annotations

import os
from typing import Any, Final

import yaml
from dagster._serdes import ConfigurableClassData

from programs.docker.environment import read_env_file
from programs.docker.template import DockerTemplate

CLASS: Final = "DockerRunLauncher"


def docker_step_launcher(template: DockerTemplate) -> ConfigurableClassData:
    """DockerRunLauncher, as it would launch this template's containers; what is made for one run is not the steps'."""
    names = {name for path in template.env_files for name in read_env_file(path, os.environ)}
    kwargs: dict[str, Any] = {
        "network_mode": template.network_mode,
        "volumes": [
            f"{each.host or each.name}:{each.mount}{':ro' if each.read_only else ''}"
            for each in template.volumes
            if not each.create
        ],
    }
    config = {
        "image": template.image,
        "networks": [each.name for each in template.networks if not each.create],
        "env_vars": sorted(names | set(template.env) | set(template.secrets)),
        "container_kwargs": {name: value for name, value in kwargs.items() if value},
    }
    return ConfigurableClassData("dagster_docker", CLASS, yaml.safe_dump(config))
