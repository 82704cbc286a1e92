"""Launcher templates: found by name, laid over one another, read into their typed model, and changed within bounds."""

from __future__ import annotations

from launchers.templates.layers import EXTENDS, Layer
from launchers.templates.library import BUILT_IN, Available, Library, StaleTemplateWarning, checked_name
from launchers.templates.resolving import DEFAULT, Loaded, resolve
from launchers.yaml_nodes import Problem

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "Available",
    "Library",
    "Loaded",
    "StaleTemplateWarning",
    "parse_template",
]


def parse_template(text: str | bytes, origin: str, name: str) -> Loaded:
    """Read the text of a template that extends none; `origin` is what messages call it. Raises as Library.load does."""
    layer = Layer.of(text, origin, checked_name(name, origin))
    if layer.extends is not None:
        raise layer.wrong(Problem(layer.line(EXTENDS), f"extends {layer.extends}: text without a file extends nothing"))
    return resolve([layer])
