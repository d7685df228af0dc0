"""The command plot: metrics of runs as an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import command, open_store, several_runs, with_json, with_overwrite
from ckptstore.cli.output import echo, log, print_json
from ckptstore.errors import InvalidArgumentError, MetricNotFoundError, RunNotFoundError
from ckptstore.printable import printable
from ckptstore.report import text
from ckptstore.storage.layout import absolute, require_outside

if TYPE_CHECKING:
    from ckptstore.report.plot import ImageFormat, PlottedRun
    from ckptstore.store.store import CheckpointStore

_FORMATS: dict[str, ImageFormat] = {".png": "png", ".svg": "svg"}


@command
@click.argument("file", type=click.Path(path_type=Path))
@several_runs
@with_overwrite
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="May be repeated; all by default.")
@with_json
def plot(
    store_path: Path,
    file: Path,
    *,
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Plot metrics over epochs, across restarts.

    FILE ends in .png or .svg. Existing checkpoints are dots, the best is a star, the resume point a triangle,
    an interruption a dotted line. A metric and its val_ share a panel. Needs matplotlib:
    pip install 'ckptstore[plot]'.
    """
    from ckptstore.report.plot import draw
    from ckptstore.storage.output_files import write_file

    format = _FORMATS.get(file.suffix.lower())
    if format is None:
        raise click.UsageError(f"{printable(str(file))}: ends neither in .png nor in .svg")
    with open_store(store_path) as store:
        target = require_outside(store.path, absolute(file), "FILE")
        plotted = plotted_runs(store, runs, metrics)
        image, left_out = draw(plotted, title_of(store, plotted), format, metrics)
    written = write_file(target, image, overwrite=overwrite)
    if left_out:
        log(f"no room for: {', '.join(map(printable, left_out))} (choose with --metric)")
    if as_json:
        names = [run.history.run for run in plotted]
        print_json({"path": str(target), "nbytes": written.nbytes, "runs": names, "left_out": [*left_out]})
    else:
        echo(written_line(target, len(plotted), written.nbytes))


def written_line(target: Path, runs: int, nbytes: int) -> str:
    """Return the line that reports a file of some runs as written."""
    return f"{printable(str(target))}: {runs} run{'' if runs == 1 else 's'}, {text.size_text(nbytes)}"


def title_of(store: CheckpointStore, runs: list[PlottedRun]) -> str:
    """Return the title of a plot: the store, and the run where there is only one."""
    return f"{store.path}, run {runs[0].history.run}" if len(runs) == 1 else f"{store.path}"


def plotted_runs(
    store: CheckpointStore, runs: tuple[str, ...], metrics: tuple[str, ...] = ()
) -> list[PlottedRun]:
    """Return what a plot of some runs needs; of all runs where none is named.

    Raises:
        RunNotFoundError: There is no such run.
        MetricNotFoundError: None of them has such a metric.
        InvalidArgumentError: They have no metrics at all.
    """
    from ckptstore.report.plot import PlottedRun

    known = store.run_names()
    for run in runs:
        if run not in known:
            raise RunNotFoundError(run=run, store=store.path, known=known)
    found = [
        PlottedRun(
            history=store.history(summary.run),
            checkpoints=store.checkpoints(summary.run),
            best=summary.best,
            resume_point=store.resume_point(summary.run),
        )
        for summary in store.compare(*dict.fromkeys(runs))
    ]
    names = tuple(sorted({name for plotted in found for name in plotted.history.metrics}))
    for metric in metrics:
        if metric not in names:
            raise MetricNotFoundError(metric=metric, store=store.path, known=names)
    if not names:
        raise InvalidArgumentError(argument="STORE", value=str(store.path), reason="has no metrics to plot")
    return [plotted for plotted in found if plotted.history.metrics]
