"""The command attempts: the processes that trained each run, and how each ended."""

from __future__ import annotations

from pathlib import Path

import click

from ckptstore.cli.options import command, one_run, open_store, with_json
from ckptstore.cli.output import log, print_json, print_table


@command
@one_run
@click.option("--last", metavar="N", type=click.IntRange(1), help="Only the newest N.")
@with_json
def attempts(store_path: Path, run: str | None, last: int | None, as_json: bool) -> None:
    """Show each attempt at a run, and how it ended.

    An attempt is one process that trained the run. "from" is the version that it resumed from, "lost" how many
    batches the attempt before had trained behind that, "code" the git commit, with + where files differed
    from it. --json has all that was recorded: the command, versions of packages, devices, the environment,
    and of an exception its message and last frames.
    """
    from ckptstore.report.attempts import attempt_table

    with open_store(store_path, run) as store:
        found = store.attempts(run)
        path = store.path
    shown = found[-last:] if last is not None else found
    if as_json:
        print_json([attempt.to_json() for attempt in shown])
    elif not shown:
        log(f"{path if run is None else f'run {run}'}: no attempts are recorded")
    else:
        print_table(attempt_table(shown))
