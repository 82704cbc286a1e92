"""A Docker Engine: how it is reached, who it is, and its refusals in our words."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.tls import TLSConfig
from docker.utils import parse_host

from programs.docker.template import DockerConnection
from stacks.errors import ConfigurationError, TargetAwayError

_TIMEOUT: Final = 30  # seconds that the daemon gets for an answer
_KNOWN: Final = 5.0  # seconds that a daemon's identity is taken for granted
_HOST: Final = "DOCKER_HOST"
_CERTS: Final = "DOCKER_CERT_PATH"
_CONTEXT: Final = "DOCKER_CONTEXT"  # which a plugin would follow instead of the host
_VERIFY: Final = "DOCKER_TLS_VERIFY"
_DEFAULT: Final = "unix:///var/run/docker.sock"
_daemons: Final[dict[tuple[str, str], Daemon]] = {}
_guard: Final = threading.Lock()

__all__ = ["APIError", "Daemon", "DockerException", "ImageNotFound", "NotFound", "daemon_at", "refusal"]


class _Client(docker.APIClient):  # type: ignore[misc] # publishes no types
    """One that believes the CA of its connection: requests lets REQUESTS_CA_BUNDLE stand for it.

    https://github.com/psf/requests/issues/3829
    """

    def merge_environment_settings(self, url: str, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:  # noqa: ANN401
        """See requests.Session."""
        return super().merge_environment_settings(url, proxies, stream, self.verify if verify is None else verify, cert)


@dataclass(frozen=True)
class Daemon:
    """One daemon, from any thread. `certs` is a folder of TLS keys, or empty."""

    host: str
    certs: str = ""

    @cached_property
    def api(self) -> docker.APIClient:
        """The client; its first use asks the daemon for its version. Raises TargetAwayError, ConfigurationError."""
        try:
            parse_host(self.host)
        except (DockerException, ValueError) as error:
            message = f"the Docker host {self.host!r} cannot be read: {error}"
            raise ConfigurationError(message) from error
        if self.host.startswith("unix://") and not Path(self.host.removeprefix("unix://")).is_socket():
            message = f"there is no Docker daemon at {self.host}: start one, or name another one in {_HOST}"
            raise TargetAwayError(message)
        with self.answering():
            return _Client(
                base_url=self.host,
                version="auto",
                timeout=_TIMEOUT,
                tls=self._tls(),
                use_ssh_client=self.host.startswith("ssh://"),
                max_pool_size=32,
            )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead a provider plugin, or a `docker` by hand, to this daemon; some hide the caller's."""
        return {_HOST: self.host, _CONTEXT: "", _CERTS: self.certs, _VERIFY: "1" if self.certs else ""}

    def identity(self) -> str:
        """The daemon's own id, of its data folder: the same by whatever way it is reached."""
        known: tuple[float, str] | None = self.__dict__.get("_identity")
        if known is None or time.monotonic() - known[0] > _KNOWN:
            with self.answering():
                known = time.monotonic(), str(self.api.info()["ID"])
            self.__dict__["_identity"] = known
        return known[1]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Tell of a daemon that does not answer; what it refuses comes through as APIError."""
        try:
            yield
        except APIError:
            raise
        except (DockerException, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            self.__dict__.pop("_identity", None)
            message = f"the Docker daemon at {self.host} does not answer: {_reason(error)}"
            raise TargetAwayError(message, details=str(error)) from error

    def _tls(self) -> TLSConfig | bool:
        if not self.certs:
            return False
        pair = (os.path.join(self.certs, "cert.pem"), os.path.join(self.certs, "key.pem"))  # noqa: PTH118 - the SDK's way
        return TLSConfig(client_cert=pair, ca_cert=os.path.join(self.certs, "ca.pem"), verify=True)  # noqa: PTH118


def daemon_at(connection: DockerConnection | None, environment: Mapping[str, str]) -> Daemon:
    """The daemon of a connection, else the one that the environment names, else this host's; one object for each."""
    if connection is not None:
        key = connection.host, str(connection.cert_path or "")
    else:
        host = environment.get(_HOST) or _DEFAULT
        key = host, environment.get(_CERTS, "") if environment.get(_VERIFY) else ""
    with _guard:
        return _daemons.setdefault(key, Daemon(*key))


def refusal(error: APIError) -> str:
    """The daemon's own reason, without the client's frame around it."""
    return str(error.explanation or error).strip()


def _reason(error: BaseException) -> str:
    """The innermost cause: the layers above only repeat it."""
    seen: Any = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return str(seen.strerror)
    return str(seen) or type(seen).__name__
