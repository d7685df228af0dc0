"""Commands about runs and differences: runs, history, compare, diff."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from ckptstore.cli.options import command, one_run, open_store, ref_argument, with_json
from ckptstore.cli.output import echo, log, print_fitted, print_json, print_table, progress_bar, stdout_width
from ckptstore.errors import InvalidArgumentError
from ckptstore.printable import printable
from ckptstore.records import Attempt
from ckptstore.report import text
from ckptstore.report.attempts import reason_text
from ckptstore.report.run_list import run_list


@command
@with_json
def runs(store_path: Path, as_json: bool) -> None:
    """List runs, each with its state and where it stands now.

    A run is running, saving (its training waits for a save, or has ended and a save has not), hung,
    interrupted (it can be resumed), finished, failed (it ended by an error) or stopped (a supervisor gave it
    up). The states rest on locks and on signs of life of the training, which is neither asked nor delayed.
    """
    with open_store(store_path) as store:
        found = store.runs()
    if as_json:
        print_json([run.to_json() for run in found])
    elif not found:
        log(f"{store.path}: no runs yet")
    else:
        print_fitted(*run_list(found, stdout_width()))


@command
@one_run
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="Only this metric; may be repeated.")
@with_json
def history(store_path: Path, run: str | None, metrics: tuple[str, ...], as_json: bool) -> None:
    """Show each metric of a run by epoch, across restarts.

    Includes epochs whose checkpoints retention has removed. Where the run was resumed is reported on stderr.
    """
    with open_store(store_path, run) as store:
        found = store.history(run or _only_run(store.run_names()))
        attempts = store.attempts(found.run)
    if as_json:
        print_json(found.to_json())
        return
    if not found.epochs:
        log(f"run {found.run}: no checkpoints yet")
        return
    print_table(text.history_table(found, metrics))
    for resumed in found.resumes:
        where = "at its end" if resumed.batch is None else f"at batch {resumed.batch}"
        again = "" if resumed.interrupted else ", where it had finished"
        before = _before(resumed.at, attempts) if resumed.interrupted else None
        why = "" if before is None else f"; attempt {before.attempt} had ended: {reason_text(before)}"
        log(f"{text.time_text(resumed.at)}: resumed from epoch {resumed.epoch}, {where}{again}{why}")


def _before(moment: datetime, attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt before the one that was being made at a moment, or None."""
    begun = [attempt for attempt in attempts if attempt.started_at <= moment]
    return begun[-2] if len(begun) > 1 and begun[-2].reason is not None else None


def _only_run(runs: tuple[str, ...]) -> str:
    if len(runs) != 1:
        known = ", ".join(runs) or "none"
        raise InvalidArgumentError(argument="--run", value=None, reason=f"must be given; runs here: {known}")
    return runs[0]


@command
@click.argument("runs", nargs=-1)
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="Only this metric; may be repeated.")
@with_json
def compare(store_path: Path, runs: tuple[str, ...], metrics: tuple[str, ...], as_json: bool) -> None:
    """Show runs side by side, each with its best by each metric.

    Without RUNS, all runs are shown. The version of the checkpoint follows each best value.
    """
    with open_store(store_path) as store:
        summaries = store.compare(*runs, metrics=metrics or None)
    if as_json:
        print_json([summary.to_json() for summary in summaries])
    elif not summaries:
        log(f"{store.path}: no runs yet")
    else:
        print_table(text.comparison_table(summaries))


@command
@ref_argument("first", "A")
@ref_argument("second", "B")
@with_json
def diff(store_path: Path, first: str, second: str, as_json: bool) -> None:
    """Compare metrics and variables of two checkpoints.

    A and B are a version, "latest", "best:METRIC", "resume-point", or a tag. For each variable that differs:
    its norm in A, the norm of the change and its share of that, the largest change of a value, and the share
    of values whose bits changed.
    """
    from ckptstore.report.variables import change_table, metrics_table

    with open_store(store_path) as store:
        pair = store.get(first), store.get(second)
        with progress_bar("diff", 2 * sum(checkpoint.nbytes for checkpoint in pair)) as progress:
            found = store.diff(*pair, progress=progress)
    if as_json:
        print_json(found.to_json())
        return
    if found.metrics:
        print_table(metrics_table(found))
        echo("")
    if found.changed:
        print_table(change_table(found.changed))
    echo(f"{len(found.changed)} of {len(found.variables)} variables differ")
    for path, (in_first, in_second) in found.unlike.items():
        echo(f"{printable(path)}: {in_first} in A, {in_second} in B")
    for name, paths in (("A", found.only_first), ("B", found.only_second)):
        for path in paths:
            echo(f"{printable(path)}: only in {name}")
