"""Three gauges of a reconciler for Prometheus, served over HTTP by its own client library."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from stacks.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from launchers.dagster.reconcile import Figures

_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = range(1, 65536)


def address(text: str) -> tuple[str, int]:
    """Host and port of "9464", ":9464" (every interface) or "10.0.0.5:9464"; raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) not in _PORTS:
        message = f"--metrics: {text!r} is no address: write a port, or HOST:PORT"
        raise UsageError(message)
    return (host.strip("[]") or "0.0.0.0") if colon else _LOOPBACK, int(port)  # noqa: S104 - asked for with ":9464"


class Gauges:
    """What the last pass saw, served at an address; raises ConfigurationError where it cannot be."""

    def __init__(self, where: str) -> None:
        host, port = address(where)
        try:
            from prometheus_client import CollectorRegistry, Gauge, start_http_server  # noqa: PLC0415 - only for this
        except ImportError as error:
            message = f'--metrics needs the Prometheus client: pip install "run-launcher[metrics]" ({error})'
            raise ConfigurationError(message) from error
        registry = CollectorRegistry()
        self._launches = Gauge(
            "run_launcher_launch_seconds",
            "Median time of the launches of the last 15 minutes, in seconds",
            ("target", "template"),
            registry=registry,
        )
        self._oldest = Gauge(
            "run_launcher_oldest_starting_seconds",
            "For how long the run has been STARTING that has been for the longest, 0 without one",
            registry=registry,
        )
        self._unowned = Gauge(
            "run_launcher_unowned_objects", "How many objects the last pass found that no run owns", registry=registry
        )
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            message = f"--metrics: cannot listen on {host}:{port}: {error.strerror}"
            raise ConfigurationError(message) from error

    def show(self, figures: Figures) -> None:
        """Show what a pass saw."""
        self._launches.clear()
        for (target, template), seconds in figures.launches.items():
            self._launches.labels(target, template).set(median(seconds))
        self._oldest.set(figures.oldest_starting)
        self._unowned.set(figures.unowned)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
