"""Declares a folder that runs of a process template share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pulumi

from programs.provider.folder import ForeignFolderError
from programs.provider.folder_resource import FOLDER
from programs.provider.shared_folder import FolderHandover, SharedFolder
from stacks.errors import LaunchFailedError


def program(path: Path, backend: str, files: Mapping[str, str] | None) -> None:
    """Hand the folder over to the stack at work, declare it, and export its path; without files it is a durable one."""
    handover = FolderHandover(f"{pulumi.get_project()}/{pulumi.get_stack()}", backend, files)
    if not pulumi.runtime.is_dry_run():
        _hand_over(path, handover)
    inputs = {"folder": str(path), "backend": backend, "content": handover.content, "durable": files is None}
    folder = pulumi.CustomResource(FOLDER, "folder", {**inputs, "path": None})
    pulumi.export("path", folder.path)  # type: ignore[attr-defined]


def _hand_over(path: Path, handover: FolderHandover) -> None:
    try:
        SharedFolder(path).hand_over(handover)
    except OSError as error:
        message = f"what runs share cannot be kept in {path}: {error.strerror}"
        raise LaunchFailedError(message) from error
    except ForeignFolderError as error:
        raise LaunchFailedError(str(error)) from error
