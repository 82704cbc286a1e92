"""The backend's URL as a person may write it: checked, and made absolute."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from launchers.near_miss import near_miss
from stacks.backend import SCHEMES
from stacks.location import Location

# https://www.pulumi.com/docs/iac/concepts/state-and-backends/
_LATER: Final = ("gs", "azblob", "https", "http")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FILE: Final = "file://"
_SUPPORTED: Final = "supported are file://, a folder that all launchers of these runs can reach, s3:// and postgres://"


def check_url(url: str) -> str:
    """The URL itself if it is one that run-launcher can use; ValueError says what it must be.

    A folder has three forms: file:///folder, file://~/folder for the user's home, and file://./folder (or
    file://../folder) for one beside the file that says it. s3:// and postgres:// are written as Pulumi takes them. A
    refusal never repeats the URL, which may hold a password.
    """
    match = _SCHEME.match(url)
    if match is None:
        message = f"is no URL: write a folder as {_FILE}/folder, or {_FILE}./folder for one beside this file"
        raise ValueError(message)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        near = None if scheme in _LATER else near_miss(scheme, SCHEMES)
        later = "is not supported yet" if scheme in _LATER else "is unknown"
        message = f"the scheme {scheme}:// {later}; {f'did you mean {near}://?' if near else _SUPPORTED}"
        raise ValueError(message)
    if scheme != "file":
        _check_remote(url, scheme)
        return url
    if not re.match(r"file://(/|~(/|$)|\.\.?(/|$))", url):
        message = f"must be {_FILE}/folder (absolute), {_FILE}~/folder (home) or {_FILE}./folder (beside this file)"
        raise ValueError(message)
    if odd := re.search(r"[?#%\x00-\x1f]", url):
        message = f"a file:// URL is a plain path: {odd[0]!r} cannot stand in it"
        raise ValueError(message)
    return url


def _check_remote(url: str, scheme: str) -> None:
    if not url.startswith(f"{scheme}://"):
        message = f"must begin with {scheme}://"
        raise ValueError(message)
    Location(url).check()


def absolute_url(url: str, base: Path) -> str:
    """A checked URL with an absolute path; RuntimeError where the user's home is asked for and there is none."""
    path = base / Path(url.removeprefix(_FILE)).expanduser()
    return f"{_FILE}{os.path.normpath(path)}"
