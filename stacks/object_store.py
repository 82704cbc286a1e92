"""Small files in an object store, through fsspec; written and tested for S3.

What the claims and the records need of it, and S3 gives: a write is seen whole or not at all, a listing shows every
object that was written before it began, and one of several conditional writes wins.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html#ConsistencyModel
"""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

from stacks.errors import ConfigurationError
from stacks.location import Location

_CONNECT: Final = 3  # seconds until an endpoint that does not answer is away
_READ: Final = 5  # seconds until a server that accepted the connection is away
_AT_ONCE: Final = 8  # requests
_TRIES: Final = 2  # of a call that gets no answer
_PAUSES: Final = (0.1, 0.2, 0.4, 0.8)  # seconds before each repetition of what the server failed to do
_SERVER_ERRORS: Final = {errno.EIO, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}
"""What s3fs makes of the server's own errors (500, 502, 503, 504: any client has to expect one at times) and of 409."""
T = TypeVar("T")


class ObjectStore:
    """The objects below a bucket's prefix. Nothing is cached, and each forked process has connections of its own."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._root = f"{location.bucket}/{location.prefix}"
        self._opened: tuple[int, Any] | None = None
        self._opening: dict[int, threading.Lock] = {}

    def read(self, path: str) -> bytes | None:
        """See Store."""
        with suppress(FileNotFoundError):
            content: bytes = _repeated(lambda: self._files.cat_file(self._root + path))
            return content
        return None

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        _repeated(lambda: self._files.pipe_file(self._root + path, content))

    def create(self, path: str, content: bytes) -> bool:
        """See Store. A refused condition reaches us as one of several errors: what is there then decides.

        A write that nobody confirmed may have been done all the same, and the HTTP client repeats some by itself: so a
        file that is there with this very content counts as made by this call.
        """

        def create() -> bool:
            try:
                self._files.pipe_file(self._root + path, content, mode="create")
            except FileExistsError:
                return self.read(path) == content
            except OSError:
                found = self.read(path)  # none: the one that was in the way is deleted again, or nothing was done
                if found is None:
                    raise
                return found == content
            return True

        return _repeated(create, errno.EINVAL)

    def delete(self, path: str) -> None:
        """See Store."""
        self._remove(self._root + path)

    def clear(self, path: str) -> None:
        """See Store."""
        found = _repeated(lambda: self._files.find(f"{self._root}{path}/"))
        self.together(*(partial(self._remove, each) for each in found))

    def together(self, *calls: Callable[[], object]) -> None:
        """See Store."""
        if len(calls) < 2:  # noqa: PLR2004 - one needs no thread
            for call in calls:
                call()
            return
        with ThreadPoolExecutor(min(len(calls), _AT_ONCE)) as threads:
            for done in [threads.submit(call) for call in calls]:
                done.result()

    def names(self, path: str) -> list[str]:
        """See Store."""
        folder = f"{self._location.prefix}{path}".rstrip("/") + "/"
        asked = {"Bucket": self._location.bucket, "Prefix": folder.lstrip("/"), "Delimiter": "/"}
        found: list[str] = []
        with suppress(FileNotFoundError):
            more = True
            while more:  # not by `ls`: where nothing is, that looks at the parent as well
                listed = _repeated(lambda: self._files.call_s3("list_objects_v2", **asked))
                found += [each["Key"] for each in listed.get("Contents") or []]
                found += [each["Prefix"].rstrip("/") for each in listed.get("CommonPrefixes") or []]
                more = bool(listed.get("IsTruncated"))
                asked["ContinuationToken"] = listed.get("NextContinuationToken", "")
        return sorted(name for each in found if (name := each.rpartition("/")[2]))

    def age(self, path: str) -> timedelta | None:
        """See Store. An object that is written now tells the time of the store."""
        probe = f"clock/{uuid.uuid4().hex}"
        try:
            written = self._modified(path)
            self.write(probe, b"")
            now = self._modified(probe)
        except FileNotFoundError:
            return None
        finally:
            self._remove(self._root + probe)
        return timedelta(seconds=(now - written).total_seconds())

    def _modified(self, path: str) -> Any:  # noqa: ANN401
        return _repeated(lambda: self._files.modified(self._root + path))

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            _repeated(lambda: self._files.rm_file(name))

    @property
    def _files(self) -> Any:  # noqa: ANN401 - fsspec publishes no types
        pid = os.getpid()
        with self._opening.setdefault(pid, threading.Lock()):  # in a fork, the parent's may be held for ever
            if self._opened is None or self._opened[0] != pid:
                self._opened = pid, _open(self._location.options)
            return self._opened[1]


def _repeated(call: Callable[[], T], *also: int) -> T:
    unanswered = 0
    for pause in _PAUSES:
        try:
            return call()
        except ConfigurationError:
            raise
        except Exception as error:
            if _is_unanswered(error):
                unanswered += 1
            elif not isinstance(error, OSError) or error.errno not in {*_SERVER_ERRORS, *also}:
                raise
            if unanswered == _TRIES:
                raise
        time.sleep(pause)
    return call()


def _is_unanswered(error: Exception) -> bool:
    """Whether no answer came, or half of one; or whether this process itself was kept from running for so long."""
    from botocore.exceptions import ConnectTimeoutError  # noqa: PLC0415 - as in _open
    from s3fs.core import S3_RETRYABLE_ERRORS  # noqa: PLC0415

    return isinstance(error, (*S3_RETRYABLE_ERRORS, ConnectTimeoutError))


def _open(options: dict[str, str]) -> Any:  # noqa: ANN401
    try:
        import s3fs  # noqa: PLC0415 - costs half a second, which other backends need not pay
        from botocore.handlers import add_expect_header  # noqa: PLC0415
    except ImportError as error:
        message = "a backend at s3:// needs the extra 's3': pip install 'run-launcher[s3]'"
        raise ConfigurationError(message) from error
    config: dict[str, Any] = {"connect_timeout": _CONNECT, "read_timeout": _READ, "retries": {"total_max_attempts": 1}}
    if _true(options.get("s3ForcePathStyle", options.get("use_path_style", ""))):
        config["s3"] = {"addressing_style": "path"}
    plain = _true(options.get("disableSSL", options.get("disable_https", "")))
    endpoint = options.get("endpoint")
    if endpoint:
        if "://" not in endpoint:
            endpoint = f"{'http' if plain else 'https'}://{endpoint}"
        config["request_checksum_calculation"] = "when_required"  # as Pulumi: some such stores refuse checksums
    if "request_checksum_calculation" in options:
        config["request_checksum_calculation"] = options["request_checksum_calculation"].lower()
    encryption = {"ServerSideEncryption": options.get("ssetype"), "SSEKMSKeyId": options.get("kmskeyid")}
    files = s3fs.S3FileSystem(
        endpoint_url=endpoint,
        use_ssl=not plain,
        client_kwargs={"region_name": options["region"]} if "region" in options else {},
        config_kwargs=config,
        s3_additional_kwargs={name: value for name, value in encryption.items() if value},
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=1,  # or each read asks for the size first
        **({"profile": options["profile"]} if "profile" in options else {}),
    )
    files.retries = 1  # what is repeated is repeated here
    files.connect()
    files.s3.meta.events.unregister("before-call.s3", add_expect_header)  # or each write waits for two answers
    return files


def _true(text: str) -> bool:
    return text.lower() in {"1", "t", "true"}
