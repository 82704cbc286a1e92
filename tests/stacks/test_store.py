"""Small files at one URL: on this host, in an object store, and in a database."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from servers import Place

from stacks import object_store
from stacks.location import Location
from stacks.processes import maker_place
from stacks.store import LocalStore, Store, open_store


@pytest.fixture(params=["file", "s3", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/a%20b"
    place: Place = request.getfixturevalue(f"{request.param}_place")
    return place.url


@pytest.fixture
def store(url: str) -> Store:
    return open_store(Location(url))


def test_a_file_is_written_read_created_once_listed_and_deleted(store: Store) -> None:
    assert store.read("a/b.json") is None
    assert store.names("a") == []
    assert store.create("a/b.json", b"1")
    assert not store.create("a/b.json", b"2")
    assert store.read("a/b.json") == b"1"
    store.write("a/b.json", b"3")
    store.write("a/c.json", b"\0\xff")

    assert store.read("a/b.json") == b"3"
    assert store.read("a/c.json") == b"\0\xff"
    assert store.names("a") == ["b.json", "c.json"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert store.names("a") == ["c.json"]
    store.clear("a")
    assert store.names("a") == []


def test_a_long_listing_is_whole(store: Store) -> None:
    """An object store answers a thousand names at a time."""
    names = [f"{index:04}" for index in range(1003)]
    store.together(*(partial(store.write, f"a/{name}", b"") for name in names), lambda: store.write("a/b/c", b""))

    assert store.names("a") == [*names, "b"]
    store.clear("a")
    assert store.names("a") == []


def test_a_name_is_a_name_and_no_pattern(store: Store) -> None:
    for name in ("a_b", "axb", "a%b", "a.b"):
        store.write(f"{name}/one/two", b"")

    assert store.names("a_b") == ["one"]
    store.clear("a_b")
    store.clear("a%")
    assert store.names("a_b") == []
    assert [store.names(name) for name in ("axb", "a%b", "a.b")] == [["one"]] * 3


def test_one_of_many_that_create_a_file_at_once_has_made_it(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda index: store.create("x/one", str(index).encode()), range(8)))

    content = store.read("x/one")
    assert content is not None
    assert [index for index, done in enumerate(made) if done] == [int(content)]


def test_calls_at_once_share_one_client(s3_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making one takes a third of a second of the one thread in which all clients work."""
    opened = []
    make = object_store._open

    def counted(options: dict[str, str]) -> object:
        opened.append(options)
        return make(options)

    monkeypatch.setattr(object_store, "_open", counted)
    store = open_store(Location(s3_place.url))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.read, "abcdefgh")) == [None] * 8

    assert len(opened) == 1


def test_a_listing_shows_what_another_host_wrote_and_deleted_a_moment_ago(store: Store, url: str) -> None:
    other = open_store(Location(url))
    seen = []
    for index in range(5):
        other.write(f"x/{index}", b"")
        seen.append(len(store.names("x")))
    other.delete("x/0")

    assert seen == [1, 2, 3, 4, 5]
    assert store.names("x") == ["1", "2", "3", "4"]


def test_the_age_of_a_file_is_told_by_the_stores_clock(store: Store) -> None:
    assert store.age("x/one") is None
    store.write("x/one", b"1")
    first = store.age("x/one")

    assert first is not None
    assert timedelta(seconds=-1) <= first < timedelta(seconds=60)
    assert store.names("clock") == []


def test_a_url_leads_to_its_kind_of_store(tmp_path: Path) -> None:
    assert isinstance(open_store(Location(f"file://{tmp_path}")), LocalStore)


def test_what_a_killed_writer_began_is_removed_by_the_next_one(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    living = tmp_path / f".{maker_place()}-1-aaaa.part"
    elsewhere = tmp_path / f".00000000-{dead.pid}-aaaa.part"
    for part in (living, elsewhere, tmp_path / f".{maker_place()}-{dead.pid}-aaaa.part"):
        part.write_text("half")

    LocalStore(tmp_path).write("b.json", b"whole")

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, elsewhere.name, "b.json"])


class _Failing(BaseHTTPRequestHandler):
    """Passes requests on to moto, and first answers each one with 500, or not at all: before, or after it was done."""

    protocol_version = "HTTP/1.1"  # clients ask whether to go on before they send a body
    behind: str
    done_first: bool
    silent: bool
    seen: Counter[str]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {self.path}"
        failing = self.seen[request] < 1 + self.silent  # the HTTP client asks again by itself where no answer came
        status, content = 500, b""
        told: dict[str, str] = {}
        self.seen[request] += 1
        if not failing or self.done_first:
            kept = {name: text for name, text in self.headers.items() if name.lower() not in {"host", "expect"}}
            with closing(HTTPConnection(self.behind)) as moto:
                moto.request(self.command, self.path, body, kept)
                answer = moto.getresponse()
                if not failing:
                    status, told, content = (
                        answer.status,
                        {k.lower(): v for k, v in answer.headers.items()},
                        answer.read(),
                    )
        if failing and self.silent:
            self.close_connection = True
            return
        self.send_response(status)
        for name in {"etag", "last-modified", "content-type"} & told.keys():
            self.send_header(name, told[name])
        length = str(len(content)) if content else told.get("content-length", "0")  # an answer to HEAD tells another's
        self.send_header("Content-Length", length)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_DELETE = do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture(params=["undone", "done", "undone silent", "done silent"])
def failing(request: pytest.FixtureRequest, s3_place: Place) -> Iterator[Store]:
    """A store on a server that fails at each thing first, before it does it or after."""
    url = s3_place.url
    behind = url.partition("endpoint=http://")[2].partition("&")[0]
    way = {"done_first": request.param.startswith("done"), "silent": request.param.endswith("silent")}
    handler = type("Handler", (_Failing,), {"behind": behind, **way, "seen": Counter()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield open_store(Location(url.replace(behind, f"127.0.0.1:{server.server_port}")))
        server.shutdown()


def test_what_the_server_failed_to_do_is_done_again(failing: Store) -> None:
    assert failing.create("a/b.json", b"1")
    assert not failing.create("a/b.json", b"2")
    assert failing.read("a/b.json") == b"1"
    failing.write("a/c.json", b"3")
    assert failing.names("a") == ["b.json", "c.json"]
    assert failing.age("a/c.json") is not None
    failing.delete("a/b.json")
    assert failing.read("a/b.json") is None
    assert failing.names("clock") == []


def test_a_client_that_was_kept_from_running_while_it_connected_tries_again(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time limit has passed by then, though the server has answered."""
    store = open_store(Location(s3_place.url))
    store.write("a", b"1")
    tries = 0
    connect = asyncio.BaseEventLoop.create_connection

    async def slow(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever asyncio passes
        nonlocal tries
        tries += 1
        if tries == 1:
            time.sleep(object_store._CONNECT + 0.1)  # noqa: ASYNC251 - as if nothing ran in this process
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", slow)
    monkeypatch.setattr(object_store, "_CONNECT", 1)

    assert open_store(Location(s3_place.url)).read("a") == b"1"
    assert tries == 2
