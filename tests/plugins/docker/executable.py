"""A stand-in for pulumi-resource-docker 5.2.0."""

from __future__ import annotations

import importlib
import threading

from plugins.lean import only_the_protocol


def main() -> None:
    """Serve the engine that started this process."""
    only_the_protocol()
    base = importlib.import_module("plugins.base")
    base.serve(_plugin(), threading.Thread(target=importlib.import_module, args=("docker",), daemon=True).start)


def _plugin() -> object:
    return importlib.import_module("plugins.docker.plugin").docker()
