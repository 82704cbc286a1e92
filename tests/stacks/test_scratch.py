"""The folder that a preview works in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stacks.scratch import SOCKET_LIMIT, preview_folder


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with a path that a socket's name fits behind."""
    monkeypatch.setattr("tempfile.tempdir", "/tmp")  # noqa: S108 - pytest's own are too long
    return tmp_path


def test_it_lies_in_the_work_folder_under_the_name_of_its_process() -> None:
    work = Path("/tmp")  # noqa: S108 - short, and there
    with preview_folder(work) as first, preview_folder(work) as second:
        assert first.parent == second.parent == work
        assert first != second
        assert first.name.startswith(f"preview-{os.getpid()}-")
        assert first.stat().st_mode & 0o077 == 0

    assert not first.exists()
    assert not second.exists()


@pytest.mark.parametrize("name", ["absent", "x" * SOCKET_LIMIT])
def test_without_a_work_folder_that_fits_it_lies_among_temporary_files(short: Path, name: str) -> None:
    work = short / name
    if name != "absent":
        work.mkdir()
    with preview_folder(work) as folder:
        assert folder.parent == Path("/tmp")  # noqa: S108
        assert folder.name.startswith(f"run-launcher-preview-{os.getpid()}-")

    assert not folder.exists()
    assert (name == "absent") != work.exists()


def test_it_is_removed_where_the_preview_fails(short: Path) -> None:
    with pytest.raises(OSError, match="in between"), preview_folder(short / "absent") as folder:  # noqa: PT012 - what is raised inside
        (folder / "file").touch()
        message = "in between"
        raise OSError(message)

    assert not folder.exists()
