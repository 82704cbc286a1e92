"""Globs over names and texts: matched as a whole, case and all, and compared with one another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

_TOKEN: Final = re.compile(r"\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)
_CONTROL: Final = r"\x00-\x1f\x7f"
# What the wildcards of a glob become where it is matched by another one: only what is as wide matches them.
_OPAQUE: Final = {"**": "\x01", "*": "\x02", "?": "\x03"}
_SET: Final = "\x04"


def matches(glob: str, text: str) -> bool:
    """True if the whole text is what the glob stands for.

    `*` stands for any characters but "/" and control characters, `**` for any but control characters, `?` for one,
    `[a-z]` and `[!a-z]` for one of a set.
    """
    return _compiled(glob).fullmatch(text) is not None


def any_matches(globs: Iterable[str], text: str) -> bool:
    """True if one of the globs matches the whole text."""
    return any(matches(glob, text) for glob in globs)


def covers(wide: str, narrow: str) -> bool:
    """True only if all that the narrow glob matches is matched by the wide one. Some that are covered are not seen."""
    text = "".join(_OPAQUE.get(token, _SET if _is_set(token) else token) for token in _TOKEN.findall(narrow))
    return wide == narrow or _covering(wide).fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _compiled(glob: str) -> re.Pattern[str]:
    wild = {"**": f"[^{_CONTROL}]*", "*": f"[^/{_CONTROL}]*", "?": f"[^/{_CONTROL}]"}
    return re.compile("".join(wild.get(token) or _one(token) for token in _TOKEN.findall(glob)))


@lru_cache(maxsize=4096)
def _covering(glob: str) -> re.Pattern[str]:
    wild = {"**": "[^\x00\x05-\x1f\x7f]*", "*": "[^/\x00\x01\x05-\x1f\x7f]*", "?": "[^/\x00-\x02\x05-\x1f\x7f]"}
    return re.compile("".join(wild.get(token) or _one(token) for token in _TOKEN.findall(glob)))


def _is_set(token: str) -> bool:
    return len(token) > 1 and token.startswith("[")


def _one(token: str) -> str:
    """A set of characters, or one that stands for itself."""
    if not _is_set(token):
        return re.escape(token)
    inner = token[1:-1]
    negated = inner.startswith("!")
    safe = re.sub(r"([\\^\[\]&~|])", r"\\\1", inner.removeprefix("!"))
    return f"[^/{_CONTROL}{safe}]" if negated else f"[{safe}]"
