"""Puts stand-ins for provider plugins on PATH, where no published ones are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

_MAJOR: Final = {"docker": "5"}
"""The plugins that have a stand-in here, and the major version that our programs are written for."""
_TESTS: Final = Path(__file__).parents[1]
_START: Final = "import sys; sys.path.insert(0, {tests!r}); from plugins.{name}.executable import main; main()"


def install(folder: Path, *names: str) -> Path:
    """Write the stand-ins' executables (all, or those named) into a folder, and answer it: it goes first on PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or _MAJOR:
        words = [sys.executable, "-I", "-c", _START.format(tests=str(_TESTS), name=name)]
        executable = folder / f"pulumi-resource-{name}"
        executable.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
        executable.chmod(0o755)
    return folder


def published(name: str) -> Path | None:
    """The published plugin that an engine would find by itself, which is to be used then; None where there is none."""
    found = shutil.which(f"pulumi-resource-{name}")
    if found is not None:
        return Path(found)
    home = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi")
    kept = (home / "plugins").glob(f"resource-{name}-v{_MAJOR[name]}.*/pulumi-resource-{name}")
    return max(kept, key=_version, default=None)


def provide(folder: Path, name: str) -> Path:
    """A folder to go first on PATH: the published plugin's own, or else this one, with the stand-in in it."""
    there = published(name)
    return install(folder, name) if there is None else there.parent


def _version(executable: Path) -> list[int]:
    text = executable.parent.name.rpartition("-v")[2]
    return [int(part) for part in text.split("-")[0].split(".") if part.isdigit()]
