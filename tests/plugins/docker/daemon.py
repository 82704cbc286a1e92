"""The daemon that a provider's configuration or its environment names."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from plugins.base import FailedError
from plugins.bridge import one_error
from plugins.values import Values

if TYPE_CHECKING:
    from docker import APIClient

_SOCKET: Final = "unix:///var/run/docker.sock"


class Daemon:
    """A daemon as it was configured; each thread has a client of its own."""

    def __init__(self) -> None:
        self._settings: Values = {}
        self._mine = threading.local()
        self._version: str | None = None

    def configure(self, settings: Values) -> None:
        """Take the provider's configuration."""
        self._settings = settings
        self._mine, self._version = threading.local(), None

    @property
    def host(self) -> str:
        """Where the daemon listens."""
        return str(self._settings.get("host") or os.environ.get("DOCKER_HOST") or _SOCKET)

    @property
    def client(self) -> APIClient:
        """The calling thread's client. Raises FailedError where no daemon answers."""
        made: APIClient | None = getattr(self._mine, "client", None)
        if made is None:
            with raising("Error pinging Docker server", self.host):
                made = self._connect()
            self._mine.client = made
        return made

    def _connect(self) -> APIClient:
        from docker import APIClient  # noqa: PLC0415 - takes longer than the rest of the plugin to import
        from docker.utils import kwargs_from_env  # noqa: PLC0415

        around = {name: value for name, value in kwargs_from_env().items() if name != "base_url"}
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests lets them stand for the connection's own CA
            os.environ.pop(name, None)
        client = APIClient(base_url=self.host, version=self._version or "auto", timeout=None, **around)
        self._version = client.api_version
        return client


def said(error: Exception, host: str) -> str:
    """How the Docker client for Go, which the published plugin uses, words what a daemon said."""
    from docker.errors import APIError  # noqa: PLC0415

    if isinstance(error, APIError):
        return f"Error response from daemon: {error.explanation or error}"
    return f"Cannot connect to the Docker daemon at {host}. Is the docker daemon running?"


@contextmanager
def raising(doing: str, host: str, raised: Callable[[str], Exception] = FailedError) -> Iterator[None]:
    """Turn what a daemon answers, or that it does not, into the published plugin's error."""
    from docker.errors import DockerException  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    try:
        yield
    except (DockerException, RequestException) as error:
        raise raised(one_error(f"{doing}: {said(error, host)}")) from error


def gone(call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call answers
    """What a call answers; None where the object is not there."""
    from docker.errors import NotFound  # noqa: PLC0415

    try:
        return call()
    except NotFound:
        return None


def until_free(remove: Callable[[], Any], busy: str, patience: float = 30.0) -> None:
    """Remove something, again and again while the daemon says that it is in use."""
    from docker.errors import APIError  # noqa: PLC0415

    deadline = time.monotonic() + patience
    while True:
        try:
            gone(remove)
        except APIError as error:
            if busy not in str(error.explanation) or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


pause = functools.partial(time.sleep, 0.05)
"""Between two looks at what the daemon does not tell by itself."""
