"""What the settings of DockerRunLauncher are in a template of the target `docker`: for events, `check`, and the README.

Keys of its config: https://docs.dagster.io/api/libraries/dagster-docker. `container_kwargs` are the arguments of
docker-py's `containers.create`: https://docker-py.readthedocs.io/en/stable/containers.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

SETTINGS: Final[Mapping[str, str]] = {
    "image": "image",
    "registry": "registry",
    "env_vars": "env, secrets, env_files",
    "network": "networks",
    "networks": "networks",
}
"""Keys beside `container_kwargs`, and the template's fields for them."""
FIELDS: Final[Mapping[str, str]] = {
    "cap_add": "cap_add",
    "cap_drop": "cap_drop",
    "cgroup_parent": "cgroup_parent",
    "cgroupns": "cgroup",
    "cpu_period": "resources.cpu",
    "cpu_quota": "resources.cpu",
    "cpu_shares": "cpu_shares",
    "cpuset_cpus": "cpuset",
    "device_cgroup_rules": "device_cgroup_rules",
    "device_read_bps": "device_rates.read_bps",
    "device_read_iops": "device_rates.read_iops",
    "device_requests": "resources.gpu, gpus",
    "device_write_bps": "device_rates.write_bps",
    "device_write_iops": "device_rates.write_iops",
    "devices": "devices",
    "dns": "dns",
    "dns_opt": "dns_opt",
    "dns_search": "dns_search",
    "domainname": "domainname",
    "entrypoint": "entrypoint",
    "extra_hosts": "extra_hosts",
    "group_add": "group_add",
    "healthcheck": "healthcheck",
    "hostname": "hostname",
    "init": "init",
    "ipc_mode": "ipc",
    "labels": "labels",
    "links": "networks with aliases",
    "log_config": "log",
    "mem_limit": "resources.memory",
    "mem_reservation": "memory_reservation",
    "memswap_limit": "memory_swap",
    "mounts": "volumes, tmpfs",
    "nano_cpus": "resources.cpu",
    "network_disabled": "network_mode: none",
    "network_mode": "network_mode",
    "networking_config": "networks with aliases",
    "pid_mode": "pid",
    "platform": "platform",
    "ports": "ports",
    "privileged": "privileged",
    "publish_all_ports": "ports",
    "read_only": "read_only",
    "runtime": "runtime",
    "security_opt": "security_opt",
    "shm_size": "shm_size",
    "stop_signal": "stop_signal",
    "stop_timeout": "grace",
    "storage_opt": "storage_opt",
    "sysctls": "sysctls",
    "tmpfs": "tmpfs",
    "tty": "tty",
    "ulimits": "ulimits",
    "use_config_proxy": "env",
    "user": "user",
    "userns_mode": "userns_mode",
    "volume_driver": "volumes with a driver",
    "volumes": "volumes",
    "volumes_from": "volumes",
    "working_dir": "working_dir",
}
"""Arguments of `containers.create`, and the template's fields for them."""
_LEAVES_OUT: Final = "pulumi-docker has no input for it"
_WINDOWS: Final = "for Windows only"
_LAUNCHER: Final = "the launcher says it"
WITHOUT: Final[Mapping[str, str]] = {
    "auto_remove": "`keep` says how long a finished container stays, and its logs with it",
    "blkio_weight": _LEAVES_OUT,
    "blkio_weight_device": _LEAVES_OUT,
    "command": _LAUNCHER,
    "cpu_count": _WINDOWS,
    "cpu_percent": _WINDOWS,
    "cpu_rt_period": _LEAVES_OUT,
    "cpu_rt_runtime": _LEAVES_OUT,
    "cpuset_mems": _LEAVES_OUT,
    "detach": _LAUNCHER,
    "init_path": "Docker takes it no more",
    "isolation": _WINDOWS,
    "kernel_memory": "Docker takes it no more",
    "lxc_conf": "Docker takes it no more",
    "mac_address": _LEAVES_OUT,
    "mem_swappiness": _LEAVES_OUT,
    "name": "it comes from the run's id",
    "oom_kill_disable": _LEAVES_OUT,
    "oom_score_adj": _LEAVES_OUT,
    "pids_limit": _LEAVES_OUT,
    "restart_policy": "a run is executed once",
    "stdin_open": "nobody could write to it",
    "uts_mode": _LEAVES_OUT,
    "version": "of the client alone",
}
"""Arguments that no field stands for, and why."""


def in_template(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each setting by its name, and the field of a template that stands for it, or why there is none."""
    for name, value in settings.items():
        if name == "container_kwargs" and isinstance(value, Mapping):
            for kwarg in value:
                instead = FIELDS.get(kwarg) or f"no field: {WITHOUT.get(kwarg, 'it is not known')}"
                yield f"container_kwargs.{kwarg}", instead
        else:
            yield name, SETTINGS.get(name, "no field: it is not known")
