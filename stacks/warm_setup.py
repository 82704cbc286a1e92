"""Finds the warm engine's program, or builds it: it comes with the wheel, else from the Go sources beside it.

tools/warm-<version>-<hash>/   built from sources of that hash; after 30 days a newer build removes it
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stacks.bring import VERSION, WARM_PROGRAM, WARM_SOURCES, build_warm
from stacks.commands import Elapsed, ToolError
from stacks.errors import SetupError
from stacks.tools import changing, staged

_KEPT: Final = 30 * 86400.0  # seconds that a build of other sources is kept
_BUNDLED: Final = WARM_SOURCES / WARM_PROGRAM


def find_warm(tools: Path) -> Path | None:
    """The program that fits this distribution: the one in the wheel, else one that was built; None if there is none."""
    candidates = (_BUNDLED, _folder(tools.absolute()) / "bin" / WARM_PROGRAM)
    return next((path for path in candidates if path.is_file()), None)


def ensure_warm(tools: Path, progress: Callable[[str], None]) -> Path:
    """Find the program, or build it into the tools folder; one of many processes does, the others wait.

    Raises SetupError where it cannot be built.
    """
    found = find_warm(tools)
    if found is not None:
        return found
    tools = tools.absolute()
    with changing(tools, progress):
        found = find_warm(tools)
        return found or _build(tools, progress)


def can_build() -> bool:
    """True if there is what a build needs first."""
    return shutil.which("go") is not None


def _build(tools: Path, progress: Callable[[str], None]) -> Path:
    elapsed = Elapsed("", progress)
    folder = _folder(tools)
    try:
        with staged(folder) as part:
            build_warm(part, progress)
    except ToolError as error:
        message = (
            f"The warm engine could not be built: {error}. Any one of these helps:\n"
            "  - a wheel for this platform, which brings it\n"
            "  - Go 1.25.11 or newer with access to a Go module proxy, then `run-launcher setup`\n"
            "  - `engine.kind: cli` in run-launcher.yaml, which needs the Pulumi CLI alone"
        )
        raise SetupError(message, details=str(error)) from error
    progress(f"The warm engine was built in {folder} after {elapsed.seconds:.0f} s")
    for other in tools.glob("warm-*"):
        if time.time() - other.stat().st_mtime > _KEPT:  # another version may use it: of those, none is for ever
            shutil.rmtree(other, ignore_errors=True)
    return folder / "bin" / WARM_PROGRAM


def _folder(tools: Path) -> Path:
    return tools / f"warm-{VERSION}-{_hash()}"


@functools.cache
def _hash() -> str:
    """What tells these sources from others."""
    whole = hashlib.sha256()
    for path in sorted(WARM_SOURCES.glob("*")):
        if path.suffix in {".go", ".mod", ".sum"} and not path.name.endswith("_test.go"):
            whole.update(path.name.encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:12]
