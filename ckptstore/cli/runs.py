"""The commands that ask of runs: how their metrics went, and how they compare."""

from __future__ import annotations

from pathlib import Path

import click

from ckptstore.cli.options import command, of_one_run, open_store, ref_argument, with_json
from ckptstore.cli.output import print_json, print_table, progress_bar, say, tell
from ckptstore.errors import InvalidArgumentError
from ckptstore.report import text


@command
@of_one_run
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="This metric only; may be repeated.")
@with_json
def history(store_path: Path, run: str | None, metrics: tuple[str, ...], as_json: bool) -> None:
    """Show each metric of a run by epoch, across restarts.

    Also of checkpoints that retention has removed. Where the run was gone on with is told on stderr.
    """
    with open_store(store_path, run) as store:
        found = store.history(run or _only_run(store.runs()))
    if as_json:
        print_json(found.to_json())
        return
    if not found.epochs:
        say(f"run {found.run}: no checkpoints yet")
        return
    print_table(text.history_table(found, metrics))
    for resumed in found.resumes:
        where = "at its end" if resumed.batch is None else f"at batch {resumed.batch}"
        say(f"{text.time_text(resumed.at)}: gone on from epoch {resumed.epoch}, {where}")


def _only_run(runs: tuple[str, ...]) -> str:
    if len(runs) != 1:
        raise InvalidArgumentError(
            argument="--run", value=None, reason=f"must be said; runs here: {', '.join(runs) or 'none'}"
        )
    return runs[0]


@command
@click.argument("runs", nargs=-1)
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="This metric only; may be repeated.")
@with_json
def compare(store_path: Path, runs: tuple[str, ...], metrics: tuple[str, ...], as_json: bool) -> None:
    """Show runs side by side, each with its best by each metric.

    RUNS are all runs where none is named. Behind each best value stands its version.
    """
    with open_store(store_path) as store:
        summaries = store.compare(*runs, metrics=metrics or None)
    if as_json:
        print_json([summary.to_json() for summary in summaries])
    elif not summaries:
        say(f"{store.path}: no runs yet")
    else:
        print_table(text.comparison_table(summaries))


@command
@ref_argument("first", "A")
@ref_argument("second", "B")
@with_json
def diff(store_path: Path, first: str, second: str, as_json: bool) -> None:
    """Compare metrics and variables of two checkpoints.

    A and B are a version, "latest", "best:METRIC", "resume-point", or a tag. Of each variable that differs: its norm in
    A, the norm of the change and its share of that, the largest change of a value, and the share of values whose bits
    changed.
    """
    from ckptstore.report.variables import change_table, metrics_table

    with open_store(store_path) as store:
        pair = store.get(first), store.get(second)
        with progress_bar("diff", 2 * sum(one.nbytes for one in pair)) as progress:
            found = store.diff(*pair, progress=progress)
    if as_json:
        print_json(found.to_json())
        return
    if found.metrics:
        print_table(metrics_table(found))
        tell("")
    if found.changed:
        print_table(change_table(found.changed))
    tell(f"{len(found.changed)} of {len(found.variables)} variables differ")
    for path, (one, two) in found.unlike.items():
        tell(f"{text.printable(path)}: {one} in A, {two} in B")
    for where, paths in (("A", found.only_first), ("B", found.only_second)):
        for path in paths:
            tell(f"{text.printable(path)}: only in {where}")
