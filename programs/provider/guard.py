"""Lets only the engine that this provider serves call it.

A provider listens on a loopback port, which any user of the host can reach. The kernel knows which process holds the
other end of a connection; a call from any other process than the engine's is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import grpc
import psutil

_MAPPED: Final = "::ffff:"  # how a socket of IPv6 shows an IPv4 address
_PATIENCE: Final = 10.0  # seconds that an early caller waits for the engine's pid to be known


class CallerGuard(grpc.ServerInterceptor):
    """Refuses every call whose connection does not belong to the engine's process or to one that it started."""

    def __init__(self) -> None:
        self._known = threading.Event()
        self._engine: tuple[int, int] | None = None
        self._proven: set[str] = set()

    def serve(self, pid: int, port: int) -> None:
        """Name the engine's process and the port that we listen on; calls that came before are held until now."""
        self._engine = pid, port
        self._known.set()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call in the check of its caller."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        inner = handler.unary_unary

        def guarded(request: object, context: grpc.ServicerContext) -> object:
            if not self.proves(context.peer()):
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "this provider serves the engine that started it only")
            return inner(request, context)

        return grpc.unary_unary_rpc_method_handler(
            guarded, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def proves(self, peer: str) -> bool:
        """True if the kernel says that the other end of the connection is the engine's."""
        if peer in self._proven:
            return True
        self._known.wait(_PATIENCE)
        protocol, _, address = peer.partition(":")
        host, _, port = address.rpartition(":")
        if self._engine is None or protocol != "ipv4" or not port.isdigit():
            return False
        pid, own_port = self._engine
        if not _holds(pid, (host, int(port)), own_port):
            return False
        self._proven.add(peer)
        return True


def _holds(pid: int, end: tuple[str, int], own_port: int) -> bool:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if _connects(process, end, own_port):
            return True
        return any(_connects(child, end, own_port) for child in process.children(recursive=True))
    return False


def _connects(process: psutil.Process, end: tuple[str, int], own_port: int) -> bool:
    """True if it is this user's and holds exactly this connection: a port may be another's, at another address."""
    with suppress(psutil.Error):
        return process.uids().effective == os.geteuid() and any(
            each.laddr
            and each.raddr
            and (each.laddr.ip.removeprefix(_MAPPED), each.laddr.port) == end
            and each.raddr.port == own_port
            for each in process.net_connections("tcp")
        )
    return False
