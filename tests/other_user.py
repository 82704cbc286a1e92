"""Commands run by another user of this machine, which only root can have run."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stacks.setup import tools_folder

NOBODY: Final = 65534
NEEDED: Final = ("unshare", "setpriv", "mount")
CANNOT: Final = (
    "only root can act as another user" if os.geteuid() != 0
    else next((f"there is no {name}" for name in NEEDED if shutil.which(name) is None), "")
)  # fmt: skip
"""Why no command can be run by another user here; empty where it can."""
_REACHED: Final = (Path(sys.base_prefix), Path(sys.prefix), tools_folder())
_SCRIPT: Final = """
set -e
uid=$1 closed=$2 reached=$3
shift 3
if [ -n "$closed" ]; then
    mount -t tmpfs none /mnt
    number=0
    for path in $reached; do
        number=$((number + 1))
        mkdir /mnt/$number
        mount --bind "$path" /mnt/$number
    done
    for path in $closed; do mount -t tmpfs -o mode=755 none "$path"; done
    number=0
    for path in $reached; do
        number=$((number + 1))
        mkdir -p "$path"
        mount --bind /mnt/$number "$path"
    done
    umount -l /mnt
fi
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups -- "$@"
"""
"""In a mount namespace of its own: where interpreter or engine lie in a folder that is closed to others, as below the
home of root, that folder is replaced by one that holds nothing but them."""


def as_user(uid: int, command: Sequence[str]) -> list[str]:
    """The command, run by a user who is in no group; interpreter and engine are within their reach."""
    paths = [path.resolve() for path in _REACHED if path.exists()]
    closed = {folder for path in paths for folder in path.parents if not folder.stat().st_mode & 0o001}
    outer = sorted(folder for folder in closed if not closed & set(folder.parents))
    inside = sorted(path for path in paths if any(folder in path.parents for folder in outer))
    words = [" ".join(map(str, each)) for each in (outer, inside)]
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(uid), *words, *command]
