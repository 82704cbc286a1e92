"""The backend's URL as a person may write it: checked, and made absolute."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from launchers.near_miss import near_miss

# https://www.pulumi.com/docs/iac/concepts/state-and-backends/
_OTHERS: Final = ("s3", "gs", "azblob", "postgres", "https", "http")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_SECRET: Final = re.compile("pass|secret|token|key|sig|cred", re.IGNORECASE)
_FILE: Final = "file://"
_SUPPORTED: Final = "supported is file://, a folder that all launchers of these runs can reach"


def check_url(url: str) -> str:
    """The URL itself if it is one that run-launcher can use; ValueError says what it must be.

    Three forms: file:///folder, file://~/folder for the user's home, and file://./folder (or file://../folder) for a
    folder beside the file that says it. A refusal never repeats the URL, which may hold a password.
    """
    match = _SCHEME.match(url)
    if match is None:
        message = f"is no URL: write a folder as {_FILE}/folder, or {_FILE}./folder for one beside this file"
        raise ValueError(message)
    scheme = match[1].lower()
    if scheme != "file":
        near = "; did you mean file://?" if near_miss(scheme, ["file"]) else ""
        later = "is not supported yet" if scheme in _OTHERS else "is unknown"
        message = f"the scheme {scheme}:// {later}{near or f'; {_SUPPORTED}'}"
        raise ValueError(message)
    if not re.match(r"file://(/|~(/|$)|\.\.?(/|$))", url):
        message = f"must be {_FILE}/folder (absolute), {_FILE}~/folder (home) or {_FILE}./folder (beside this file)"
        raise ValueError(message)
    if odd := re.search(r"[?#%\x00-\x1f]", url):
        message = f"a file:// URL is a plain path: {odd[0]!r} cannot stand in it"
        raise ValueError(message)
    return url


def has_password(url: str) -> bool:
    """True if a URL holds what only its user may know, and is never to be written down or shown."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True  # nobody can say what it holds
    return parts.password is not None or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query))


def shown_url(url: str) -> str:
    """The URL as it may be shown: of one that holds a password, the scheme alone."""
    return f"{url.partition(':')[0]}://… (holds a password)" if has_password(url) else url


def absolute_url(url: str, base: Path) -> str:
    """A checked URL with an absolute path; RuntimeError where the user's home is asked for and there is none."""
    path = base / Path(url.removeprefix(_FILE)).expanduser()
    return f"{_FILE}{os.path.normpath(path)}"
