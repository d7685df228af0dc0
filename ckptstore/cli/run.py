"""The command run: starts a training, and restarts it until it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ckptstore.alerts.alert import ALERT_KINDS
from ckptstore.cli.options import FiniteRange, command, with_json
from ckptstore.cli.output import OutputClosedError, descriptor_to_show_on, discard_stdout, log, print_json
from ckptstore.errors import NotAStoreError
from ckptstore.printable import printable
from ckptstore.storage.layout import absolute
from ckptstore.validation import check_run

# The exit codes of a shell for a command that does not exist, or that may not be executed.
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


def _seconds(name: str, default: float, text: str) -> Callable[..., Any]:
    """Return a decorator that adds an option for a number of seconds, at least 0."""
    return click.option(
        name, metavar="SECONDS", type=FiniteRange(min=0), default=default, show_default=True, help=text
    )


def _seconds_or_off(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds; 0 for ``off``, None if the option is not given."""
    if value is None or value == "off":
        return None if value is None else 0.0
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds < float("inf"):
        raise click.BadParameter(f"{value!r} is neither a number of seconds, at least 1, nor off", ctx, param)
    return seconds


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
@_seconds(
    "--pause",
    1.0,
    "Before a restart; doubled for each start without progress, up to 60; varied by a quarter.",
)
@_seconds("--grace", 120.0, "From a signal that asks for a stop until COMMAND is killed.")
@click.option(
    "--hang-after",
    metavar="SECONDS",
    callback=_seconds_or_off,
    help="Without a new batch, until COMMAND is ended as one that hangs; or off. Default: learnt from the run.",
)
@_seconds("--disk-full-for", 3600.0, "For which room on a full disk is waited for.")
@click.option(
    "--log-limit",
    metavar="MIB",
    type=FiniteRange(min=1),
    default=512.0,
    show_default=True,
    help="What the logs of a run may take.",
)
@click.option(
    "--alert-url",
    metavar="URL",
    envvar="CKPTSTORE_ALERT_URL",
    help="Webhook that gets alerts (`ckptstore guide alerts`); also CKPTSTORE_ALERT_URL, which `ps` does not show.",
)
@click.option(
    "--alert-command", metavar="COMMAND", help="Shell command that gets alerts, as JSON on its stdin."
)
@click.option(
    "--alert-on",
    metavar="KIND",
    multiple=True,
    type=click.Choice(ALERT_KINDS),
    help="May be repeated. Default: all kinds but restart.",
)
@click.option(
    "--metrics-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Metrics for the textfile collector of node_exporter, every 15 s; name it NAME.prom.",
)
@click.option("--quiet", is_flag=True, help="Do not show COMMAND's output; the log has it.")
@with_json
@click.argument("command_line", metavar="COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(  # noqa: PLR0917
    store_path: Path,
    run: str | None,
    max_restarts: int | None,
    max_without_progress: int,
    pause: float,
    grace: float,
    hang_after: float | None,
    disk_full_for: float,
    log_limit: float,
    alert_url: str | None,
    alert_command: str | None,
    alert_on: tuple[str, ...],
    metrics_file: Path | None,
    quiet: bool,
    as_json: bool,
    command_line: tuple[str, ...],
) -> int:
    """Run a training, and restart it until it is done.

    Put -- before COMMAND. It is restarted after a crash, a kill, a hang, and exit code 75, which is how an
    interrupted training ends. It is not restarted after some starts without a new checkpoint in STORE, after
    the same exception twice at the same step, or when the disk stays full; the reason is printed and recorded.

    SIGTERM, SIGUSR1 and SIGINT are passed on to COMMAND, which saves and ends; it is not restarted then. It is
    killed after --grace, or soon after a second signal. Processes that it leaves behind are ended, except one
    that still saves. If this process is killed, COMMAND goes on; started again, it takes COMMAND over.

    COMMAND writes its output and its errors to a log (see `ckptstore logs`), which is shown on stdout, and
    with --json on stderr, so that stdout holds the one document.

    Ends with COMMAND's exit code: 0 done, 75 to be restarted by whatever started this command, 128 + N killed
    by signal N; 126 not executable, 127 not found. 4 means that another process runs this already.
    """
    from ckptstore.alerts.alerts import Alerts
    from ckptstore.supervisor.policy import Limits
    from ckptstore.supervisor.supervise import supervise

    limits = Limits(
        restarts=max_restarts,
        without_progress=max_without_progress,
        pause_s=pause,
        grace_s=grace,
        disk_full_s=disk_full_for,
        hang_after_s=hang_after,
        log_bytes=int(log_limit * (1 << 20)),
    )
    kinds = alert_on or tuple(kind for kind in ALERT_KINDS if kind != "restart")
    alerts = Alerts(url=alert_url, command=alert_command, kinds=kinds, log=_log)
    try:
        outcome = supervise(
            store_path,
            command_line,
            limits,
            log=_log,
            run=None if run is None else check_run(run),
            shown_on=None if quiet else descriptor_to_show_on(as_json=as_json),
            alerts=alerts,
            metrics_file=None if metrics_file is None else absolute(metrics_file),
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
