"""Whether a run's code is on this host, where a worker that is a local process would look for it."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

import psutil
from dagster import DagsterRun

from launchers.launcher import RunLauncher
from stacks.errors import UsageError

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})  # noqa: S104 - names, none is bound


def refuse_remote_code(run: DagsterRun, launcher: RunLauncher[Any]) -> None:
    """Raise UsageError for a run whose code location is served from another host."""
    host = code_host(run)
    if host is not None and not is_here(host):
        origin = run.remote_job_origin
        name = origin.location_name if origin is not None else "?"
        message = (
            f"code location {name} is served from {host}, not from this host; target {launcher.target} (template "
            f"{launcher.name}) needs its code here. Choose a template of another target, or, where the same code is "
            "on this host too, set allow_remote_code: true in run_launcher: config: of dagster.yaml"
        )
        raise UsageError(message)


def code_host(run: DagsterRun) -> str | None:
    """The host that serves the run's code location over the network; None for one that Dagster itself started here."""
    origin = run.remote_job_origin
    location: Any = origin.repository_origin.code_location_origin if origin is not None else None
    host = getattr(location, "host", None)  # GrpcServerCodeLocationOrigin alone has one; its module moves
    return None if host is None or location.socket else str(host)


def is_here(host: str) -> bool:
    """True if a host name leads to this host."""
    if host in LOOPBACK:
        return True
    with suppress(OSError, UnicodeError):
        mine = {each.address.partition("%")[0] for several in psutil.net_if_addrs().values() for each in several}
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        return bool(found & (mine | LOOPBACK)) or any(each.startswith("127.") for each in found)
    return False
