"""Brings tools into a folder: the official download, or a build from pinned Go modules."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stacks.commands import Elapsed, ToolError, run, silent, tool_environment

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = "3.259.0"
"""The version that is downloaded or built: the one that the tests run with."""
LANGUAGE_FILES: Final = ("pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")

WARM_SOURCES: Final = Path(__file__).parent / "warm"
"""The Go module of the warm engine, which pins what the command line is built from too."""
WARM_PROGRAM: Final = "run-launcher-engine"
_CLI_PACKAGE: Final = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_SDK_MODULE: Final = "github.com/pulumi/pulumi/sdk/v3"
_LANGUAGE_PACKAGE: Final = f"{_SDK_MODULE}/python/cmd/pulumi-language-python"
_SCRIPTS: Final = (
    "python/cmd/pulumi-language-python-exec",
    "python/dist/pulumi-resource-pulumi-python",
)
_LINK: Final = f"-s -w -X {_SDK_MODULE}/go/common/version.Version=v{VERSION}"
_DOWNLOAD_LIMIT: Final = 1800.0
_BUILD_LIMIT: Final = 2700.0
_STALLED: Final = 15.0

# In a process of its own: the installer has no time limit of its own, and only a process can be ended from outside.
_INSTALLER: Final = """
import subprocess, sys
from pulumi.automation import PulumiCommand
from semver import Version
try:
    PulumiCommand.install(root=sys.argv[1], version=Version.parse(sys.argv[2]))
except subprocess.CalledProcessError as error:
    sys.exit((error.output or b"").decode(errors="replace") or str(error))
except Exception as error:
    sys.exit(str(error))
"""


def download_cli(part: Path, progress: Callable[[str], None]) -> None:
    """Install the official release below `part`/root, by the Automation API's own installer.

    Raises ToolError, also when nothing arrives for 15 seconds.
    """
    elapsed = Elapsed(f"Downloading the Pulumi CLI {VERSION}", progress)
    arrival = _Arrival(part)

    def watch() -> None:
        elapsed.tick()
        arrival.check()

    run(
        [sys.executable, "-P", "-c", _INSTALLER, str(part / "root"), VERSION],
        env=tool_environment(part / "tmp", {"TMPDIR": str(part / "tmp")}),
        cwd=part,
        limit=_DOWNLOAD_LIMIT,
        watch=watch,
    )


class _Arrival:
    """Raises when the bytes in a folder have not changed for too long: name look-up, connection or transfer hang."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._size = 0
        self._since = Elapsed("", silent)

    def check(self) -> None:
        size = _size(self._folder)
        if size != self._size:
            self._size, self._since = size, Elapsed("", silent)
        elif self._since.seconds > _STALLED:
            message = f"nothing arrived for {_STALLED:g} s"
            raise ToolError(message)


def _size(folder: Path) -> int:
    """The bytes of all files; the installer moves them about meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - four times a second
            except FileNotFoundError:
                continue
    return total


def build_cli(part: Path, progress: Callable[[str], None]) -> None:
    """Build `part`/root/bin/pulumi from the pinned modules; minutes at first, seconds with Go's caches warm.

    Raises ToolError.
    """
    elapsed = Elapsed(f"Building the Pulumi CLI {VERSION} from Go modules, some minutes at first", progress)
    _build(WARM_SOURCES, _CLI_PACKAGE, part, elapsed)


def build_language_host(part: Path, progress: Callable[[str], None]) -> None:
    """Build the Python language host below `part`/root/bin, and put the two scripts beside it that it needs.

    Raises ToolError.
    """
    elapsed = Elapsed("Building Pulumi's Python language host from Go modules", progress)
    _build(WARM_SOURCES / "language", _LANGUAGE_PACKAGE, part, elapsed)
    said = _go(["mod", "download", "-json", _SDK_MODULE], _copied(WARM_SOURCES, part), part, elapsed)
    source = Path(json.loads(said)["Dir"])
    for script in _SCRIPTS:
        target = part / "root" / "bin" / Path(script).name
        shutil.copyfile(source / script, target)
        target.chmod(0o755)


def build_warm(part: Path, progress: Callable[[str], None]) -> None:
    """Build `part`/root/bin/run-launcher-engine from the sources beside this file; raises ToolError."""
    elapsed = Elapsed("Building the warm engine from Go modules, some minutes at first", progress)
    _build(WARM_SOURCES, ".", part, elapsed, name=WARM_PROGRAM)


def _build(modules: Path, package: str, part: Path, elapsed: Elapsed, name: str = "") -> None:
    target = part / "root" / "bin" / (name or package.rsplit("/", 1)[-1])
    flags = ["-trimpath", "-ldflags", _LINK, "-o", str(target)]
    _go(["build", *flags, package], _copied(modules, part), part, elapsed)


def _copied(modules: Path, part: Path) -> Path:
    """A copy of the module's files, since Go locks them and the package may be installed read-only."""
    copy = Path(tempfile.mkdtemp(dir=part))
    for path in (modules / "go.mod", modules / "go.sum", *modules.glob("*.go")):
        shutil.copyfile(path, copy / path.name)
    return copy


def _go(arguments: list[str], cwd: Path, part: Path, elapsed: Elapsed) -> str:
    go = shutil.which("go")
    if go is None:
        message = "there is no `go` on PATH"
        raise ToolError(message)
    return run([go, *arguments], env=_go_environment(part), cwd=cwd, limit=_BUILD_LIMIT, watch=elapsed.tick)


def _go_environment(part: Path) -> dict[str, str]:
    """The caller's environment, but for what would build something else than the pinned modules for this machine."""
    env = tool_environment(
        part / "tmp",
        {
            "CGO_ENABLED": "0",
            "GO111MODULE": "on",
            "GOFLAGS": "-mod=readonly -buildvcs=false",
            "GOTMPDIR": str(part / "tmp"),
            "GOWORK": "off",
        },
    )
    for name in ("GOOS", "GOARCH"):
        env.pop(name, None)
    # Go keeps its caches below the home folder, which services often lack.
    env.setdefault("HOME", str(Path.home()))
    return env
