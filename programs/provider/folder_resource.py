"""The resource `runworker:index:Folder`: a folder that runs share, as the handover in it says.

It makes and removes only what this user handed over to the very stack that asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from programs.provider.folder import ForeignFolderError
from programs.provider.shared_folder import FolderHandover, SharedFolder

FOLDER: Final = "runworker:index:Folder"
FOLDER_FAILED: Final = "the shared folder was not made:"
_TEXT: Final = {"type": "string"}
SCHEMA: Final = {
    "description": "A folder on this host that runs share, made from the handover in it.",
    "inputProperties": {"folder": _TEXT, "backend": _TEXT, "content": _TEXT, "durable": {"type": "boolean"}},
    "requiredInputs": ["folder", "backend", "content", "durable"],
    "properties": {"path": _TEXT},
}


class RefusedError(Exception):
    """What was asked for is not what was handed over, or cannot be done."""


def problems(inputs: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with inputs, by name."""
    if not Path(str(inputs.get("folder", ""))).is_absolute():
        return {"folder": "must be an absolute path"}
    return {}


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The inputs that make it another folder."""
    return sorted(name for name in SCHEMA["requiredInputs"] if old.get(name) != new.get(name))


def outputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the state holds of a folder."""
    return {**inputs, "path": str(SharedFolder(Path(str(inputs["folder"]))).content)}


def create(inputs: Mapping[str, Any], urn: str) -> dict[str, Any]:
    """Make the folder that was handed over, or take over the one that is there. Raises RefusedError."""
    folder = SharedFolder(Path(str(inputs["folder"])))
    try:
        handover = _handed_over(folder, inputs, urn)
        if handover is None or (handover.files is None, handover.content) != (inputs["durable"], inputs["content"]):
            message = f"what is to be shared was not handed over in {folder.path}"
            raise RefusedError(message)
        folder.make(handover)
    except OSError as error:
        message = f"{FOLDER_FAILED} {error.errno}: {os.strerror(error.errno or 0)} ({error.filename or folder.path})"
        raise RefusedError(message) from error
    return outputs(inputs)


def is_there(state: Mapping[str, Any]) -> bool:
    """True while the folder is there."""
    return "folder" in state and SharedFolder(Path(str(state["folder"]))).content.is_dir()


def delete(state: Mapping[str, Any], urn: str) -> None:
    """Remove the folder; a durable one stays as long as it holds anything. Repeatable. Raises RefusedError."""
    folder = SharedFolder(Path(str(state["folder"])))
    if not os.path.lexists(folder.path):
        return
    if _handed_over(folder, state, urn) is None:
        message = f"nothing says whose the folder {folder.path} is; it is kept"
        raise RefusedError(message)
    try:
        folder.remove(data=False)
    except OSError as error:
        message = f"the shared folder {folder.path} cannot be removed: {os.strerror(error.errno or 0)}"
        raise RefusedError(message) from error


def _handed_over(folder: SharedFolder, inputs: Mapping[str, Any], urn: str) -> FolderHandover | None:
    """The handover, if it is for the stack of the URN: any local user can register a resource, but choose no stack."""
    try:
        handover = folder.handed_over()
    except ForeignFolderError as error:
        raise RefusedError(str(error)) from error
    stack, project = [*urn.removeprefix("urn:pulumi:").split("::"), ""][:2]
    mine = f"{project}/{stack}", inputs.get("backend")
    if handover is not None and (handover.stack, handover.backend) != mine:
        message = f"the shared folder {folder.path} belongs to another stack or backend"
        raise RefusedError(message)
    return handover
