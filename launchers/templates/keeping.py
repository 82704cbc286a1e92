"""Templates as they were: kept by digest beside the records, for good, and found again as NAME@DIGEST."""

from __future__ import annotations

import re
from typing import Final

from pydantic import ValidationError

from launchers.registry import template_model
from launchers.templates.resolving import Loaded
from programs.args import LauncherTemplate
from stacks.errors import DamagedFileError, TemplateError
from stacks.records import Records

SEPARATOR: Final = "@"
_DIGEST: Final = re.compile(r"[0-9a-f]{4,64}")
_SHORT: Final = 12  # characters that are shown of one


def load_kept(records: Records, name: str, prefix: str) -> Loaded:
    """The template that was launched under a name, by the beginning of its digest; raises TemplateError.

    A name leads only to what was launched under it, so that what is said of names holds for their older versions.
    """
    if not _DIGEST.fullmatch(prefix):
        message = f"{name}@{prefix}: after the @ stands the beginning of a digest, 4 to 64 of 0-9 and a-f"
        raise TemplateError(message)
    known = records.digests(name)
    found = [digest for digest in known if digest.startswith(prefix)]
    if not found:
        found = sorted({each.digest for each in records.all(_ignore) if each.template == name})
        found = [digest for digest in found if digest.startswith(prefix)]
    if len(found) != 1:
        told = ", ".join(digest[:_SHORT] for digest in found or known) or "none"
        what = "several versions" if found else "no version"
        message = f"{what} of template {name} that was launched here begins with {prefix!r}; there are: {told}"
        raise TemplateError(message)
    return Loaded(name, kept(records, found[0]), f"{name}@{found[0][:_SHORT]}, as it was launched")


def kept(records: Records, digest: str, target: str | None = None) -> LauncherTemplate:
    """The template of a digest; where it is gone and a target is named, that target's with nothing set.

    Raises DamagedFileError for a file that is not what its digest says.
    """
    path = f"templates/{digest}.json"
    data = records.template(digest)
    if data is None and target is None:
        raise DamagedFileError(path)
    data = data or {"target": target}
    try:
        return template_model(str(data["target"])).model_validate(data)
    except ValidationError as error:
        raise DamagedFileError(path) from error


def _ignore(_: object) -> None:
    """A record that cannot be read names no template."""
