"""Declares the worker of a run as a container, with the networks and volumes of the run's own."""

from __future__ import annotations

import math
import os
from typing import Any, Final

import pulumi
import pulumi_docker as docker

from programs.args import ProgramArgs, export_handle, read_config
from programs.docker.declaring import declare, listed
from programs.docker.environment import build_environment
from programs.docker.names import PLACE, container_name, own_name
from programs.docker.reach import daemon_at
from programs.docker.shared import Kind, made_as, shared_key, to_make
from programs.docker.template import DockerTemplate, Network, Volume
from programs.launched import read_launched

WORKER: Final = "worker"
_MEBI: Final = 2**20
_ONCE: Final = "this run was launched before, and a run is executed once: launch its next attempt"


def program(args: ProgramArgs[DockerTemplate] | None = None) -> None:
    """Declare the container and export the handle; without arguments they are read from the stack's configuration."""
    args = args or read_config(DockerTemplate, PLACE + daemon_at(None, os.environ).identity())
    environment = build_environment(args.template, args.run, os.environ)
    envs = [f"{name}={value}" for name, value in sorted(environment.items())]
    _declare(args, {**container_inputs(args), "envs": pulumi.Output.secret(envs)})


def launched() -> None:
    """Declare the container of a run that was launched before, and export its handle; nothing is ever started.

    What is in the state stays as it is. Where the container is not in it any more, or would be replaced, the daemon
    refuses the name.
    """
    args = read_launched(DockerTemplate)
    _declare(args, {**container_inputs(args), "name": f"({_ONCE})"})


def _declare(args: ProgramArgs[DockerTemplate], inputs: dict[str, Any]) -> None:
    keep = pulumi.ResourceOptions(ignore_changes=["*"])
    own = [declare(kind, resource, own_inputs, keep) for kind, resource, own_inputs in own_objects(args)]
    options = pulumi.ResourceOptions(ignore_changes=["*"], depends_on=own, additional_secret_outputs=["envs"])
    worker = docker.Container(WORKER, **inputs, opts=options)
    export_handle(args, {"container": worker.id, "name": container_name(args.run.id, args.run.attempt)})


def own_objects(args: ProgramArgs[DockerTemplate]) -> list[tuple[Kind, str, dict[str, Any]]]:
    """The networks and volumes that are made for this run: kind, name of the resource, inputs."""
    labels = listed(args.labels())
    return [
        (
            kind,
            f"{kind}-{index}",
            {"name": own_name(args.run.id, args.run.attempt, index), "labels": labels, **made_as(each)},
        )
        for kind, index, each in to_make(args.template, "run")
    ]


def container_inputs(args: ProgramArgs[DockerTemplate]) -> dict[str, Any]:
    """What the container is made of, but for its environment; what the template leaves out is left to the daemon.

    https://www.pulumi.com/registry/packages/docker/api-docs/container/
    """
    template, run = args.template, args.run
    grace = math.ceil(template.grace.total_seconds())
    inputs: dict[str, Any] = {
        "name": container_name(run.id, run.attempt),
        "image": str(args.context.prepared.get("image", template.image)),
        **_command(args),
        "labels": listed({**template.labels, **args.labels()}),
        "must_run": False,
        "restart": "no",
        "stop_signal": template.stop_signal,
        "stop_timeout": grace,
        "destroy_grace_seconds": grace,
        **_resources(template),
        **_network(args),
        **_storage(args),
        **_host(template),
    }
    return {name: value for name, value in inputs.items() if value not in (None, "", [], {}, ())}


def _command(args: ProgramArgs[DockerTemplate]) -> dict[str, Any]:
    """The command as it is; one with an empty word, which the provider refuses, goes behind the entrypoint."""
    words, entrypoint = list(args.run.command), list(args.template.entrypoint)
    if all(words):
        return {"command": words, "entrypoints": entrypoint}
    of_image = args.context.prepared.get("entrypoint")
    return {"entrypoints": [*(entrypoint or (of_image if isinstance(of_image, list) else [])), *words]}


