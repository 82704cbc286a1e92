"""The Docker Engine of the tests: it works, survives what tests do to it, and leaves nothing."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from images import BUSYBOX, WORKER, mounts

if TYPE_CHECKING:
    from dockerd import Daemon


def test_a_command_in_busybox_is_told_its_environment(dockerd: Daemon) -> None:
    with contextlib.closing(dockerd.client()) as client:
        said = client.containers.run(
            BUSYBOX, ["sh", "-c", "cat /proc/self/environ; id -u"], environment={"A": "é\n"}, remove=True
        )

    assert "A=é\n\0".encode() in said
    assert said.endswith(b"\x000\n")


def test_a_worker_imports_what_the_tests_import(dockerd: Daemon) -> None:
    with contextlib.closing(dockerd.client()) as client:
        volumes = [str(mount) for mount in mounts()]
        said = client.containers.run(WORKER, ["python", "-m", "dagster", "--version"], volumes=volumes, remove=True)
        code = "import dagster, launchers; print(launchers.__file__)"
        where = client.containers.run(WORKER, ["python", "-c", code], volumes=volumes, remove=True)

    assert b"dagster, version" in said
    assert where.endswith(b"launchers/__init__.py\n")
