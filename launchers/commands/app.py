"""The commands and their options. Loads typer alone; what a command does is loaded when it is called."""

# ruff: noqa: PLC0415 - `--help` must not load what the commands need
# ruff: noqa: PLR0913, PLR0917, FBT002 - a command's options are its parameters

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from launchers.commands.choice import Choice
from launchers.commands.output import LogShape, Shape
from launchers.commands.session import Session, Verbose, command

app: Final = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

dagster_app: Final = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="For those who launch Dagster's runs: reconcile, check."
)
app.add_typer(dagster_app, name="dagster")

template_app: Final = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Launcher templates: list, show, lint, retire."
)
app.add_typer(template_app, name="template")

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run, a unique prefix of it, or @last.")]
RunNames = Annotated[list[str], typer.Argument(metavar="RUN", help="Ids of runs, unique prefixes, or @last.")]
Output = Annotated[Shape, typer.Option("--output", "-o", help="How the result is written.")]
BreakLock = Annotated[
    bool, typer.Option("--break-lock", help="Break a Pulumi lock whose owner nobody can prove gone: only if it is.")
]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="COMMAND", help="What the worker executes.", show_default=False)
]
TemplateName = Annotated[
    str | None, typer.Option("--template", "-t", help="Name, NAME@DIGEST or path of the launcher template.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the template that this run wants otherwise."),
]
Like = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Launch as that run was: its template as it was then, its command and tags."),
]
RunId = Annotated[str | None, typer.Option("--run-id", help="Id of the run; made up if not given.")]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME[=VALUE]", help="Variable of the run; without a value, yours."),
]
EnvFiles = Annotated[
    list[Path] | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        readable=True,
        help="File of NAME[=VALUE] lines, taken as they are; # is a comment.",
    ),
]
Tags = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Tag of the run.")]
LaunchLimit = Annotated[str | None, typer.Option(metavar="DURATION", help="Time limit of the launch itself (30s, 5m).")]
AttemptNumber = Annotated[int, typer.Option(min=0, help="1, 2 … to start a run that has ended again.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Show the worker's output until it ends.")]


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        from importlib.metadata import version

        typer.echo(f"run-launcher {version('run-launcher')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    config_file: Annotated[
        Path | None, typer.Option(help="The only configuration file that is read, in place of those that are found.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of all that is kept: state, records, logs, keys.")] = None,
    backend: Annotated[str | None, typer.Option(help="URL of the backend that runs are kept at.")] = None,
    engine: Annotated[str | None, typer.Option(help="Kind of the engine: auto or cli.")] = None,
    verbose: Verbose = False,
    version: Annotated[  # noqa: ARG001 - typer calls _version with it
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Launch the worker of a run, watch it, and end it without leaving anything behind.

    Exit codes: 0 ok, 1 error, 2 usage or configuration, 3 key of the backend, 4 the run or its worker, 5 refused by the
    template or a limit, 6 run not found, 8 cancelled, 9 timeout, 10 the worker FAILED, 129, 130 and 143 interrupted.
    """
    ctx.obj = Session({"home": home, "backend.url": backend, "engine.kind": engine}, verbose, file=config_file)


@command(app, takes_command=True)
def launch(
    session: Session,
    words: Words = None,
    template: TemplateName = None,
    run_id: RunId = None,
    changes: Changes = None,
    like: Like = None,
    env: Env = None,
    env_file: EnvFiles = None,
    tag: Tags = None,
    timeout: LaunchLimit = None,
    attempt: AttemptNumber = 0,
    follow: Follow = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Wait for the end, then remove the worker and its output.")
    ] = False,
    worker_code: Annotated[
        bool,
        typer.Option("--exit-code-from-worker", help="With --follow or --rm: exit as the worker did, not with 10."),
    ] = False,
    break_lock: BreakLock = False,
    wait_for_capacity: Annotated[
        bool, typer.Option("--wait-for-capacity", help="Where a limit is reached, wait within --timeout for room.")
    ] = False,
    output: Output = Shape.TABLE,
) -> int | None:
    """Start the worker of a run.

    Returns when it is started, or with --follow when it has ended: 0 if it SUCCEEDED, 10 if it FAILED. Ctrl-C of a
    followed launch terminates it, a second one leaves it to end by itself. A run that was launched before is not
    started again.
    """
    from launchers.commands.launching import Wanted, perform

    wanted = Wanted(
        tuple(words or ()), template, run_id, attempt, tuple(env or ()), tuple(env_file or ()), tuple(tag or ()),
        timeout, follow=follow, remove=remove, worker_code=worker_code, break_lock=break_lock,
        wait_for_capacity=wait_for_capacity, output=output, changes=tuple(changes or ()), like=like,
    )  # fmt: skip
    return perform(session, wanted)


@command(app, takes_command=True)
def preview(
    session: Session,
    words: Words = None,
    template: TemplateName = None,
    run_id: RunId = None,
    changes: Changes = None,
    like: Like = None,
    env: Env = None,
    env_file: EnvFiles = None,
    tag: Tags = None,
    timeout: LaunchLimit = None,
    attempt: AttemptNumber = 0,
    output: Output = Shape.TABLE,
) -> int | None:
    """Show what a launch would make, and where each value comes from.

    Nothing is made or started; only the engine is brought where there is none yet. Exits as the launch would.
    """
    from launchers.commands.launching import Wanted
    from launchers.commands.previewing import preview as show

    wanted = Wanted(
        tuple(words or ()), template, run_id, attempt, tuple(env or ()), tuple(env_file or ()), tuple(tag or ()),
        timeout, changes=tuple(changes or ()), like=like,
    )  # fmt: skip
    return show(session, wanted, output)


@command(app, selects=True)
def ps(session: Session, choice: Choice, output: Output = Shape.TABLE) -> None:
    """List the runs, the newest first; with names or selectors, only those."""
    from launchers.commands import looking

    looking.ps(session, choice, output)


@command(app)
def status(session: Session, runs: RunNames, output: Output = Shape.TABLE) -> int | None:
    """Show how runs are, or how they ended."""
    from launchers.commands import looking

    return looking.status(session, runs, output)


@command(app, selects=True)
def logs(
    session: Session,
    choice: Choice,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the workers have ended.")] = False,
    output: Annotated[LogShape, typer.Option("--output", "-o", help="How each line is written.")] = LogShape.TEXT,
) -> None:
    """Show what workers printed.

    Of one run as it was printed; of several line by line, each with its run before it.
    """
    from launchers.commands import following

    following.logs(session, choice, output, follow=follow)


@command(app, selects=True)
def wait(
    session: Session,
    choice: Choice,
    timeout: Annotated[str | None, typer.Option(metavar="DURATION", help="How long to wait (30s, 5m).")] = None,
    output: Output = Shape.TABLE,
) -> int | None:
    """Wait for the end of runs.

    Exits with 0 if all SUCCEEDED, else as the first of these that holds: 9 if one goes on after the timeout, 10 if one
    FAILED, 4 if one cannot be asked here, 6 if one is gone.
    """
    from launchers.commands import waiting

    return waiting.wait(session, choice, timeout, output)


@command(app, selects=True)
def why(session: Session, choice: Choice, output: Output = Shape.TABLE) -> int | None:
    """Show why runs are as they are, and their last lines."""
    from launchers.commands import looking

    return looking.why(session, choice, output)


@command(app, selects=True)
def terminate(
    session: Session,
    choice: Choice,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until nothing is left.")] = True,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before runs are ended that were selected.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show which runs would be ended, and do nothing.")] = False,
    break_lock: BreakLock = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up runs whose host is gone for good: forget them, end nothing.")
    ] = False,
    output: Output = Shape.TABLE,
) -> int | None:
    """End runs and remove all that they made.

    Workers are asked to end, and ended by force when their grace has passed. May be repeated. Ctrl-C leaves them to
    end by themselves. Runs that are selected, and not named, are shown and asked about; without a terminal, say --yes.
    """
    from launchers.commands import ending

    return ending.terminate(session, choice, ending.Manner(wait, yes, dry_run, break_lock, abandon, output))


@command(app)
def reconcile(
    session: Session,
    watch: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Go on for ever, with this pause in between (15s).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    output: Output = Shape.TABLE,
) -> int | None:
    """Put right what nobody waits for any more.

    Launches and terminations whose command died, runs past what their template's `keep` says, runs longer than their
    limits, wishes to end a run that were made elsewhere, and what no run owns. One process at a time does it; others
    with --watch stand by. Exits with 4 if something could not be put right.
    """
    from launchers.commands import reconciling

    return reconciling.reconcile(session, output, watch=watch, dry_run=dry_run)


@command(app)
def eject(
    session: Session,
    run: RunName,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty, or not there yet.")],
    output: Output = Shape.TABLE,
) -> None:
    """Write a folder in which a plain `pulumi` operates the run.

    There `preview` and `up` change nothing, and `destroy` ends the worker. The run itself is not touched.
    """
    from launchers.commands import ejecting

    ejecting.eject(session, run, folder, output)


@command(app)
def doctor(session: Session, output: Output = Shape.TABLE) -> int | None:
    """Show what run-launcher works with here.

    Changes nothing; exits with 1 if something is broken.
    """
    from launchers.commands import examining

    return examining.doctor(session, output)


@command(app)
def setup(
    session: Session,
    path: Annotated[
        bool, typer.Option("--path", help="Show only what comes first on PATH for a `pulumi` that you run by hand.")
    ] = False,
    output: Output = Shape.TABLE,
) -> None:
    """Find or bring the engine, as a first launch does."""
    from launchers.commands import preparing

    preparing.setup(session, output, path=path)


@command(app)
def config(
    session: Session,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Show where each value comes from.")] = False,
    output: Output = Shape.TABLE,
) -> None:
    """Show the configuration that holds here."""
    from launchers.commands import preparing

    preparing.config(session, output, show_origin=show_origin)


@command(app)
def demo(session: Session) -> int | None:
    """Launch a run, follow it, end it, show what is left."""
    from launchers.commands import showing

    return showing.demo(session)


@command(dagster_app, name="reconcile")
def dagster_reconcile(
    session: Session,
    every: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Go on for ever, with this pause in between (15s).")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT", help="With --every: serve gauges for Prometheus there, by default locally."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    output: Output = Shape.TABLE,
) -> int | None:
    """Bring the runs of the Dagster instance of DAGSTER_HOME and their workers together.

    Ends workers of runs that are over in Dagster, reports runs whose worker is gone, and does what `reconcile` does,
    for this instance's runs alone. One process at a time does it; others with --every stand by. Exits with 4 if
    something could not be put right.
    """
    from launchers.commands import dagster

    return dagster.reconcile(session, output, every=every, metrics=metrics, dry_run=dry_run)


@command(dagster_app, name="check")
def dagster_check(
    session: Session,  # noqa: ARG001 - a command gets one
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A dagster.yaml; by default that of DAGSTER_HOME.")
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="A workspace.yaml; by default that of this folder.")
    ] = None,
    output: Output = Shape.TABLE,
) -> int | None:
    """Show what would fail with a dagster.yaml, and what to write instead.

    Changes nothing; exits with 1 if something would fail.
    """
    from launchers.commands import dagster

    return dagster.check(file, workspace, output)


@command(template_app, name="list")
def template_list(session: Session, output: Output = Shape.TABLE) -> None:
    """List the templates that a name leads to, with what is wrong with them."""
    from launchers.commands import templates

    templates.listed(session, output)


@command(template_app, name="show")
def template_show(
    session: Session,
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help="Name, NAME@DIGEST or path.")],
    resolved: Annotated[bool, typer.Option("--resolved", help="With every value that holds, defaults too.")] = False,
    origin: Annotated[bool, typer.Option("--origin", help="Show where each value comes from.")] = False,
    output: Output = Shape.TABLE,
) -> None:
    """Show a template, with what it extends laid under it."""
    from launchers.commands import templates

    templates.show(session, template, output, resolved=resolved, origin=origin)


@command(template_app, name="lint")
def template_lint(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="TEMPLATE", help="Names or paths; by default all.", show_default=False)
    ] = None,
    output: Output = Shape.TABLE,
) -> int | None:
    """Show what is wrong with templates, and with the routes that lead to them.

    Exits with 2 if something is wrong; notes alone are no errors.
    """
    from launchers.commands import templates

    return templates.lint(session, names or [], output)


@command(template_app, name="retire")
def template_retire(
    session: Session,
    template: Annotated[str, typer.Argument(metavar="NAME", help="The name of a template, there or gone.")],
    delete_shared: Annotated[bool, typer.Option("--delete-shared", help="Remove them, with all they hold.")] = False,
    output: Output = Shape.TABLE,
) -> None:
    """Show what all runs of a template share for good, who uses it and how much it holds; or remove it.

    What runs use is never removed: terminate them first. The template's file is not touched.
    """
    from launchers.commands import templates

    templates.retire(session, template, output, delete=delete_shared)
