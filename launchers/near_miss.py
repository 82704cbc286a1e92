"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def near_miss(word: str, known: Iterable[str]) -> str | None:
    """The one of the known names that is nearest to the word, whatever its case; None where none is near."""
    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word[:200].casefold(), names, n=1, cutoff=0.7)
    return names[close[0]] if close else None


def suggestion(word: str, known: Iterable[str], what: str) -> str:
    """The end of a refusal: "; did you mean 'x'?", or the whole list of what there is ("; {what}: a, b")."""
    names = sorted(known)
    near = near_miss(word, names)
    if near is not None:
        return f"; did you mean {near!r}?"
    return f"; {what}: {', '.join(names)}" if names else ""
