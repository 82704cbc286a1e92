"""The Pulumi program of each target. Knows its cloud SDK; knows no launcher."""

from importlib.util import find_spec
from pathlib import Path


def _refuse_stranger() -> None:
    """Raise ImportError where a folder of the user's would be imported in the place of our package `stacks`."""
    spec = find_spec("stacks")
    if spec is None or spec.origin is None or Path(spec.origin).parent.parent != Path(__file__).parent.parent:
        there = "nowhere" if spec is None else next(iter(spec.submodule_search_locations or [str(spec.origin)]))
        message = f"run-launcher's package 'stacks' is hidden by {there}: rename that folder, or start from another one"
        raise ImportError(message)


_refuse_stranger()
