"""The command run: starts a training, and restarts it until it has ended well."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from ckptstore.cli.options import command, with_json
from ckptstore.cli.output import OutputClosedError, discard_stdout, log, print_json
from ckptstore.errors import NotAStoreError
from ckptstore.printable import printable

# The exit codes of a shell for a command that does not exist, or that may not be executed.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_STDERR = 2


@command
@click.option("--run", metavar="RUN", help="Only checkpoints of this run count as progress.")
@click.option(
    "--max-restarts", metavar="N", type=click.IntRange(min=0), help="Default: as long as there is progress."
)
@click.option(
    "--max-without-progress",
    metavar="N",
    type=click.IntRange(min=1),
    default=5,  # `resume` steps back to an older checkpoint at the fourth start
    show_default=True,
    help="Starts in a row without a new checkpoint.",
)
@click.option(
    "--pause",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Before a restart without progress; doubled for each further one, up to 60.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="From a second signal until COMMAND is killed.",
)
@with_json
@click.argument("command_line", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(  # noqa: PLR0917
    store_path: Path,
    run: str | None,
    max_restarts: int | None,
    max_without_progress: int,
    pause: float,
    grace: float,
    as_json: bool,
    command_line: tuple[str, ...],
) -> int:
    """Run a training, and restart it until it ends well.

    Put -- before COMMAND. It is restarted when it ends with 75, which is how an interrupted training ends, or
    is killed by a signal; after any other failure only if it has saved a checkpoint in STORE since it was
    started.

    SIGTERM, SIGUSR1 and SIGINT are passed on to COMMAND, which saves and ends; it is not restarted then. A
    second signal is passed on too, and COMMAND is killed after --grace. Only COMMAND itself gets the signal,
    so a shell in between needs `exec`. On Linux COMMAND gets SIGTERM if this process is killed.

    Ends with COMMAND's exit code: 0 done, 75 to be restarted by whatever started this command, 128 + N killed
    by signal N; 126 not executable, 127 not found. With --json COMMAND prints on stderr, so that stdout holds
    the one document.
    """
    from ckptstore.cli.supervisor import Limits, supervise

    limits = Limits(
        restarts=max_restarts, without_progress=max_without_progress, pause_s=pause, grace_s=grace
    )
    try:
        outcome = supervise(
            store_path, command_line, limits, log=_log, run=run, stdout=_STDERR if as_json else None
        )
    except NotAStoreError as error:
        raise click.UsageError(printable(str(error))) from error
    except OSError as error:
        if error.filename != command_line[0]:
            raise
        _log(f"{shlex.quote(command_line[0])}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    if as_json:
        try:
            print_json(outcome.to_json())
            sys.stdout.flush()
        except (OSError, OutputClosedError):
            discard_stdout()  # the exit code is that of the training
    return outcome.exit_code


def _log(message: str) -> None:
    log(f"ckptstore run: {printable(message)}")
