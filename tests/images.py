"""Images for tests of containers, made from files of this machine: none is pulled."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from dockerd import Daemon

BUSYBOX: Final = "busybox:local"
"""Static busybox, each of its commands linked to it."""
WORKER: Final = "python:local"
"""No file of a program: what it runs is mounted into it, see mounts."""
CHECKOUT: Final = Path(__file__).resolve().parents[1]
_SYSTEM: Final = tuple(Path("/", name) for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"))
_USERS: Final = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS: Final = "root:x:0:\nnogroup:x:65534:\n"


class Mount(NamedTuple):
    """A folder of the host in a container."""

    host: Path
    container: Path
    read_only: bool = True

    def __str__(self) -> str:
        """As `docker run --volume` takes it, and the list `volumes` of the library."""
        return f"{self.host}:{self.container}{':ro' if self.read_only else ''}"


def bring(daemon: Daemon) -> None:
    """See to it that a daemon has the images."""
    import docker  # noqa: PLC0415 - only where Docker is tested

    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), "/usr/local/bin:/usr/bin:/bin"))
    wanted = {BUSYBOX: (_busybox, "/bin"), WORKER: (_worker, path)}
    with contextlib.closing(daemon.client()) as client:
        for name, (tree, path_inside) in wanted.items():
            try:
                client.images.get(name)
            except docker.errors.ImageNotFound:
                repository, tag = name.split(":")
                changes = [f"ENV PATH={path_inside}", "ENV HOME=/root", 'CMD ["sh"]']
                client.api.import_image_from_data(tree(), repository=repository, tag=tag, changes=changes)


def mounts() -> list[Mount]:
    """What gives a container of WORKER this machine's Python, this virtual environment and this checkout."""
    system = [path for path in (Path("/usr"), *_SYSTEM) if path.is_dir() and not path.is_symlink()]
    python = Path(sys.executable).resolve().parent.parent
    wanted = dict.fromkeys([*system, Path(sys.base_prefix), python, Path(sys.prefix), CHECKOUT])
    inside = [path for path in wanted if not any(above in wanted for above in path.parents)]
    return [Mount(path, path) for path in inside]


def _busybox() -> bytes:
    """The tree of BUSYBOX, as a tar file."""
    program = shutil.which("busybox")
    assert program is not None, "no busybox (Debian: apt install busybox-static)"
    commands = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    with _Tree() as tree:
        tree.file("bin/busybox", Path(program).read_bytes(), 0o755)
        for command in commands:
            if command != "busybox":
                tree.link(f"bin/{command}", "busybox")
    return tree.content


def _worker() -> bytes:
    """The tree of WORKER, as a tar file."""
    with _Tree() as tree:
        for path in _SYSTEM:
            if path.is_symlink():
                tree.link(str(path.relative_to("/")), str(path.readlink()))
        cache = Path("/etc/ld.so.cache")  # where libraries outside the usual folders are
        if cache.exists():
            tree.file("etc/ld.so.cache", cache.read_bytes())
    return tree.content


class _Tree:
    """A tar file in memory, with what every container expects to find."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        for name, mode in {"etc": 0o755, "root": 0o700, "tmp": 0o1777, "proc": 0o555, "dev": 0o755}.items():
            self._add(name, tarfile.DIRTYPE, mode)
        self.file("etc/passwd", _USERS.encode())
        self.file("etc/group", _GROUPS.encode())
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    @property
    def content(self) -> bytes:
        return self._file.getvalue()

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._add(name, tarfile.REGTYPE, mode, content=content)

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def _add(self, name: str, kind: bytes, mode: int, *, target: str = "", content: bytes = b"") -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname, info.size = kind, mode, target, len(content)
        self._tar.addfile(info, io.BytesIO(content))
