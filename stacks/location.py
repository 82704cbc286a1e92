"""A backend's URL, taken apart: the same words as Pulumi's own, and what of them may be shown.

https://www.pulumi.com/docs/iac/concepts/state-and-backends/; parameters of s3:// as gocloud.dev's s3blob and aws read
them, those of postgres:// as libpq's: https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

_S3: Final = frozenset(
    {
        "awssdk",
        "disable_https",
        "disableSSL",
        "endpoint",
        "kmskeyid",
        "profile",
        "region",
        "request_checksum_calculation",
        "s3ForcePathStyle",
        "ssetype",
        "use_path_style",
    }
)
"""The parameters that Pulumi's S3 backend and ours understand alike."""
_SHOWN: Final = _S3 | {"application_name", "connect_timeout", "host", "port", "search_path", "sslmode", "table"}
"""The parameters whose values may be shown; any other may be a secret."""
_HIDDEN: Final = "***"
_SHORTEST: Final = 3  # a shorter secret cannot be told from other text


@dataclass(frozen=True)
class Location:
    """Where a URL leads to. Its text is the URL without what nobody may see."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        """The URL as it may be shown."""
        return self.shown

    @property
    def scheme(self) -> str:
        """`file`, `s3` or `postgres`."""
        return self._parts.scheme

    @property
    def folder(self) -> Path | None:
        """The folder that a file:// URL leads to; None for any other."""
        return Path(unquote(self._parts.path)) if self.scheme == "file" else None

    @property
    def prefix(self) -> str:
        """What all keys begin with, as Pulumi lays them out: the URL's path, even where it names a database."""
        path = unquote(self._parts.path).strip("/")
        return f"{path}/" if path else ""

    @property
    def bucket(self) -> str:
        """The bucket of an s3:// URL."""
        return self._parts.netloc

    @cached_property
    def options(self) -> dict[str, str]:
        """The parameters after the question mark."""
        return dict(parse_qsl(self._parts.query, keep_blank_values=True))

    @property
    def server(self) -> dict[str, str]:
        """Host, port, user, password and database of a postgres:// URL, as far as it says them."""
        parts = self._parts
        found = {
            "host": parts.hostname,
            "port": None if parts.port is None else str(parts.port),
            "user": parts.username,
            "password": parts.password,
            "dbname": parts.path.strip("/"),
        }
        return {name: unquote(value) for name, value in found.items() if value}

    @cached_property
    def shown(self) -> str:
        """The URL as it may be shown: without password, and without parameters that may be secret."""
        parts = self._parts
        if self.scheme == "file":
            return self.url
        user, at, host = parts.netloc.rpartition("@")
        name, colon, _ = user.partition(":")
        query = urlencode({key: _shown(key, value) for key, value in self.options.items()}, safe="*/:@")
        place = f"{parts.scheme}://{name}{colon and ':' + _HIDDEN}{at}{host}{parts.path}"
        return f"{place}?{query}" if query else place

    @property
    def has_secret(self) -> bool:
        """True if the URL holds what only its user may know, and is never to be written down or shown."""
        return self._parts.password is not None or not _SHOWN.issuperset(self.options)

    def hide(self, text: str) -> str:
        """A text of somebody else's, without the URL's secrets."""
        text = text.replace(self.url, self.shown)
        for secret in self._secrets:
            for form in {secret, quote(secret), quote(secret, safe=""), unquote(secret)}:
                text = text.replace(form, _HIDDEN)
        return text

    def check(self) -> None:
        """Raise ValueError, which does not repeat the URL, for one that Pulumi or we could not use."""
        if self.scheme == "s3":
            self._check_s3()
        elif self.scheme == "postgres":
            self._check_postgres()
        if self._parts.fragment:
            message = "'#' cannot stand in it: write %23"
            raise ValueError(message)

    def _check_s3(self) -> None:
        if not self.bucket or set("@:") & set(self.bucket):
            message = "must be s3://bucket/prefix?region=…; keys of an account come from the environment (AWS_…)"
            raise ValueError(message)
        unknown = sorted(set(self.options) - _S3)
        if unknown:
            message = f"s3:// has no parameter {unknown[0]!r} here; known: {', '.join(sorted(_S3))}"
            raise ValueError(message)

    def _check_postgres(self) -> None:
        try:
            host, _ = self._parts.hostname, self._parts.port
        except ValueError as error:
            message = "postgres:// takes one host and one port: postgres://user@host:5432/database"
            raise ValueError(message) from error
        if "," in (host or ""):
            message = "postgres:// takes one host: postgres://user@host:5432/database"
            raise ValueError(message)
        table = self.options.get("table", "pulumi_state")
        if not table.replace("_", "").replace(".", "").isalnum() or not table.isascii():
            message = "the parameter 'table' is a plain name of letters, digits and '_'"
            raise ValueError(message)

    @cached_property
    def _secrets(self) -> tuple[str, ...]:
        values = [value for key, value in self.options.items() if key not in _SHOWN]
        if self._parts.password:
            values.append(self._parts.password)
        return tuple(sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True))

    @cached_property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)


def _shown(key: str, value: str) -> str:
    if key not in _SHOWN:
        return _HIDDEN
    return Location(value).shown if "://" in value else value
