"""One call of the command line: its flags, what it says while it works, and how it ends."""

# ruff: noqa: PLC0415 - `--help` and the usage errors must not load what only some commands need

from __future__ import annotations

import errno
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import typer

from launchers.commands.choice import Choice, parameters
from launchers.commands.interrupts import noticed
from launchers.commands.output import OutputError
from stacks.errors import RunLauncherError

if TYPE_CHECKING:
    from pathlib import Path

    from launchers.config import ConfigWithOrigins
    from launchers.settings import Config
    from launchers.workspace import Workspace

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
_FOR_PROGRAMS: Final = {"json", "yaml"}
Body = Callable[..., int | None]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show all that an error knows.")]


@dataclass(frozen=True)
class Session:
    """The flags of one call as dotted keys of the configuration; None where one is absent."""

    flags: Mapping[str, object] = field(default_factory=dict)
    verbose: bool = False
    for_programs: bool = False
    """True where the result is JSON or YAML: then an error is a line of JSON."""
    file: Path | None = None
    """The configuration file that was named."""

    def config(self, **flags: object) -> Config:
        """The configuration that holds for this call; keywords are dotted keys with a double underscore."""
        return self.config_with_origins(**flags).config

    def config_with_origins(self, **flags: object) -> ConfigWithOrigins:
        """The same, with the origin of each value."""
        from launchers.config import load_config_with_origins

        named = {key.replace("__", "."): value for key, value in flags.items()}
        return load_config_with_origins({**self.flags, **named}, file=self.file)

    def config_of(self, file: Path | None) -> Config:
        """The configuration that holds for this call where another file is named than by its flags."""
        from launchers.config import load_config

        return load_config(self.flags, file=file)

    def workspace(self, config: Config | None = None) -> Workspace:
        """Backend and engine, with their progress on stderr."""
        from launchers.factory import make_workspace

        return make_workspace(config or self.config(), say)

    def report(self, error: Exception, run_id: str | None = None) -> int:
        """Say on stderr what went wrong, and with which of several runs; returns the exit code."""
        code, lines = self._account(error)
        if self.for_programs and lines:
            from launchers.commands.shapes import Problem

            say(Problem.of(error, lines[0], code, run_id).model_dump_json())
            return code
        say(*(f"run-launcher: {line}" if number == 0 else line for number, line in enumerate(lines)))
        return code

    def _account(self, error: Exception) -> tuple[int, list[str]]:
        """The exit code, and what is said: the message, then what belongs to it."""
        if isinstance(error, RunLauncherError):
            more = [error.details.rstrip() if self.verbose else "(-v shows more)"] if error.details else []
            return error.exit_code, [str(error), *more]
        if isinstance(error, OutputError):
            return (_BROKEN_PIPE, []) if error.reader_left else (1, [str(error)])
        if isinstance(error, OSError) and error.errno in _WAYS_OUT and not self.verbose:
            where = f"{error.filename}: " if error.filename else ""
            return 1, [f"{where}{error.strerror}: {_WAYS_OUT[error.errno]}"]
        if self.verbose:
            say("".join(traceback.format_exception(error)).rstrip())
        hint = "" if self.verbose else " (-v shows where)"
        first = next(iter(str(error).splitlines()), "no message")
        return 1, [f"{type(error).__name__}: {first}{hint}"]


def say(*lines: str) -> None:
    """Talk and progress: lines on stderr, at once. Where nobody listens any more, the command goes on."""
    with suppress(OSError):
        sys.stderr.writelines(f"{line}\n" for line in lines)
        sys.stderr.flush()


def command(
    app: typer.Typer, *, name: str | None = None, takes_command: bool = False, selects: bool = False
) -> Callable[[Body], Body]:
    """Register a function as a command: it gets the session and its options, and its answer is the exit code.

    None is 0. With `takes_command`, options end at the first word that is none, so that the worker's own need no `--`
    before them. With `selects`, it also gets a Choice of runs.
    """

    def register(function: Body) -> Body:
        @functools.wraps(function)
        def call(ctx: typer.Context, *, verbose: bool, **options: object) -> None:
            outer: Session = ctx.obj
            for_programs = str(options.get("output")) in _FOR_PROGRAMS
            session = Session(outer.flags, verbose or outer.verbose, for_programs, outer.file)
            try:
                with noticed():
                    chosen = (Choice.taken_from(options),) if selects else ()
                    code = function(session, *chosen, **options) or 0
            except Exception as error:  # noqa: BLE001 - the last one who could say it in words
                code = session.report(error)
            sys.exit(code)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[2 if selects else 1 :]
        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        more = inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
        options = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        signature = [context, *(parameters() if selects else []), *options, more]
        # typer reads the one or the other, by its version
        call.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
        app.command(name, context_settings={"allow_interspersed_args": not takes_command})(call)
        return function

    return register
