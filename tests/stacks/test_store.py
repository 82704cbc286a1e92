"""Small files at one URL: on this host, and on any file system that fsspec knows."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import pytest

from stacks.store import FsspecStore, LocalStore, Store, open_store


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/a%20b" if request.param == "file" else f"memory://{uuid.uuid4().hex}")


def test_a_file_is_written_read_created_once_listed_and_deleted(store: Store) -> None:
    assert store.read("a/b.json") is None
    assert store.names("a") == []
    assert store.create("a/b.json", b"1")
    assert not store.create("a/b.json", b"2")
    assert store.read("a/b.json") == b"1"
    store.write("a/b.json", b"3")
    store.write("a/c.json", b"4")

    assert store.read("a/b.json") == b"3"
    assert store.names("a") == ["b.json", "c.json"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.names("a") == ["c.json"]
    store.delete("a")
    assert store.names("a") == []


def test_a_url_leads_to_its_kind_of_store(tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}"), LocalStore)
    assert isinstance(open_store("memory://x"), FsspecStore)


def test_what_a_killed_writer_began_is_removed_by_the_next_one(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    own_part = tmp_path / ".b.json.1-aaaa.part"
    (tmp_path / f".b.json.{dead.pid}-aaaa.part").write_text("half")
    own_part.write_text("of a process that lives")

    LocalStore(tmp_path).write("b.json", b"whole")

    assert sorted(path.name for path in tmp_path.iterdir()) == [own_part.name, "b.json"]
