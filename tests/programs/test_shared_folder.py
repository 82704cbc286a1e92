"""A folder that runs share, and its resource as anybody could reach it: it acts on this user's handover alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc

from programs.provider.attach import serve
from programs.provider.folder import ForeignFolderError
from programs.provider.folder_resource import FOLDER
from programs.provider.shared_folder import FolderHandover, SharedFolder, digest, keep_place, read_place

FILES = {"f": "text", "below/g": "é"}
MINE = FolderHandover("shared-00/s", "b", FILES)
DURABLE = FolderHandover("shared-00/s", "b", None)
NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path) -> SharedFolder:
    return SharedFolder(tmp_path / "shared" / "s")


def urn(stack: str = "shared-00/s") -> str:
    project, name = stack.split("/")
    return f"urn:pulumi:{name}::{project}::{FOLDER}::folder"


def inputs(at: SharedFolder, **others: Any) -> struct_pb2.Struct:  # noqa: ANN401 - whatever a caller sends
    properties = struct_pb2.Struct()
    known: dict[str, Any] = {"folder": str(at.path), "backend": "b", "content": digest(FILES), "durable": False}
    properties.update({**known, **others})
    return properties


@contextmanager
def provider() -> Iterator[provider_pb2_grpc.ResourceProviderStub]:
    with serve() as server:
        server.admit(os.getpid())
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield provider_pb2_grpc.ResourceProviderStub(channel)


def create(folder: SharedFolder, stack: str = "shared-00/s", **others: object) -> Mapping[str, Any]:
    with provider() as stub:
        answer = stub.Create(provider_pb2.CreateRequest(urn=urn(stack), properties=inputs(folder, **others)))
        return dict(answer.properties)


def delete(folder: SharedFolder, stack: str = "shared-00/s", **others: object) -> None:
    with provider() as stub:
        stub.Delete(provider_pb2.DeleteRequest(id="s", urn=urn(stack), properties=inputs(folder, **others)))


def content(folder: SharedFolder) -> dict[str, str]:
    paths = (path for path in folder.content.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.content)): path.read_text() for path in paths}


# ---- what is made and removed ----


def test_what_was_handed_over_is_made_taken_over_and_removed(folder: SharedFolder) -> None:
    folder.hand_over(MINE)
    made = create(folder)
    inode = folder.content.stat().st_ino
    again = create(folder)

    assert made["path"] == again["path"] == str(folder.content)
    assert (content(folder), folder.content.stat().st_ino) == (FILES, inode)
    delete(folder)
    delete(folder)
    assert not folder.path.exists()


@pytest.mark.parametrize("harm", ["changed", "missing", "added", "linked", "half-made"])
def test_files_that_are_not_as_handed_over_are_put_right(folder: SharedFolder, harm: str) -> None:
    folder.hand_over(MINE)
    create(folder)
    folder.content.chmod(0o700)
    changed = folder.content / "f"
    if harm in {"changed", "linked", "missing"}:
        changed.unlink()
    if harm == "changed":
        changed.write_text("other")
    elif harm == "linked":
        changed.symlink_to("/etc/hostname")
    elif harm == "added":
        (folder.content / "more").write_text("")
    elif harm == "half-made":
        (folder.path / "part-of-a-killed-one" / "deep").mkdir(parents=True)
        folder.content.rename(folder.path / "part-2")

    create(folder)

    assert content(folder) == FILES
    assert sorted(path.name for path in folder.path.iterdir()) == ["content", "handover.json"]


def test_a_durable_folder_is_adopted_with_its_data_and_kept_as_long_as_it_has_any(folder: SharedFolder) -> None:
    folder.hand_over(DURABLE)
    create(folder, content="", durable=True)
    (folder.content / "data").write_text("precious")
    folder.hand_over(FolderHandover("shared-00/s", "another backend", None))
    create(folder, content="", durable=True, backend="another backend")

    delete(folder, content="", durable=True, backend="another backend")
    kept = content(folder)
    (folder.content / "data").unlink()
    delete(folder, content="", durable=True, backend="another backend")

    assert kept == {"data": "precious"}
    assert not folder.path.exists()


def test_data_that_its_user_closed_is_measured_and_given_up(folder: SharedFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("stays")
    folder.hand_over(DURABLE)
    folder.make(DURABLE)
    (folder.content / "closed").mkdir()
    (folder.content / "closed" / "a").write_text("12345")
    (folder.content / "link").symlink_to(outside)
    (folder.content / "closed").chmod(0o500)

    assert not folder.remove(data=False)
    assert folder.measure() == (2, 5 + len(str(outside)))
    assert folder.remove(data=True)
    assert (folder.path.exists(), outside.read_text()) == (False, "stays")


# ---- what is refused ----


@pytest.mark.parametrize(
    "call",
    [
        {"stack": "shared-00/t"}, {"stack": "runs-00/s"}, {"backend": "c"},
        {"content": digest({"f": "evil"})}, {"durable": True, "content": ""},
    ],
    ids=str,
)  # fmt: skip
def test_whoever_it_was_not_handed_over_to_makes_and_removes_nothing(folder: SharedFolder, call: Any) -> None:  # noqa: ANN401
    folder.hand_over(MINE)
    with pytest.raises(grpc.RpcError) as refused:
        create(folder, **call)
    before = sorted(folder.path.iterdir())
    create(folder)
    if {"stack", "backend"} & call.keys():
        with pytest.raises(grpc.RpcError):
            delete(folder, **call)

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert [path.name for path in before] == ["handover.json"]
    assert content(folder) == FILES


def test_a_folder_without_a_handover_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "shared" / "s"
    precious.mkdir(parents=True, mode=0o700)
    (precious / "data").write_text("precious")

    with pytest.raises(grpc.RpcError) as refused:
        delete(SharedFolder(precious))

    assert "nothing says whose" in str(refused.value.details())
    assert (precious / "data").read_text() == "precious"


@pytest.mark.parametrize(
    "harm", ["others write to it", "others write beside it", "others read it", "a link", "damaged"]
)
def test_a_handover_that_somebody_else_could_have_written_is_refused(folder: SharedFolder, harm: str) -> None:
    folder.hand_over(MINE)
    handover = folder.path / "handover.json"
    if harm == "others write to it":
        folder.path.chmod(0o777)
    elif harm == "others write beside it":
        folder.path.parent.chmod(0o777)
    elif harm == "others read it":
        handover.chmod(0o644)
    elif harm == "a link":
        handover.rename(folder.path.parent / "elsewhere")
        handover.symlink_to(folder.path.parent / "elsewhere")
    else:
        handover.write_text("{}")

    with pytest.raises(grpc.RpcError):
        create(folder)
    with pytest.raises((ForeignFolderError, OSError)):
        folder.remove(data=True)
    assert not folder.content.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_handover_of_another_user_is_refused(folder: SharedFolder) -> None:
    folder.hand_over(MINE)
    os.chown(folder.path / "handover.json", NOBODY, NOBODY)

    with pytest.raises(grpc.RpcError) as refused:
        create(folder)

    assert "not written by this user" in str(refused.value.details())


def test_a_folder_never_becomes_another_one(folder: SharedFolder) -> None:
    other = inputs(folder, folder="/elsewhere")
    with provider() as stub, pytest.raises(grpc.RpcError):
        stub.Diff(provider_pb2.DiffRequest(urn=urn(), olds=inputs(folder), old_inputs=inputs(folder), news=other))
    with provider() as stub:
        failed = stub.Check(provider_pb2.CheckRequest(urn=urn(), news=inputs(folder, folder="relative")))

    assert [each.property for each in failed.failures] == ["folder"]


# ---- which home it is ----


def test_whoever_asks_first_names_the_place_for_all(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        told = set(threads.map(lambda _: keep_place(tmp_path / "shared"), range(32)))

    assert read_place(tmp_path / "none") is None
    assert told == {read_place(tmp_path / "shared")}
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["place"]
    assert keep_place(tmp_path / "another") not in told


def test_a_place_that_was_damaged_is_told(tmp_path: Path) -> None:
    keep_place(tmp_path / "shared")
    (tmp_path / "shared" / "place").write_text("")

    with pytest.raises(ForeignFolderError, match="damaged"):
        keep_place(tmp_path / "shared")
