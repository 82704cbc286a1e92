"""Hatch's build hook: compiles the shim into the wheel, with the machine's compiler or else with the one from PyPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("programs/provider/shim.c")
BINARY = Path("programs/provider/shim")


def compilers() -> list[list[str]]:
    """The compilers to try, best first."""
    named = [os.environ["CC"]] if os.environ.get("CC") else []
    found = [[path] for name in [*named, "cc", "gcc", "clang"] if (path := shutil.which(name))]
    return [*found, [sys.executable, "-m", "ziglang", "cc"]]


def compile_shim(root: Path) -> None:
    """Compile the shim in `root`; static where the machine's C library allows it. Raises RuntimeError."""
    binary = root / BINARY
    part = binary.with_suffix(f".{os.getpid()}")
    reasons = []
    for compiler in compilers():
        for flags in (["-static"], []):
            command = [*compiler, "-Os", "-s", "-Wall", *flags, "-o", str(part), str(root / SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                part.chmod(0o755)
                part.replace(binary)
                return
            part.unlink(missing_ok=True)
            reasons.append(f"{' '.join(command[:3])}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    message = "no C compiler could build the shim:\n" + "\n".join(reasons)
    raise RuntimeError(message)


class ShimHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled shim into wheels (editable ones too), which makes them wheels of one platform."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """A compiler from PyPI where the machine has none."""
        return [] if len(compilers()) > 1 else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tag the wheel for this platform and any Python 3."""
        if self.target_name != "wheel":
            return
        binary, source = Path(self.root) / BINARY, Path(self.root) / SOURCE
        if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
            compile_shim(Path(self.root))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
