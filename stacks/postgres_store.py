"""Small files in the table of Pulumi's PostgreSQL backend, one row each.

Table and content are laid out as pkg/backend/diy/postgres of Pulumi 3.259 does, so that checkpoints can be read and
written here too: `data` is {"data": base64}, and all keys begin with the name of the database (Location.prefix).
"""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, LiteralString

from stacks.errors import ConfigurationError
from stacks.location import Location

if TYPE_CHECKING:
    import psycopg
    from psycopg.sql import Composed

_CONNECT: Final = 3  # seconds until a server that does not answer is away
_QUERY: Final = 5.0
_LIBPQ: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "options",
        "passfile",
        "password",
        "port",
        "sslcert",
        "sslcompression",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslpassword",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)
"""The parameters that libpq takes itself; any other sets one of the session's, as with Pulumi's driver."""
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
    key TEXT PRIMARY KEY,
    data JSON NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS {index} ON {table} (key text_pattern_ops)
"""
_CLEAR: Final = r"""
DELETE FROM {table}
WHERE key LIKE replace(replace(replace(%s, '\', '\\'), '%%', '\%%'), '_', '\_') || '/%%' RETURNING 1
"""
_NAMES: Final = r"""
SELECT DISTINCT split_part(substr(key, length(%s) + 2), '/', 1) FROM {table}
WHERE key LIKE replace(replace(replace(%s, '\', '\\'), '%%', '\%%'), '_', '\_') || '/%%'
"""


class PostgresStore:
    """The rows of one table. Safe from many threads, which take turns; each forked process has its own connection."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._guard = threading.Lock()
        self._opened: tuple[int, psycopg.Connection[Any]] | None = None

    def read(self, path: str) -> bytes | None:
        """See Store."""
        rows = self._ask("SELECT data ->> 'data' FROM {table} WHERE key = %s", self._key(path))
        return base64.b64decode(rows[0][0]) if rows else None

    def write(self, path: str, content: bytes) -> None:
        """See Store."""
        self._change(
            "INSERT INTO {table} (key, data) VALUES (%s, %s) "
            "ON CONFLICT (key) DO UPDATE SET data = excluded.data, updated_at = clock_timestamp() RETURNING 1",
            self._key(path),
            _packed(content),
        )

    def create(self, path: str, content: bytes) -> bool:
        """See Store."""
        return bool(
            self._change(
                "INSERT INTO {table} (key, data) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING 1",
                self._key(path),
                _packed(content),
            )
        )

    def delete(self, path: str) -> None:
        """See Store."""
        self._ask("DELETE FROM {table} WHERE key = %s RETURNING 1", self._key(path))

    def clear(self, path: str) -> None:
        """See Store."""
        self._ask(_CLEAR, self._key(path))

    def together(self, *calls: Callable[[], object]) -> None:
        """See Store. They take turns."""
        for call in calls:
            call()

    def names(self, path: str) -> list[str]:
        """See Store."""
        key = self._key(path)
        rows = self._ask(_NAMES, key, key)
        return sorted(row[0] for row in rows)

    def age(self, path: str) -> timedelta | None:
        """See Store."""
        rows = self._ask("SELECT clock_timestamp() - updated_at FROM {table} WHERE key = %s", self._key(path))
        return rows[0][0] if rows else None

    def _key(self, path: str) -> str:
        return f"{self._location.prefix}{path}"

    def _change(self, query: LiteralString, *values: str) -> list[Any]:
        """As `_ask`, but makes the table where there is none."""
        psycopg = _driver()
        with self._guard:
            try:
                return self._run(query, values)
            except psycopg.errors.UndefinedTable:
                self._make_table()
                return self._run(query, values)

    def _ask(self, query: LiteralString, *values: str) -> list[Any]:
        """The rows of a query; none where there is no table."""
        psycopg = _driver()
        with self._guard:
            try:
                return self._run(query, values)
            except psycopg.errors.UndefinedTable:
                return []

    def _run(self, query: LiteralString, values: tuple[str, ...]) -> list[Any]:
        """Run a query, once more on a fresh connection where the one that was kept has been closed meanwhile."""
        psycopg = _driver()
        kept = self._opened
        try:
            return self._execute(query, values)
        except psycopg.OperationalError:
            if kept is None or kept[0] != os.getpid() or not kept[1].closed:
                raise
        return self._execute(query, values)

    def _execute(self, query: LiteralString, values: tuple[str, ...]) -> list[Any]:
        connection = self._connection()
        with _within(connection, _QUERY):
            return connection.execute(self._composed(query), values).fetchall()

    def _make_table(self) -> None:
        """As Pulumi does; two that make it at once can both be told that it is there."""
        psycopg = _driver()
        for statement in _TABLE.split(";"):
            try:
                self._connection().execute(self._composed(statement))
            except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
                continue

    def _composed(self, query: LiteralString) -> Composed:
        from psycopg import sql  # noqa: PLC0415

        table = self._location.options.get("table", "pulumi_state").split(".")
        index = f"{table[-1]}_key_prefix_idx"
        return sql.SQL(query).format(table=sql.Identifier(*table), index=sql.Identifier(index))

    def _connection(self) -> psycopg.Connection[Any]:
        if self._opened is None or self._opened[0] != os.getpid() or self._opened[1].closed:
            made = _connect(self._location)
            weakref.finalize(self, _close, os.getpid(), made)
            self._opened = os.getpid(), made
        return self._opened[1]


def _packed(content: bytes) -> str:
    return json.dumps({"data": base64.b64encode(content).decode()})


def _close(pid: int, connection: psycopg.Connection[Any]) -> None:
    if pid == os.getpid():  # else it is the parent's, which goes on with it
        connection.close()


def _driver() -> ModuleType:
    try:
        import psycopg  # noqa: PLC0415 - other backends do without
    except ImportError as error:
        message = "a backend at postgres:// needs the extra 'postgres': pip install 'run-launcher[postgres]'"
        raise ConfigurationError(message) from error
    return psycopg


def _connect(location: Location) -> psycopg.Connection[Any]:
    session = {name: value for name, value in location.options.items() if name not in _LIBPQ and name != "table"}
    given = {name: value for name, value in location.options.items() if name in _LIBPQ}
    quoted = {name: value.replace("\\", r"\\").replace(" ", r"\ ") for name, value in session.items()}
    settings = [given.pop("options", ""), *(f"-c {name}={value}" for name, value in quoted.items())]
    defaults = {"connect_timeout": str(_CONNECT), "sslmode": os.environ.get("PGSSLMODE", "require")}
    parameters: dict[str, Any] = {**defaults, **location.server, **given, "options": " ".join(filter(None, settings))}
    made: psycopg.Connection[Any] = _driver().connect(autocommit=True, **parameters)
    return made


@contextmanager
def _within(connection: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Hang up on a server that took a query and does not answer in time: libpq itself would wait for ever."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        timer = threading.Timer(seconds, line.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
