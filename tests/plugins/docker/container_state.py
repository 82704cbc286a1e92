"""What a daemon tells of a container, as the published plugin words it."""

from __future__ import annotations

from typing import Final

from plugins.values import Values

_MEGABYTE: Final = 1024 * 1024


def facts(found: Values, known: Values) -> Values:
    """What a daemon tells of a container, in the provider's words and in the order in which it was known."""
    config, host, networks = found["Config"], found["HostConfig"], found["NetworkSettings"]
    return {
        "id": found["Id"],
        "name": found["Name"].removeprefix("/"),
        "image": config["Image"],
        "command": config["Cmd"] or [],
        "entrypoints": config["Entrypoint"] or [],
        "hostname": config["Hostname"],
        "domainname": config["Domainname"],
        "user": config["User"],
        "workingDir": config["WorkingDir"],
        "tty": config["Tty"],
        "stdinOpen": config["OpenStdin"],
        "stopSignal": config.get("StopSignal") or "",
        "stopTimeout": config.get("StopTimeout") or 0,
        "platform": found["Platform"],
        "bridge": networks["Bridge"],
        "networkDatas": [_network(name, each) for name, each in networks["Networks"].items()],
        **_limits(host),
        "logDriver": host["LogConfig"]["Type"],
        "ipcMode": host["IpcMode"],
        "init": bool(host.get("Init")),
        "networkMode": host["NetworkMode"],
        "privileged": host["Privileged"],
        "publishAllPorts": host["PublishAllPorts"],
        "readOnly": host["ReadonlyRootfs"],
        "rm": host["AutoRemove"],
        "runtime": host["Runtime"],
        "securityOpts": host["SecurityOpt"] or [],
        "usernsMode": host["UsernsMode"],
        **_where_set(config, host),
        **_ports(networks["Ports"], known),
        **({} if found["State"]["Running"] else {"exitCode": found["State"]["ExitCode"]}),
    }


def _limits(host: Values) -> Values:
    swap = host["MemorySwap"]
    return {
        "cpuSet": host["CpusetCpus"],
        "cpuShares": host["CpuShares"],
        "maxRetryCount": host["RestartPolicy"]["MaximumRetryCount"],
        "memory": host["Memory"] // _MEGABYTE,
        "memoryReservation": host["MemoryReservation"] // _MEGABYTE,
        "memorySwap": swap // _MEGABYTE if swap > 0 else swap,
        "restart": host["RestartPolicy"]["Name"],
        "shmSize": host["ShmSize"] // _MEGABYTE,
    }


def _where_set(config: Values, host: Values) -> Values:
    """What is null in the state where it is not set."""
    check = config.get("Healthcheck")
    given = {
        "dns": host["Dns"],
        "dnsOpts": host["DnsOptions"],
        "dnsSearches": host["DnsSearch"],
        "groupAdds": host["GroupAdd"],
        "logOpts": host["LogConfig"]["Config"],
        "pidMode": host["PidMode"],
        "storageOpts": host.get("StorageOpt"),
        "sysctls": host.get("Sysctls"),
        "tmpfs": host.get("Tmpfs"),
        "hosts": [dict(zip(("host", "ip"), each.split(":", 1), strict=True)) for each in host["ExtraHosts"] or []],
        "ulimits": [{name.lower(): each[name] for name in ("Name", "Soft", "Hard")} for each in host["Ulimits"] or []],
        "healthcheck": check and {"tests": check.get("Test") or [], **_times(check)},
    }
    return {name: value for name, value in given.items() if value}


def _ports(bound: Values, known: Values) -> Values:
    """The ports of a container that runs: of one that does not, the daemon tells none."""
    order = [(each["internal"], each.get("protocol") or "tcp") for each in known.get("ports") or []]
    ports = [
        {"internal": int(port), "external": int(each["HostPort"]), "ip": each["HostIp"], "protocol": protocol}
        for (port, _, protocol), places in ((key.partition("/"), value) for key, value in bound.items())
        for each in places or []
        if ":" not in each["HostIp"]  # the same port for IPv6
    ]
    ports.sort(key=lambda each: (*(at for at, one in enumerate(order) if one == (each["internal"], each["protocol"])),))
    return {"ports": ports} if ports else {}


def _times(check: Values) -> Values:
    names = {
        "interval": "Interval",
        "timeout": "Timeout",
        "startPeriod": "StartPeriod",
        "startInterval": "StartInterval",
    }
    return {
        "retries": check.get("Retries") or 0,
        **{ours: duration(check.get(theirs) or 0) for ours, theirs in names.items()},
    }


def duration(nanoseconds: int) -> str:
    """A duration as Go writes it."""
    minutes, seconds = divmod(nanoseconds / 10**9, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{seconds:g}s"
    text = f"{minutes}m{text}" if hours or minutes else text
    return f"{hours}h{text}" if hours else text


def _network(name: str, network: Values) -> Values:
    return {
        "gateway": network["Gateway"],
        "globalIpv6Address": network["GlobalIPv6Address"],
        "globalIpv6PrefixLength": network["GlobalIPv6PrefixLen"],
        "ipAddress": network["IPAddress"],
        "ipPrefixLength": network["IPPrefixLen"],
        "ipv6Gateway": network["IPv6Gateway"],
        "macAddress": network["MacAddress"],
        "networkName": name,
    }
