"""The user's own folders, as the platform has them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

NAME = "run-launcher"


def user_folder(kind: Literal["cache", "config", "data"]) -> Path | None:
    """The user's folder of that kind; None for a user without a home folder, as containers have them."""
    import platformdirs  # noqa: PLC0415 - 18 ms that a named folder does not need

    folders = {
        "cache": platformdirs.user_cache_path,
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
    }
    try:
        path = folders[kind](NAME)
    except RuntimeError:
        return None
    return path if path.is_absolute() else None  # older releases of platformdirs keep the "~"
