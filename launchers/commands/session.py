"""One call of the command line: its flags, what it says while it works, and how it ends."""

# ruff: noqa: PLC0415 - `--help` and the usage errors must not load what only some commands need

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import typer

from stacks.errors import RunLauncherError

if TYPE_CHECKING:
    from launchers.config import ConfigWithOrigins
    from launchers.settings import Config
    from launchers.workspace import Workspace

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_ANOTHER: Final = "choose another folder for what is kept of runs, with RUN_LAUNCHER_HOME or --home"
_WAYS_OUT: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"make room, or {_ANOTHER}"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), f"let this user write there, or {_ANOTHER}"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG), _ANOTHER),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n), then try again"),
    **dict.fromkeys((errno.EAGAIN, errno.ENOMEM), "end some processes or raise their limit (ulimit -u, -v), try again"),
}
"""What helps against what the system refuses."""
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
Body = Callable[..., int | None]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show all that an error knows.")]


@dataclass(frozen=True)
class Session:
    """The flags of one call as dotted keys of the configuration; None where one is absent."""

    flags: Mapping[str, object] = field(default_factory=dict)
    verbose: bool = False

    def config(self, **flags: object) -> Config:
        """The configuration that holds for this call; keywords are dotted keys with a double underscore."""
        return self.config_with_origins(**flags).config

    def config_with_origins(self, **flags: object) -> ConfigWithOrigins:
        """The same, with the origin of each value."""
        from launchers.config import load_config_with_origins

        named = {key.replace("__", "."): value for key, value in flags.items()}
        return load_config_with_origins({**self.flags, **named})

    def workspace(self, config: Config | None = None) -> Workspace:
        """Backend and engine, with their progress on stderr."""
        from launchers.factory import make_workspace

        return make_workspace(config or self.config(), say)

    def report(self, error: BaseException) -> int:
        """Say on stderr what went wrong; returns the exit code."""
        if isinstance(error, RunLauncherError):
            say(f"run-launcher: {error}")
            if error.details and self.verbose:
                say(error.details.rstrip())
            elif error.details:
                say("(-v shows more)")
            return error.exit_code
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        if isinstance(error, BrokenPipeError):
            # Nobody reads on: let the interpreter's last flush go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _BROKEN_PIPE
        if isinstance(error, OSError) and error.errno in _WAYS_OUT and not self.verbose:
            where = f"{error.filename}: " if error.filename else ""
            say(f"run-launcher: {where}{error.strerror}: {_WAYS_OUT[error.errno]}")
            return 1
        if self.verbose:
            say("".join(traceback.format_exception(error)).rstrip())
        hint = "" if self.verbose else " (-v shows where)"
        first = next(iter(str(error).splitlines()), "no message")
        say(f"run-launcher: {type(error).__name__}: {first}{hint}")
        return 1


def say(line: str) -> None:
    """Talk and progress: a line on stderr, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def command(app: typer.Typer, *, takes_command: bool = False) -> Callable[[Body], Body]:
    """Register a function as a command: it gets the session and its options, and its answer is the exit code.

    None is 0. With `takes_command`, options end at the first word that is none, so that the worker's own need no `--`
    before them.
    """

    def register(function: Body) -> Body:
        @functools.wraps(function)
        def call(ctx: typer.Context, *, verbose: bool, **options: object) -> None:
            outer: Session = ctx.obj
            session = Session(outer.flags, verbose or outer.verbose)
            try:
                code = function(session, **options) or 0
                sys.stdout.flush()
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last one who could say it in words
                code = session.report(error)
            sys.exit(code)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        more = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
        parameters = [context, *own, more]
        # typer reads the one or the other, by its version
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(context_settings={"allow_interspersed_args": not takes_command})(call)
        return function

    return register
