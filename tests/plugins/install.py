"""Puts stand-ins for provider plugins on PATH, where no published ones are."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stacks.engine import InstalledProvider
from stacks.errors import SetupError
from stacks.plugins import find_plugin

if TYPE_CHECKING:
    import pytest
    from dockerd import Daemon

STAND_INS: Final = {"docker": InstalledProvider("docker", "5.2.0")}
"""Those that have a stand-in here, in a version whose major one our programs are written for."""
_TESTS: Final = Path(__file__).parents[1]
_START: Final = "import sys; sys.path.insert(0, {tests!r}); from plugins.{name}.executable import main; main()"


def install(folder: Path, *names: str) -> Path:
    """Write the stand-ins' executables (all, or those named) into a folder, and answer it: it goes first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or STAND_INS:
        words = [sys.executable, "-I", "-c", _START.format(tests=str(_TESTS), name=name)]
        executable = folder / f"pulumi-resource-{name}"
        executable.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
        executable.chmod(0o755)
    return folder


def published(name: str) -> Path | None:
    """The published plugin that an engine would find by itself, which is to be used then; None where there is none."""
    with suppress(SetupError):
        return find_plugin(STAND_INS[name])
    return None


def provide(folder: Path, name: str) -> Path:
    """A folder to go first on PATH: the published plugin's own, or else this one, with the stand-in in it."""
    there = published(name)
    return install(folder, name) if there is None else there.parent


def lead_to(daemon: Daemon, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Have launchers of this process and its children find a Docker Engine, and its provider by way of this folder."""
    patch.setenv("DOCKER_HOST", daemon.url)
    patch.setenv("PATH", os.pathsep.join([str(provide(folder, "docker")), os.environ["PATH"]]))
