"""Hatch's build hook: what is compiled comes with the wheel, so a wheel is one of a platform.

The shim is compiled for every wheel. The warm engine is built where there is Go and its modules can be had, and not for
an editable install: there `run-launcher setup` or the first launch builds it, as where a wheel came without.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parents[1]))

from programs.provider.build_shim import compile_shim, compilers
from stacks.bring import WARM_PROGRAM, build_warm
from stacks.commands import ToolError


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles, and tags the wheel for this platform and any Python 3."""

    PLUGIN_NAME = "custom"
    _built: Path | None = None

    def dependencies(self) -> list[str]:
        """A C compiler from PyPI where the machine has none."""
        return [] if len(compilers()) > 1 else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See BuildHookInterface."""
        if self.target_name != "wheel":
            return
        compile_shim(Path(self.root))
        if version != "editable" and shutil.which("go") is not None:
            self._built = Path(tempfile.mkdtemp(prefix="run-launcher-"))
            self._build_engine(self._built, build_data)
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """See BuildHookInterface."""
        if self._built is not None:
            shutil.rmtree(self._built, ignore_errors=True)

    def _build_engine(self, folder: Path, build_data: dict[str, Any]) -> None:
        (folder / "tmp").mkdir()
        try:
            build_warm(folder, self.app.display_info)
        except ToolError as error:
            self.app.display_warning(f"the wheel comes without the warm engine, which Go could not build: {error}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        else:
            built = folder / "root" / "bin" / WARM_PROGRAM
            build_data["force_include"][str(built)] = f"stacks/warm/{WARM_PROGRAM}"
