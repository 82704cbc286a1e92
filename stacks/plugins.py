"""Where the provider plugins that Pulumi publishes are installed.

On PATH, else among those that `pulumi plugin install` keeps: any of the same major version will do.
https://www.pulumi.com/docs/iac/concepts/plugins/
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from stacks.engine import AttachedProvider, InstalledProvider, Provider
from stacks.errors import SetupError

_INSTALLED: Final = re.compile(r"resource-(?P<package>[a-z0-9-]+)-v(?P<version>\d+\.\d+\.\d+)")


def attached(providers: Iterable[Provider]) -> tuple[AttachedProvider, ...]:
    """Those that run inside this process."""
    return tuple(each for each in providers if isinstance(each, AttachedProvider))


def installed(providers: Iterable[Provider]) -> tuple[InstalledProvider, ...]:
    """Those that are installed as plugins."""
    return tuple(each for each in providers if isinstance(each, InstalledProvider))


def executables(providers: Iterable[Provider]) -> dict[str, Path]:
    """The executables of those that are installed, by package; raises SetupError for one that is not."""
    return {each.package: find_plugin(each) for each in installed(providers)}


def variables(providers: Iterable[Provider]) -> dict[str, str]:
    """What the environment of their plugins has beside the caller's."""
    return {name: value for each in installed(providers) for name, value in each.environment.items()}


def find_plugin(provider: InstalledProvider) -> Path:
    """The executable of a provider; raises SetupError with the command that installs it."""
    name = f"pulumi-resource-{provider.package}"
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path).absolute()
    major = provider.version.partition(".")[0]
    found = [each for each in _kept(provider.package, os.environ) if each[0][0] == int(major)]
    for _, folder in sorted(found, reverse=True):
        if os.access(folder / name, os.X_OK):
            return folder / name
    message = (
        f"the Pulumi provider {provider.package} {major}.x is not installed: "
        f"`pulumi plugin install resource {provider.package} {provider.version}` brings it, "
        f"or put its executable {name} on PATH"
    )
    raise SetupError(message)


def _kept(package: str, environment: Mapping[str, str]) -> Iterator[tuple[tuple[int, ...], Path]]:
    """The versions of a package that are kept for this user, with their folders."""
    home = environment.get("PULUMI_HOME") or os.path.expanduser("~/.pulumi")  # noqa: PTH111 - raises nothing without HOME
    for folder in Path(home, "plugins").glob(f"resource-{package}-v*"):
        match = _INSTALLED.fullmatch(folder.name)
        if match is not None and match["package"] == package:
            yield tuple(int(part) for part in match["version"].split(".")), folder
