"""The commands that draw: a picture of runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.cli.options import command, open_store, with_json
from ckptstore.cli.output import print_json, say, tell
from ckptstore.errors import InvalidArgumentError, MetricNotFoundError, RunNotFoundError
from ckptstore.report import text
from ckptstore.storage.layout import absolute, require_outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.report.plot import ImageFormat, RunPicture
    from ckptstore.store.store import CheckpointStore

_FORMATS: dict[str, ImageFormat] = {".png": "png", ".svg": "svg"}


def of_some_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take runs, and whether its file may take the place of another."""
    runs = click.option("--run", "runs", metavar="RUN", multiple=True, help="May be repeated; else all runs.")
    return runs(
        click.option("--overwrite", is_flag=True, help="Take the place of a file that is there.")(function)
    )


@command
@click.argument("file", type=click.Path(path_type=Path))
@of_some_runs
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="May be repeated; else all.")
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
    """Draw metrics over epochs, across restarts.

    FILE ends in .png or .svg. Checkpoints that are there are marks, the best a star, the resume point a triangle,
    interruptions dotted lines. A metric and its val_ share a panel. Needs matplotlib: pip install 'ckptstore[plot]'.
    """
    from ckptstore.report.plot import draw
    from ckptstore.storage.output_files import write_file

    format = _FORMATS.get(file.suffix.lower())
    if format is None:
        raise click.UsageError(f"{text.printable(str(file))}: ends neither in .png nor in .svg")
    with open_store(store_path) as store:
        target = require_outside(store.path, absolute(file), "FILE")
        pictures = pictures_of(store, runs, metrics)
        image, left_out = draw(pictures, title_of(store, pictures), format, metrics)
    written = write_file(target, image, overwrite=overwrite)
    if left_out:
        say(f"no room for: {', '.join(map(text.printable, left_out))} (--metric chooses)")
    if as_json:
        names = [picture.history.run for picture in pictures]
        print_json({"path": str(target), "nbytes": written.nbytes, "runs": names, "left_out": [*left_out]})
    else:
        tell(made_line(target, len(pictures), written.nbytes))


def made_line(target: Path, runs: int, nbytes: int) -> str:
    """Return the line that tells what was made."""
    many = "" if runs == 1 else "s"
    return f"{text.printable(str(target))}: {runs} run{many}, {text.size_text(nbytes)}"


def title_of(store: CheckpointStore, pictures: list[RunPicture]) -> str:
    """Return what stands above a picture."""
    run = f", run {pictures[0].history.run}" if len(pictures) == 1 else ""
    return f"{store.path}{run}"


def pictures_of(
    store: CheckpointStore, runs: tuple[str, ...], metrics: tuple[str, ...] = ()
) -> list[RunPicture]:
    """Return what there is to draw of some runs, or all.

    Raises:
        RunNotFoundError: There is no such run.
        MetricNotFoundError: None of them has such a metric.
        InvalidArgumentError: They have no metrics at all.
    """
    from ckptstore.report.plot import RunPicture

    known = store.runs()
    for run in runs:
        if run not in known:
            raise RunNotFoundError(run=run, store=store.path, known=known)
    found = [
        RunPicture(
            history=store.history(summary.run),
            checkpoints=store.checkpoints(summary.run),
            best=summary.best,
            resume_point=store.resume_point(summary.run),
        )
        for summary in store.compare(*dict.fromkeys(runs))
    ]
    names = tuple(sorted({name for one in found for name in one.history.metrics}))
    for metric in metrics:
        if metric not in names:
            raise MetricNotFoundError(metric=metric, store=store.path, known=names)
    if not names:
        raise InvalidArgumentError(
            argument="STORE", value=str(store.path), reason="has no metrics that could be drawn"
        )
    return [one for one in found if one.history.metrics]
