"""Commands that find checkpoints: ls, show, best, latest, resume-point."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.cli.options import command, one_run, open_store, ref_argument, with_json
from ckptstore.cli.output import echo, log, print_json, print_many, print_one, print_table
from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.printable import printable
from ckptstore.report import text
from ckptstore.report.run_list import run_line

if TYPE_CHECKING:
    from ckptstore.formats.sharded.shards import Division
    from ckptstore.records import Checkpoint, Mode, Run
    from ckptstore.report.variables import Layout
    from ckptstore.store.store import CheckpointStore

# Of runs in these states `ls` says nothing; of more others than these it counts the states.
_AT_REST = ("finished", "interrupted")
_MOST_LINES = 5


@command
@one_run
@click.option("--where", metavar="CONDITION", help="Such as: 'val_loss < 0.3 and epoch >= 5'.")
@click.option("--order-by", metavar="NAME", help="A field or metric; -NAME for descending order.")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=1), help="The newest N; with --order-by the first N."
)
@with_json
def ls(
    store_path: Path,
    *,
    run: str | None,
    where: str | None,
    order_by: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List checkpoints, oldest first.

    A narrow terminal shows fewer columns; --json has all. A CONDITION compares fields (epoch, step,
    created_at, tags ...) and metrics; metric["a name"] is a metric of any name.
    """
    with open_store(store_path, run) as store:
        newest = limit is not None and order_by is None
        order = "-version" if newest else order_by
        checkpoints = store.checkpoints(run, states=None, where=where, order_by=order, limit=limit)
        runs = [] if as_json else store.runs()
    if newest:
        checkpoints.reverse()
    if not checkpoints and as_json:
        print_json([])
    elif not checkpoints:
        log(f"{store.path}: no checkpoints {'yet' if where is None else 'meet the condition'}")
    else:
        print_many(checkpoints, "ls", store, as_json)
        shown = {checkpoint.run for checkpoint in checkpoints}
        _log_states([known for known in runs if known.name in shown and known.state not in _AT_REST])


def _log_states(runs: list[Run]) -> None:
    """Log a line about each of some runs; of many, how many are in each state."""
    if len(runs) > _MOST_LINES:
        states = Counter(run.state for run in runs)
        log(f"runs: {', '.join(f'{count} {state}' for state, count in states.items())} (ckptstore runs)")
        return
    for run in runs:
        log(run_line(run))


@command
@ref_argument()
@with_json
def show(store_path: Path, ref: str, as_json: bool) -> None:
    """Show everything known about one checkpoint, with its layers.

    REF is a version, "latest", "best:METRIC", "resume-point", or a tag.
    """
    with open_store(store_path) as store:
        checkpoint = store.get(ref)
        attempt = store.attempt_of(checkpoint)
        run = next((run for run in store.runs() if run.name == checkpoint.run), None)
    from ckptstore.report.division import sharding_table, sizes_text
    from ckptstore.report.variables import layer_table

    layout, division = _contents(checkpoint)
    if as_json:
        variables = [
            {"path": path, "shape": shape, "dtype": dtype, **_parts(division, path)}
            for path, (shape, dtype) in layout.items()
        ]
        number = None if attempt is None else attempt.attempt
        facts = {"run_state": None if run is None else run.state, "attempt": number}
        sizes = None if division is None else division.sizes
        print_json({**checkpoint.to_json(), **facts, "process_nbytes": sizes, "variables": variables})
        return
    more = {} if division is None else {"shards": sizes_text(division)}
    print_table(text.details_table(checkpoint, attempt, run, more))
    if layout:
        echo("")
        print_table(layer_table(layout))
    if division is not None:
        sharded = sharding_table(division)
        if any(column.cells for column in sharded.columns):
            echo("")
            print_table(sharded)


def _contents(checkpoint: Checkpoint) -> tuple[Layout, Division | None]:
    """Return the variables of a checkpoint's payload and their parts; where it cannot be read, log why."""
    from ckptstore.store.contents import division_of, layout_of

    try:
        return layout_of(checkpoint), division_of(checkpoint)
    except (CorruptPayloadError, StorageError) as error:
        log(f"no table of layers: {printable(error.message)}")
        return {}, None


def _parts(division: Division | None, path: str) -> dict[str, Any]:
    """Return the number of a variable's parts and its sharding; nothing in a format of one process."""
    if division is None:
        return {}
    return {"parts": division.parts[path], "sharding": division.shardings.get(path)}


@command
@click.option(
    "--metric", metavar="NAME", required=True, help="As in the logs of Keras: val_loss, accuracy ..."
)
@click.option(
    "--mode", type=click.Choice(["min", "max"]), help="Which is better; not needed for common metrics."
)
@click.option("-k", "count", metavar="K", type=click.IntRange(min=1), help="List the K best, best first.")
@one_run
@with_json
def best(
    store_path: Path, *, metric: str, mode: Mode | None, count: int | None, run: str | None, as_json: bool
) -> None:
    """Print the checkpoint with the best value of a metric.

    The first line is its file, the second a summary; with -k, a list. NaN is never best; of equal values
    the earlier checkpoint is best. A line on stderr says if an epoch without a checkpoint was better.
    """
    with open_store(store_path, run) as store:
        if count is not None:
            print_many(store.best(metric, mode=mode, run=run, k=count), f"best:{metric}", store, as_json)
            return
        found = store.best(metric, mode=mode, run=run)
        print_one(found, f"best:{metric}", store, as_json)
        if found is not None:
            _log_better_epoch(store, found, store.better_epoch(found, metric, mode=mode))


def _log_better_epoch(store: CheckpointStore, found: Checkpoint, epoch: int | None) -> None:
    if epoch is not None:
        run, path = printable(found.run), printable(str(store.path))
        log(
            f"epoch {epoch} of run {run} was better, but has no checkpoint: it was not saved, or removed "
            f"(ckptstore history {path} --run {run})"
        )


@command
@one_run
@with_json
def latest(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint.

    The first line is its file, the second a summary.
    """
    with open_store(store_path, run) as store:
        print_one(store.latest(run), "latest", store, as_json)


@command
@one_run
@with_json
def resume_point(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint that a run can resume from.

    The first line is its file, the second a summary.
    """
    with open_store(store_path, run) as store:
        print_one(store.resume_point(run), "resume-point", store, as_json)
