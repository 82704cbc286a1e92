"""The models of the target `shelf`: what reading a template or a configuration loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from programs.args import Connection, LauncherTemplate


class ShelfConnection(Connection, frozen=True):
    """The folder that workers lie in."""

    folder: Path
    label: str = ""


class ShelfTemplate(LauncherTemplate, frozen=True, extra="forbid"):
    """A file on a shelf."""

    target: Literal["shelf"] = "shelf"
