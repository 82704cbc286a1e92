"""The stand-in for pulumi-docker: its version, and the types that it knows."""

from __future__ import annotations

from plugins.base import Plugin, Resource
from plugins.docker.container import Container
from plugins.docker.daemon import Daemon
from plugins.docker.network import Network
from plugins.docker.volume import Volume


def docker() -> Plugin:
    """The plugin, over the daemon that its configuration or else its environment names."""
    daemon = Daemon()
    resources: dict[str, Resource] = {
        "docker:index/container:Container": Container(daemon),
        "docker:index/network:Network": Network(daemon),
        "docker:index/volume:Volume": Volume(daemon),
    }
    return Plugin("docker", "5.2.0", resources, daemon.configure)
