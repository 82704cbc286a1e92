"""Names of container images, taken apart, for bounds on where an image comes from and which one it is.

https://pkg.go.dev/github.com/distribution/reference has the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from launchers.templates.globs import any_matches

_DEFAULT: Final = "docker.io"
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?|\[[0-9A-Fa-f:]+\](?::[0-9]+)?")
_PART: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Image:
    """An image's name: host and path of its repository, tag and digest where they are written."""

    host: str
    path: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Image:
        """The name in a text; raises ValueError for what no registry could serve."""
        name, has_digest, digest = text.partition("@")
        head, slash, last = name.rpartition("/")
        last, has_tag, tag = last.partition(":")
        first, _, rest = f"{head}{slash}{last}".partition("/")
        is_host = bool(rest) and (first == "localhost" or "." in first or ":" in first)
        host, path = (first.lower(), rest) if is_host else (_DEFAULT, f"{head}{slash}{last}")
        parts = [(_HOST, host), *((_PART, part) for part in path.split("/"))]
        parts += [(_TAG, tag)] if has_tag else []
        parts += [(_DIGEST, digest)] if has_digest else []
        if not all(grammar.fullmatch(part) for grammar, part in parts):
            message = f"{text[:80]!r} is no name of an image, like registry.example/team/etl:1.4"
            raise ValueError(message)
        return cls(host, path, tag if has_tag else None, digest if has_digest else None)

    def is_from(self, registries: Iterable[str]) -> bool:
        """True if it is served by one of the registries: a host, or a host and the beginning of a path."""
        for each in registries:
            host, _, path = each.strip("/").partition("/")
            inside = not path or self.path == path or self.path.startswith(f"{path}/")
            if self.host == host.lower() and inside:
                return True
        return False

    def has_tag_of(self, globs: Iterable[str]) -> bool:
        """True if its tag is one of these; without tag and digest it is "latest"."""
        tag = self.tag or (None if self.digest else "latest")
        return tag is not None and any_matches(globs, tag)
