"""Builds the wheel and checks what it would put into a user's site-packages; `make check` runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"launchers", "programs", "stacks"}
SHIPPED_SUFFIXES = {".go", ".mod", ".py", ".sum", ".typed", ".yaml"}
NOT_SHIPPED = {"launchers/build_wheel.py", "programs/provider/build_shim.py"}
MODULES = ("go.mod", "go.sum", "language/go.mod", "language/go.sum")


def build(folder: Path) -> Path:
    """Build the wheel into the folder as an installer does, with whatever its build asks for on this machine."""
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def wanted() -> set[str]:
    """Every file of the three packages that a user needs, as it is in the checkout."""
    files = {path for name in TOP_LEVEL for path in (ROOT / name).rglob("*") if path.suffix in SHIPPED_SUFFIXES}
    return {str(path.relative_to(ROOT)) for path in files if not path.name.endswith("_test.go")} - NOT_SHIPPED


def faults(names: set[str]) -> list[str]:
    """What is wrong with a wheel that holds these names."""
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    needed = wanted() | {f"stacks/warm/{name}" for name in MODULES} | {"programs/provider/shim"}
    needed |= {f"{name}/py.typed" for name in TOP_LEVEL}
    if shutil.which("go") is not None:
        needed.add("stacks/warm/run-launcher-engine")
    return [
        *(f"a top-level name that is not ours: {name}" for name in sorted(top_level - TOP_LEVEL)),
        *(f"absent: {name}" for name in sorted(needed - names)),
        *(f"shipped, but is of no use to a user: {name}" for name in sorted(names - needed) if useless(name)),
    ]


def useless(name: str) -> bool:
    return name in NOT_SHIPPED or name.endswith("_test.go")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="run-launcher-") as folder:
        names = set(ZipFile(build(Path(folder))).namelist())
    found = faults(names)
    for fault in found:
        print(f"wheel: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
