"""Folders for a while: of a preview, and of a process's sockets."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from stacks.processes import maker_place
from stacks.scratch import SOCKET_LIMIT, preview_folder, socket_folder, temporary_files


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


def test_a_folder_of_sockets_whose_process_was_killed_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("stacks.scratch.SOCKET_LIMIT", 1000)
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = tmp_path / f"run-launcher-engine-{maker_place()}-{gone.pid}-aaaa"
    elsewhere = tmp_path / f"run-launcher-engine-00000000-{gone.pid}-aaaa"
    for folder in (dead, elsewhere):
        (folder / "sockets").mkdir(parents=True)

    first, second = socket_folder(), socket_folder()
    assert set(tmp_path.iterdir()) == {elsewhere, first, second}
    assert first.stat().st_mode & 0o077 == 0


def test_temporary_files_lie_where_python_has_them_and_the_search_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, locked, file = tmp_path / "named", tmp_path / "absent" / "folder", tmp_path / "file"
    named.mkdir()
    file.touch()
    for values in ({"TMPDIR": named}, {"TMPDIR": locked, "TEMP": named}, {"TMPDIR": file, "TMP": named}, {}):
        monkeypatch.setattr(tempfile, "tempdir", None)
        for name in ("TMPDIR", "TEMP", "TMP"):
            monkeypatch.delenv(name, raising=False)
        for name, folder in values.items():
            monkeypatch.setenv(name, str(folder))
        before = named.stat().st_mtime_ns
        found = temporary_files()
        assert named.stat().st_mtime_ns == before
        assert str(found) == tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "tempdir", str(named))
    assert temporary_files() == named
