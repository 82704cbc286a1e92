"""Compiles the shim when a wheel is built, with the machine's compiler or else with the one from PyPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path("programs/provider/shim.c")
BINARY = Path("programs/provider/shim")


def compilers() -> list[list[str]]:
    """The compilers to try, best first."""
    named = [os.environ["CC"]] if os.environ.get("CC") else []
    found = [[path] for name in [*named, "cc", "gcc", "clang"] if (path := shutil.which(name))]
    return [*found, [sys.executable, "-m", "ziglang", "cc"]]


def compile_shim(root: Path) -> None:
    """Compile the shim in `root` if its source is newer; static where the C library allows it.

    Raises RuntimeError.
    """
    binary, source = root / BINARY, root / SOURCE
    if binary.exists() and binary.stat().st_mtime >= source.stat().st_mtime:
        return
    part = binary.with_suffix(f".{os.getpid()}")
    reasons = []
    for compiler in compilers():
        for flags in (["-static"], []):
            command = [*compiler, "-Os", "-s", "-Wall", *flags, "-o", str(part), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                part.chmod(0o755)
                part.replace(binary)
                return
            part.unlink(missing_ok=True)
            reasons.append(f"{' '.join(command[:3])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    message = "no C compiler could build the shim:\n" + "\n".join(reasons)
    raise RuntimeError(message)
