"""Where a secret is, instead of the secret: in templates, arguments and records there is never a value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from stacks.errors import UsageError


class EnvReference(BaseModel, frozen=True, extra="forbid"):
    """A secret that stands in an environment variable of the launcher."""

    env: str


class FileReference(BaseModel, frozen=True, extra="forbid"):
    """A secret that stands in a file on the launcher's host; one trailing newline is not part of it."""

    file: Path


def resolve(name: str, source: EnvReference | FileReference, environment: Mapping[str, str]) -> str:
    """The value that a reference leads to; raises UsageError that names the reference, never a value."""
    if isinstance(source, EnvReference):
        value = environment.get(source.env)
        if value is None:
            message = f"secret {name}: the launcher's environment has no {source.env}"
            raise UsageError(message)
        return value
    try:
        return source.file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"secret {name}: cannot read {source.file}: {reason}"
        raise UsageError(message) from error
