"""The arguments of a run that was launched before, for its program on disk: sealed, since nothing may change them."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, TypeVar

from programs.args import ARGS_KEY, LauncherTemplate, ProgramArgs

LAUNCHED_KEY: Final = "run-launcher:launched"
"""Where the seal stands: the SHA-256 of the stack's name and its arguments, as the launch had them."""

T = TypeVar("T", bound=LauncherTemplate)


def launched_config(project: str, stack: str, args: ProgramArgs[T]) -> dict[str, str]:
    """The stack's configuration in which a program declares the run again, as it was launched; without a secret."""
    plain, _ = args.to_config()
    return {ARGS_KEY: plain, LAUNCHED_KEY: _seal(project, stack, json.loads(plain))}


def read_launched(model: type[T]) -> ProgramArgs[T]:
    """The arguments of the launch, from the stack's configuration.

    Raises pulumi.RunError where they, or the stack that they are for, are not what was launched.
    """
    import pulumi  # noqa: PLC0415 - reading a template must not load it

    config = pulumi.Config("run-launcher")
    try:
        data = json.loads(config.require("args"))
        sealed = _seal(pulumi.get_project(), pulumi.get_stack(), data) == config.require("launched")
    except (ValueError, pulumi.ConfigMissingError):
        sealed = False
    if not sealed:
        raise pulumi.RunError(_CHANGED.format(stack=pulumi.get_stack()))
    return ProgramArgs[model].model_validate(data)  # type: ignore[valid-type]


def _seal(project: str, stack: str, data: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    words = json.dumps([project, stack, data], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


_CHANGED: Final = (
    "the configuration run-launcher:args of the stack {stack} is not the one that its run was launched with. "
    "A run is executed once: its worker is neither changed nor replaced, and nothing was done. Put it back "
    "(`run-launcher eject RUN DIR` writes it again). For something else launch another run; to execute the same "
    "again, launch the next attempt (`run-launcher launch --attempt`); to end this one, `pulumi destroy`"
)
