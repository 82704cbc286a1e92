"""The properties of docker:index/container:Container, as the published plugin's answers show them.

https://www.pulumi.com/registry/packages/docker/api-docs/container/ tells what each means.
"""

from __future__ import annotations

from typing import Final

from plugins.bridge import Schema
from plugins.values import Values, words

_FALSE: Final = ("attach", "logs", "readOnly", "rm", "stdinOpen", "tty", "wait")
_LISTS: Final = words(
    """
    deviceReadBps deviceReadIops deviceRequests deviceWriteBps deviceWriteIops devices envs hosts labels mounts
    networksAdvanced ports securityOpts ulimits uploads volumes
    """
)
_OTHERS: Final = words(
    """
    bridge capabilities cgroupParent cgroupnsMode command containerLogs containerReadRefreshTimeoutMilliseconds
    cpuPeriod cpuQuota cpuSet cpuShares cpus destroyGraceSeconds dns dnsOpts dnsSearches domainname entrypoints
    exitCode gpus groupAdds healthcheck hostname id image init ipcMode logDriver logOpts maxRetryCount memory
    memorySwap mustRun name networkDatas networkMode pidMode platform privileged publishAllPorts removeVolumes
    restart runtime shmSize start stopSignal stopTimeout storageOpts sysctls tmpfs user usernsMode waitTimeout
    workingDir
    """
)
_BLANK: Final[Values] = {
    **dict.fromkeys(_OTHERS),
    **dict.fromkeys(_FALSE, False),
    **{name: [] for name in _LISTS},
    "memoryReservation": 0,
}
_STABLES: Final = words(
    """
    capabilities cgroupParent cgroupnsMode command cpus deviceRequests devices dns dnsOpts dnsSearches domainname
    entrypoints envs gpus groupAdds hostname hosts image ipcMode labels logDriver logOpts mounts name networkMode
    networksAdvanced pidMode platform ports privileged publishAllPorts readOnly runtime securityOpts shmSize stdinOpen
    stopSignal stopTimeout storageOpts sysctls tty ulimits uploads user usernsMode volumes workingDir
    """
)
_CREATE_LIMIT: Final = 20 * 60 * 10**9  # nanoseconds

CONTAINER: Final = Schema(
    blank=_BLANK,
    meta={
        "e2bfb730-ecaa-11e6-8f88-34363bc7c4c0": dict.fromkeys(("create", "delete", "update"), _CREATE_LIMIT),
        "schema_version": "2",
    },
    stables=tuple(_STABLES),
    defaults={
        "containerReadRefreshTimeoutMilliseconds": 15000,
        "mustRun": True,
        "networkMode": "bridge",
        "removeVolumes": True,
        "restart": "no",
        "start": True,
        "waitTimeout": 60,
    },
    nested={
        "ports": {"ip": "0.0.0.0", "protocol": "tcp"},  # noqa: S104 - what the published plugin fills in
        "healthcheck": {"interval": "0s", "startInterval": "0s", "startPeriod": "0s", "timeout": "0s"},
    },
    computed=frozenset(
        words(
            """
            command entrypoints envs healthcheck hostname init ipcMode labels logDriver platform runtime securityOpts
            shmSize stopSignal stopTimeout
            """
        )
    ),
    unread=frozenset({"attach", "envs", "labels", "logs", "wait"}),
    chosen={"ports": "external"},
    elements={
        "volumes": {
            "containerPath": "",
            "fromContainer": "",
            "hostPath": "",
            "readOnly": False,
            "selinuxRelabel": "",
            "volumeName": "",
        },
        "networksAdvanced": {
            "aliases": [],
            "driverOpts": [],
            "gwPriority": 0,
            "ipv4Address": "",
            "ipv6Address": "",
            "linkLocalIps": [],
            "macAddress": "",
            "name": "",
        },
    },
    single=frozenset({"capabilities", "healthcheck", "bindOptions", "tmpfsOptions", "volumeOptions"}),
    maps=frozenset({"driverOptions", "logOpts", "options", "storageOpts", "sysctls", "tmpfs"}),
    sets=frozenset(
        words(
            """
            adds aliases devices deviceReadBps deviceReadIops deviceWriteBps deviceWriteIops dns dnsOpts dnsSearches
            driverOpts drops envs groupAdds hosts labels linkLocalIps mounts networksAdvanced securityOpts ulimits
            uploads volumes
            """
        )
    ),
    outputs=frozenset({"bridge", "containerLogs", "exitCode", "networkDatas"}),
    renamed={
        "dnsSearches": "dns_search",
        "entrypoints": "entrypoint",
        "envs": "env",
        "groupAdds": "group_add",
        "hosts": "host",
        "networkDatas": "network_data",
        "ulimits": "ulimit",
        "uploads": "upload",
    },
    delete_first=True,
)
