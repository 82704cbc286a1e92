"""Makes the messages of Pulumi's plugin protocol importable without the rest of its SDK, which doubles a start."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType


def only_the_protocol() -> None:
    """Have `pulumi` be nothing but its messages from now on: for a process that is a plugin, and does nothing else."""
    found = find_spec("pulumi")
    assert found is not None
    root = (found.submodule_search_locations or [""])[0]
    for name in ("pulumi", "pulumi.runtime", "pulumi.runtime.proto"):
        module = ModuleType(name)
        module.__path__ = [root + name.removeprefix("pulumi").replace(".", "/")]
        sys.modules[name] = module
