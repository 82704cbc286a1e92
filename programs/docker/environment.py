"""Builds the environment of a container; its values enter the state as a Pulumi secret alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from programs.args import Run
from programs.docker.template import DockerTemplate
from programs.references import resolve
from stacks.errors import UsageError

RUN_ID: Final = "RUN_LAUNCHER_RUN_ID"


def build_environment(template: DockerTemplate, run: Run, caller: Mapping[str, str]) -> dict[str, str]:
    """The variables of env_files, then the template's, the run's, and the secrets, over those of the image.

    Raises UsageError for a file or a secret that is not there.
    """
    found: dict[str, str] = {}
    for path in template.env_files:
        found |= read_env_file(path, caller)
    secrets = {name: resolve(name, source, caller) for name, source in template.secrets.items()}
    return {**found, **template.env, **run.env, **secrets, RUN_ID: run.id}


def read_env_file(path: Path, caller: Mapping[str, str]) -> dict[str, str]:
    """The variables of a file as `docker run --env-file` reads it: NAME=value, or NAME of the caller's environment.

    https://docs.docker.com/reference/cli/docker/container/run/#env
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"env_files: cannot read {path}: {reason}"
        raise UsageError(message) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        name, has_value, value = line.partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not name or any(char.isspace() for char in name):
            message = f"{path}:{number}: {name!r} cannot be the name of a variable"
            raise UsageError(message)
        if has_value:
            found[name] = value
        elif name in caller:
            found[name] = caller[name]
    return found
