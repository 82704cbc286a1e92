"""Where stacks are kept: URL, identity, key, and the folders beside them."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from stacks.claims import Claiming, Claims
from stacks.engine import StackName
from stacks.errors import ConfigurationError, KeyMismatchError
from stacks.lease_claims import LeaseClaims
from stacks.leases import OwnerLease
from stacks.location import Location
from stacks.scratch import SOCKET_LIMIT, temporary_files
from stacks.store import Store, open_store, read_json

_ODD: Final = re.compile(r"[?#%\x00-\x1f\udc80-\udcff]")
_LASTS: Final = 5.0  # seconds
SCHEMES: Final = ("file", "s3", "postgres")
_NO_KEY: Final = """the backend {backend} needs a key that all its launchers share. Make one, keep it safe, and name it:
  head -c 32 /dev/urandom | base64 >/path/to/run-launcher.passphrase; chmod 600 /path/to/run-launcher.passphrase
then add to run-launcher.yaml (or set RUN_LAUNCHER_BACKEND__PASSPHRASE_FILE):
  backend:
    passphrase_file: /path/to/run-launcher.passphrase"""


@dataclass(frozen=True)
class Backend:
    """One backend as this host sees it; nothing is made before the first launch.

    `home` holds all that is kept on this host: state, records, keys, run folders, archived output.
    """

    home: Path
    url: str = field(repr=False)
    passphrase_file: Path | None = None

    @classmethod
    def at(cls, home: Path, url: str | None = None, passphrase_file: Path | None = None) -> Backend:
        """The backend at a URL, by default a folder of the home. Raises ConfigurationError for what it cannot use."""
        odd = _ODD.search(f"{home}")
        if odd is not None:
            message = f"the home folder {str(home)!r} holds {odd[0]!r}, which cannot stand in URLs: choose another"
            raise ConfigurationError(message)
        with suppress(OSError):
            if home.stat().st_mode & stat.S_IWOTH:
                message = f"everybody may write to the home folder {home}, and could steer us by it: chmod o-w {home}"
                raise ConfigurationError(message)
        backend = cls(home, url or f"file://{home}/state", passphrase_file)
        if backend.location.scheme not in SCHEMES:
            message = f"the backend's scheme {backend.location.scheme}:// is not supported"
            raise ConfigurationError(message)
        if backend.location.folder is None and passphrase_file is None:
            raise ConfigurationError(_NO_KEY.format(backend=backend.location))
        return backend

    @cached_property
    def location(self) -> Location:
        """The URL, taken apart. Its text is fit to be shown."""
        return Location(self.url)

    @property
    def root(self) -> Path:
        """The folder that a file:// URL leads to; no other backend has one."""
        if self.location.folder is None:
            message = f"the backend {self.location} is no folder"
            raise ConfigurationError(message)
        return self.location.folder

    @cached_property
    def store(self) -> Store:
        """The small files beside the stacks: records, wishes, templates, leases."""
        return open_store(self.location)

    @cached_property
    def lease(self) -> OwnerLease:
        """This process's owner lease."""
        return OwnerLease(self.store)

    @cached_property
    def claims(self) -> Claiming:
        """The claims on this backend's stacks."""
        if self.location.folder is None:
            return LeaseClaims(self.store, self.lease)
        return Claims(self.location.folder / "claims", self.lease)

    def identity(self) -> str | None:
        """The backend's id, a random UUID; None before the first launch."""
        data = self._made()
        return None if data is None else str(data["id"])

    def open(self) -> str:
        """Make the backend and its key where there is none, prove the key, and return the backend's id.

        Raises KeyMismatchError before any work when the key is missing or another one.
        """
        data = self._made() or self._make()
        self._prove(data)
        return str(data["id"])

    def prove(self) -> str | None:
        """The backend's id once its key is proven; None where nothing was launched yet. Makes and changes nothing.

        Raises KeyMismatchError as `open` does.
        """
        data = self._made()
        if data is not None:
            self._prove(data)
            return str(data["id"])
        if self.passphrase_file is not None:
            _read_key(self.passphrase_file)
        return None

    def key_file(self) -> Path:
        """The file that holds the passphrase: the configured one, or one of this backend's own."""
        return self.passphrase_file or self.home / "keys" / f"{self._require_id()}.passphrase"

    def passphrase(self) -> str:
        """The passphrase itself."""
        return _read_key(self.key_file())

    def salt(self) -> str | None:
        """The encryption salt that all stacks of this backend share; None before the first operation."""
        data = self._lasting("salt.json", "encryptionsalt")
        return None if data is None else str(data["encryptionsalt"])

    def keep_salt(self, salt: str) -> None:
        """Keep the salt that the engine made for its first stack; the first one stays."""
        self.store.create("salt.json", b'{"v": 1, "encryptionsalt": "%s"}' % salt.encode())

    def paths(self, stack: StackName) -> tuple[Path, Path]:
        """The run folder of an attempt, and the file that its output is archived to."""
        return self.home / "runs" / stack.shard / stack.stack, self.home / "logs" / stack.shard / f"{stack.stack}.log"

    def scratch(self, stack: StackName) -> Path:
        """The folder of the operation on a stack: one name per stack, so that what a crash left is found again."""
        name = hashlib.sha256(f"{self.url} {stack.full}".encode()).hexdigest()[:16]
        own = f"run-launcher-{os.geteuid()}"
        short = Path("/tmp") / own / name  # noqa: S108 - where even the folder for temporary files has a long name
        places = (self.home / "work" / name, temporary_files() / own / name)
        return next((place for place in places if len(os.fsencode(place)) <= SOCKET_LIMIT), short)

    def _made(self) -> dict[str, Any] | None:
        """What tells this backend from any other; None before the first launch. It never changes."""
        return self._lasting("backend.json", "id", "canary")

    def _lasting(self, path: str, *keys: str) -> dict[str, Any] | None:
        """A file that is never changed; of a store on another host, what was read in the last few seconds holds."""
        known = self._read.get(path)
        if known is not None and time.monotonic() - known[0] < _LASTS:
            return known[1]
        data = read_json(self.store, path, *keys)
        if data is not None and self.location.folder is None:
            self._read[path] = time.monotonic(), data
        return data

    @cached_property
    def _read(self) -> dict[str, tuple[float, dict[str, Any]]]:
        return {}

    def _make(self) -> dict[str, Any]:
        identity = str(uuid.uuid4())
        own = None if self.passphrase_file is None else _read_key(self.passphrase_file)
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)  # its names alone would tell others what runs here
        made = self.home / "keys" / f"{identity}.passphrase"
        try:
            data = {"v": 1, "id": identity, "canary": _canary(own or _new_key(made), identity)}
            if self.store.create("backend.json", json.dumps(data).encode()):
                return data
        except OSError:
            if self.identity() != identity:
                made.unlink(missing_ok=True)
            raise
        made.unlink(missing_ok=True)  # another process was first; ours was never used
        return self._made() or data

    def _prove(self, data: dict[str, Any]) -> None:
        key = self.passphrase_file or self.home / "keys" / f"{data['id']}.passphrase"
        if not key.exists():
            message = (
                f"the key of the backend {self.location} is not at {key}: copy it there from the host that made the "
                "backend, or name it as backend.passphrase_file in run-launcher.yaml"
            )
            raise KeyMismatchError(message)
        if not hmac.compare_digest(_canary(_read_key(key), str(data["id"])), str(data["canary"])):
            message = (
                f"the key in {key} is not the one that the backend {self.location} was made with; nothing was done"
            )
            raise KeyMismatchError(message)

    def _require_id(self) -> str:
        identity = self.identity()
        if identity is None:
            message = f"nothing was launched yet at {self.location}"
            raise ConfigurationError(message)
        return identity


def _new_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = secrets.token_hex(32)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return key


def _read_key(path: Path) -> str:
    reason = "it is empty"
    try:
        if key := path.read_text(encoding="utf-8").strip():
            return key
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except OSError as error:
        reason = error.strerror or "it is no file"
    message = f"cannot use the key {path}: {reason}. Put the backend's key there, or make one for a new backend"
    raise KeyMismatchError(message)


@functools.lru_cache(maxsize=8)
def _canary(key: str, identity: str) -> str:
    """Proof of the key that does not give it away: slow enough (about 50 ms) for a passphrase that a person chose."""
    return hashlib.scrypt(key.encode(), salt=identity.encode(), n=2**13, r=8, p=1).hex()
