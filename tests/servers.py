"""Real servers for tests: moto's S3 in a process of its own, PostgreSQL in a temporary folder; stopped at the end."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

PASSWORD: Final = "gEheim/1 %"  # what a URL has to quote  # noqa: S105 - of a server that lives for one test session
_MOTO: Final = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer

one, answer = threading.Lock(), DomainDispatcherApplication.__call__

def call(self, environ, start_response):  # moto looks whether a key is there, then writes it: in S3 that is one step
    if "HTTP_IF_NONE_MATCH" not in environ:
        return answer(self, environ, start_response)
    with one:
        return answer(self, environ, start_response)

DomainDispatcherApplication.__call__ = call
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
ACCOUNT: Final = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What the clients of moto find in the environment."""


class Place(Protocol):
    """One backend on a server, as the server itself shows it."""

    @property
    def url(self) -> str:
        """Where it is, as Pulumi takes it."""

    def content(self) -> dict[str, bytes]:
        """Every key below the URL, with its content."""


class Server(Protocol):
    """A server that is running."""

    def place(self) -> Place:
        """A fresh, empty backend."""

    @property
    def pid(self) -> int:
        """The server's process."""

    def stop(self) -> None:
        """Stop the server before the end of the session: the backend is away."""


@dataclass
class Bucket:
    """A prefix in a bucket of moto's."""

    endpoint: str
    name: str = field(default_factory=lambda: f"b-{uuid.uuid4().hex[:12]}")

    @property
    def url(self) -> str:
        """Pulumi's way to write it."""
        return f"s3://{self.name}/team/runs?region=us-east-1&endpoint={self.endpoint}&s3ForcePathStyle=true"

    def content(self) -> dict[str, bytes]:
        """See Place."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
        assert [key for key in keys if not key.startswith("team/runs/")] == []
        return {
            key.removeprefix("team/runs/"): self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
            for key in keys
        }

    @cached_property
    def client(self) -> Any:  # noqa: ANN401 - botocore makes its classes at run time
        """A client of its own, which shares nothing with the code under test."""
        import boto3  # noqa: PLC0415 - only where S3 is tested

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",  # noqa: S106 - moto takes any
        )


@dataclass
class Moto:
    """moto's server."""

    process: subprocess.Popen[str]
    port: int

    @property
    def pid(self) -> int:
        """See Server."""
        return self.process.pid

    def place(self) -> Place:
        """See Server."""
        bucket = Bucket(f"http://127.0.0.1:{self.port}")
        bucket.client.create_bucket(Bucket=bucket.name)
        return bucket

    def stop(self) -> None:
        """See Server."""
        self.process.kill()
        self.process.wait()


@dataclass
class Database:
    """A database of a PostgreSQL server."""

    folder: Path
    name: str = field(default_factory=lambda: f"db_{uuid.uuid4().hex[:12]}")

    @property
    def url(self) -> str:
        """Pulumi's way to write it, with a password that has to be quoted."""
        return f"postgres://tester:{quote(PASSWORD, safe='')}@/{self.name}?host={self.folder}&sslmode=disable"

    def content(self) -> dict[str, bytes]:
        """See Place."""
        import psycopg  # noqa: PLC0415 - only where PostgreSQL is tested

        with self.connect() as connection:
            try:
                rows = connection.execute("SELECT key, data ->> 'data' FROM pulumi_state").fetchall()
            except psycopg.errors.UndefinedTable:
                return {}
        assert [key for key, _ in rows if not key.startswith(f"{self.name}/")] == []
        return {key.removeprefix(f"{self.name}/"): base64.b64decode(data) for key, data in rows}

    def connect(self, name: str | None = None) -> Any:  # noqa: ANN401
        """A connection of its own, which shares nothing with the code under test."""
        import psycopg  # noqa: PLC0415

        return psycopg.connect(
            host=str(self.folder), user="tester", password=PASSWORD, dbname=name or self.name, autocommit=True
        )


@dataclass
class Postgres:
    """A PostgreSQL server on a Unix socket, without TCP."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """See Server."""
        return self.process.pid

    def place(self) -> Place:
        """See Server."""
        database = Database(self.folder)
        with database.connect("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{database.name}"')
        return database

    def stop(self) -> None:
        """See Server."""
        self.process.send_signal(signal.SIGQUIT)  # SIGTERM would wait for its clients
        self.process.wait()


def absent(name: str) -> str | None:
    """Why a server cannot be had here; None if it can."""
    packages = {"s3": ("moto", "flask", "boto3", "s3fs"), "postgres": ("psycopg",)}[name]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if name == "postgres" and _tool("initdb") is None:
        return "no initdb (Debian: apt install postgresql)"
    if name == "postgres" and os.geteuid() == 0 and (_unprivileged() is None or shutil.which("setpriv") is None):
        return "PostgreSQL does not run as root, and there is no other user for it, or no setpriv to become them"
    return None


@contextmanager
def serving(name: str) -> Iterator[Server]:
    """Start a server, and stop it at the end."""
    with {"s3": _moto, "postgres": _postgres}[name]() as server:
        yield server


@contextmanager
def _moto() -> Iterator[Server]:
    command = [sys.executable, "-c", _MOTO]
    environment = {**os.environ, **ACCOUNT}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as it:
        assert it.stdout is not None
        try:
            yield Moto(it, int(it.stdout.readline()))
        finally:
            it.kill()


@contextmanager
def _postgres() -> Iterator[Server]:
    user = _unprivileged() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as made:  # a Unix socket's name is short
        folder = Path(made)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret):
            if user is not None:
                os.chown(path, user, -1)
        data = folder / "data"
        initdb = [_tool("initdb"), "-D", data, "-U", "tester", "--auth=scram-sha-256", f"--pwfile={secret}", "-N"]
        subprocess.run(_by(user, initdb), cwd="/", check=True, stdout=subprocess.DEVNULL)
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off"}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = (folder / "log").open("wb")
        process = subprocess.Popen(_by(user, [_tool("postgres"), "-D", data, *options]), cwd="/", stderr=log)
        server = Postgres(folder, process)
        try:
            _await(server)
            yield server
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGQUIT)
                process.wait()
            log.close()


def _await(server: Postgres) -> None:
    """Wait until the server answers: it tells nobody when."""
    tool = [str(_tool("pg_isready")), "-h", str(server.folder), "-q"]
    while subprocess.run(tool, check=False).returncode != 0:
        assert server.process.poll() is None, (server.folder / "log").read_text()


def _tool(name: str) -> Path | None:
    """A program of PostgreSQL's: Debian keeps those of the server off PATH."""
    found = shutil.which(name)
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return Path(found) if found else (kept[-1] if kept else None)


def _by(user: int | None, command: Sequence[object]) -> list[str]:
    """The command, run by a user; Popen's own `user` forks, which a process that serves gRPC may not survive."""
    before = [] if user is None else ["setpriv", f"--reuid={user}", "--clear-groups", "--"]
    return [*before, *map(str, command)]


def _unprivileged() -> int | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return None