def _resources(template: DockerTemplate) -> dict[str, Any]:
    """Limits, devices, and what the kernel allows. Memory without `memory_swap` would differ at each refresh."""
    wanted = template.resources
    swap = template.memory_swap or wanted.memory
    return {
        "memory": _mebi(wanted.memory),
        "memory_swap": _mebi(swap),
        "memory_reservation": _mebi(template.memory_reservation),
        "cpus": None if wanted.cpu is None else f"{wanted.cpu.normalize():f}",
        "cpu_shares": template.cpu_shares,
        "cpu_set": template.cpuset,
        "device_requests": _gpus(template),
        "devices": [
            {"host_path": each.host, "container_path": each.container or each.host, "permissions": each.permissions}
            for each in template.devices
        ],
        "device_cgroup_rules": list(template.device_cgroup_rules),
        **{
            f"device_{what}": [{"path": path, "rate": rate} for path, rate in rates.items()]
            for what, rates in template.device_rates
        },
        "ulimits": [{"name": each.name, "soft": each.soft, "hard": each.hard} for each in template.ulimits],
        "sysctls": template.sysctls,
        "shm_size": _mebi(template.shm_size),
        "storage_opts": template.storage_opt,
    }


def _gpus(template: DockerTemplate) -> list[dict[str, Any]]:
    count, gpus = template.resources.gpu, template.gpus
    if not count and not gpus.device_ids:
        return []
    which = {"device_ids": list(gpus.device_ids)} if gpus.device_ids else {"count": count}
    return [{"driver": gpus.driver, "capabilities": list(gpus.capabilities), **which}]


def _network(args: ProgramArgs[DockerTemplate]) -> dict[str, Any]:
    template = args.template
    return {
        "networks_advanced": [
            {"name": _made(args, "network", index, each), **({"aliases": list(each.aliases)} if each.aliases else {})}
            for index, each in enumerate(template.networks)
        ],
        "network_mode": template.network_mode,
        "ports": [
            {"internal": each.container, "protocol": each.protocol}
            | ({"external": each.host} if each.host else {})
            | ({"ip": each.ip} if each.ip else {})
            for each in template.ports
        ],
        "hostname": template.hostname,
        "domainname": template.domainname,
        "dns": list(template.dns),
        "dns_searches": list(template.dns_search),
        "dns_opts": list(template.dns_opt),
        "hosts": [{"host": name, "ip": address} for name, address in template.extra_hosts.items()],
    }


def _storage(args: ProgramArgs[DockerTemplate]) -> dict[str, Any]:
    volumes = []
    for index, each in enumerate(args.template.volumes):
        source = {"host_path": each.host} if each.host else {"volume_name": _made(args, "volume", index, each)}
        volumes.append({"container_path": each.mount, **source, **({"read_only": True} if each.read_only else {})})
    return {"volumes": volumes, "tmpfs": args.template.tmpfs, "read_only": args.template.read_only or None}


def _made(args: ProgramArgs[DockerTemplate], kind: Kind, index: int, wanted: Network | Volume) -> str:
    """The name of a network or volume: as the template says, the run's own, or what the runs share."""
    if wanted.create == "run":
        return own_name(args.run.id, args.run.attempt, index)
    if wanted.create == "shared":
        key = shared_key(kind, index, wanted)
        outputs = args.context.shared.get(key)
        return str(outputs["name"]) if isinstance(outputs, dict) else wanted.name or key  # a preview makes none
    return wanted.name


def _host(template: DockerTemplate) -> dict[str, Any]:
    """User, rights, and how the daemon runs it."""
    return {
        "user": template.user,
        "working_dir": template.working_dir,
        "platform": template.platform,
        "init": template.init,
        "privileged": template.privileged or None,
        "capabilities": _capabilities(template),
        "security_opts": list(template.security_opt),
        "group_adds": list(template.group_add),
        "userns_mode": template.userns_mode,
        "ipc_mode": template.ipc,
        "pid_mode": template.pid,
        "cgroup_parent": template.cgroup_parent,
        "cgroupns_mode": template.cgroup,
        "runtime": template.runtime,
        "tty": template.tty or None,
        "log_driver": template.log.driver if template.log else None,
        "log_opts": template.log.options if template.log else None,
        "healthcheck": _healthcheck(template),
    }


def _capabilities(template: DockerTemplate) -> dict[str, Any]:
    both = {"adds": list(template.cap_add), "drops": list(template.cap_drop)}
    return {name: value for name, value in both.items() if value}


def _healthcheck(template: DockerTemplate) -> dict[str, Any] | None:
    check = template.healthcheck
    if check is None:
        return None
    times = {"interval": check.interval, "timeout": check.timeout, "start_period": check.start_period}
    return {
        "tests": list(check.test),
        **{name: f"{value.total_seconds():g}s" for name, value in times.items() if value is not None},
        **({} if check.retries is None else {"retries": check.retries}),
    }


def _mebi(value: int | None) -> int | None:
    return None if value is None else math.ceil(value / _MEBI)
