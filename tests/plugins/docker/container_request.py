"""What a container is created with, in the words of the Engine API: https://docs.docker.com/reference/api/engine/."""

from __future__ import annotations

import re
from typing import Any, Final

from plugins.values import Values

_MEGABYTE: Final = 1024 * 1024
_PLAIN: Final = {
    "image": "Image",
    "hostname": "Hostname",
    "domainname": "Domainname",
    "tty": "Tty",
    "stdinOpen": "OpenStdin",
    "envs": "Env",
    "command": "Cmd",
    "entrypoints": "Entrypoint",
    "user": "User",
    "workingDir": "WorkingDir",
    "stopSignal": "StopSignal",
    "stopTimeout": "StopTimeout",
}
_HOST_PLAIN: Final = {
    "privileged": "Privileged",
    "publishAllPorts": "PublishAllPorts",
    "rm": "AutoRemove",
    "readOnly": "ReadonlyRootfs",
    "tmpfs": "Tmpfs",
    "dns": "Dns",
    "dnsOpts": "DnsOptions",
    "dnsSearches": "DnsSearch",
    "securityOpts": "SecurityOpt",
    "cgroupParent": "CgroupParent",
    "cgroupnsMode": "CgroupnsMode",
    "cpuShares": "CpuShares",
    "cpuPeriod": "CpuPeriod",
    "cpuQuota": "CpuQuota",
    "cpuSet": "CpusetCpus",
    "deviceCgroupRules": "DeviceCgroupRules",
    "groupAdds": "GroupAdd",
    "ipcMode": "IpcMode",
    "networkMode": "NetworkMode",
    "pidMode": "PidMode",
    "runtime": "Runtime",
    "storageOpts": "StorageOpt",
    "sysctls": "Sysctls",
    "usernsMode": "UsernsMode",
}
_HOST_MEGABYTES: Final = {
    "memory": "Memory",
    "memoryReservation": "MemoryReservation",
    "memorySwap": "MemorySwap",
    "shmSize": "ShmSize",
}
_RATES: Final = {
    "deviceReadBps": "BlkioDeviceReadBps",
    "deviceReadIops": "BlkioDeviceReadIOps",
    "deviceWriteBps": "BlkioDeviceWriteBps",
    "deviceWriteIops": "BlkioDeviceWriteIOps",
}
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def body(inputs: Values) -> Values:
    """The request that creates a container. `inputs` are in the order in which Terraform's sets have them."""
    volumes = inputs.get("volumes") or []
    ports = inputs.get("ports") or []
    request = {
        **_renamed(inputs, _PLAIN),
        "Labels": _labels(inputs.get("labels")),
        "Volumes": {each["containerPath"]: {} for each in volumes if each.get("containerPath")},
        "ExposedPorts": {_port(each): {} for each in ports},
        "HostConfig": _host(inputs, volumes, ports),
    }
    if inputs.get("healthcheck"):
        request["Healthcheck"] = _healthcheck(inputs["healthcheck"])
    return request


def changes(state: Values) -> Values:
    """What docker.APIClient.update_container takes to change a container's limits in place."""
    limits = _megabytes(state, ("memory", "memorySwap"))
    return {
        "cpu_shares": state.get("cpuShares"),
        "cpuset_cpus": state.get("cpuSet"),
        "mem_limit": limits.get("Memory"),
        "memswap_limit": limits.get("MemorySwap"),
        "restart_policy": _restart(state),
    }


def endpoint(network: Values) -> Values:
    """What docker.APIClient.connect_container_to_network takes."""
    return {
        "aliases": network.get("aliases") or None,
        "driver_opt": dict(each.partition("=")[::2] for each in network.get("driverOpts") or []) or None,
        "mac_address": network.get("macAddress") or None,
        "ipv4_address": network.get("ipv4Address") or None,
        "ipv6_address": network.get("ipv6Address") or None,
        "link_local_ips": network.get("linkLocalIps") or None,
    }


def _host(inputs: Values, volumes: list[Values], ports: list[Values]) -> Values:
    host = {
        **_renamed(inputs, _HOST_PLAIN),
        **_megabytes(inputs, tuple(_HOST_MEGABYTES)),
        **{theirs: _items(inputs.get(ours), {"path": "Path", "rate": "Rate"}) for ours, theirs in _RATES.items()},
        "Init": bool(inputs.get("init")),
        "RestartPolicy": _restart(inputs),
        "LogConfig": {"Type": inputs.get("logDriver") or "", "Config": inputs.get("logOpts") or {}},
        "Binds": [_bind(each) for each in volumes if each.get("volumeName") or each.get("hostPath")],
        "VolumesFrom": [each["fromContainer"] for each in volumes if each.get("fromContainer")],
        "Mounts": [_mount(each) for each in inputs.get("mounts") or []],
        "PortBindings": {_port(each): [] for each in ports},
        "ExtraHosts": [f"{each['host']}:{each['ip']}" for each in inputs.get("hosts") or []],
        "Ulimits": _items(inputs.get("ulimits"), {"name": "Name", "soft": "Soft", "hard": "Hard"}),
        "Devices": [_device(each) for each in inputs.get("devices") or []],
        "DeviceRequests": _device_requests(inputs),
    }
    for each in ports:
        external = str(each.get("external") or "")
        host["PortBindings"][_port(each)].append({"HostIp": each.get("ip") or "", "HostPort": external})
    capabilities = inputs.get("capabilities") or {}
    host |= {"CapAdd": capabilities.get("adds"), "CapDrop": capabilities.get("drops")}
    if inputs.get("cpus"):
        host["NanoCpus"] = round(float(inputs["cpus"]) * 10**9)
    return host


def _renamed(inputs: Values, names: dict[str, str]) -> Values:
    return {theirs: inputs[ours] for ours, theirs in names.items() if inputs.get(ours)}


def _items(values: list[Values] | None, names: dict[str, str]) -> list[Values]:
    return [_renamed(each, names) for each in values or []]


def _megabytes(inputs: Values, names: tuple[str, ...]) -> Values:
    """Limits in bytes; -1 stays what it is: no limit of swap."""
    given = {name: inputs[name] for name in names if inputs.get(name)}
    return {_HOST_MEGABYTES[name]: value * _MEGABYTE if value > 0 else value for name, value in given.items()}


def _restart(inputs: Values) -> Values:
    return {"Name": inputs.get("restart") or "", "MaximumRetryCount": inputs.get("maxRetryCount") or 0}


def _labels(labels: list[Values] | None) -> dict[str, str]:
    return {each["label"]: each["value"] for each in labels or []}


def _bind(volume: Values) -> str:
    source = volume.get("volumeName") or volume["hostPath"]
    options = ["ro" if volume.get("readOnly") else "rw", *filter(None, [volume.get("selinuxRelabel")])]
    return f"{source}:{volume['containerPath']}:{','.join(options)}"


def _mount(mount: Values) -> Values:
    request = _renamed(mount, {"type": "Type", "target": "Target", "source": "Source", "readOnly": "ReadOnly"})
    bind, volume, memory = (mount.get(f"{kind}Options") for kind in ("bind", "volume", "tmpfs"))
    if bind and mount["type"] == "bind":
        request["BindOptions"] = _renamed(bind, {"propagation": "Propagation"})
    if volume and mount["type"] == "volume":
        request["VolumeOptions"] = _renamed(volume, {"noCopy": "NoCopy", "subpath": "Subpath"})
        request["VolumeOptions"] |= {"Labels": _labels(volume.get("labels"))}
        driver = _renamed(volume, {"driverName": "Name", "driverOptions": "Options"})
        request["VolumeOptions"] |= {"DriverConfig": driver} if driver else {}
    if memory and mount["type"] == "tmpfs":
        request["TmpfsOptions"] = _renamed(memory, {"sizeBytes": "SizeBytes", "mode": "Mode"})
    return request


def _port(port: Values) -> str:
    return f"{port['internal']}/{port.get('protocol') or 'tcp'}"


def _device(device: Values) -> Values:
    return {
        "PathOnHost": device["hostPath"],
        "PathInContainer": device.get("containerPath") or device["hostPath"],
        "CgroupPermissions": device.get("permissions") or "rwm",
    }


def _device_requests(inputs: Values) -> list[Values]:
    names = {"driver": "Driver", "count": "Count", "deviceIds": "DeviceIDs", "options": "Options"}
    wanted: list[Any] = _items(inputs.get("deviceRequests"), names)
    for request, given in zip(wanted, inputs.get("deviceRequests") or [], strict=True):
        request["Capabilities"] = [given.get("capabilities") or ["gpu"]]
    return [*wanted, {"Count": -1, "Capabilities": [["gpu"]]}] if inputs.get("gpus") == "all" else wanted


def _healthcheck(check: Values) -> Values:
    names = {"interval": "Interval", "timeout": "Timeout", "startPeriod": "StartPeriod"}
    times = {theirs: nanoseconds(check[ours]) for ours, theirs in names.items() if check.get(ours)}
    return {"Test": check["tests"], "Retries": check.get("retries") or 0, **times}


def nanoseconds(text: str) -> int:
    """A duration as Go writes it: 1h2m3.5s."""
    parts = re.findall(r"([\d.]+)(h|ms|m|us|µs|ns|s)", text)
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts) * 10**9)
