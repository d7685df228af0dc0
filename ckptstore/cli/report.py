"""The command report: an HTML page about runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import command, open_store, several_runs, with_json, with_overwrite
from ckptstore.cli.output import echo, log, print_json
from ckptstore.cli.plot import plotted_runs, title_of, written_line
from ckptstore.errors import CorruptPayloadError, MissingPackageError, StorageError
from ckptstore.printable import printable
from ckptstore.storage.layout import absolute, require_outside

if TYPE_CHECKING:
    from ckptstore.records import Run
    from ckptstore.report.html import RunReport
    from ckptstore.report.plot import PlottedRun
    from ckptstore.store.store import CheckpointStore


@command
@click.argument("file", type=click.Path(path_type=Path))
@several_runs
@with_overwrite
@with_json
def report(store_path: Path, file: Path, *, runs: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Write a report on runs as one HTML file.

    Plot, best, attempts, checkpoints, layers and configuration, cost of saving, and events. The page is complete in
    itself and loads nothing. The plot needs matplotlib (pip install 'ckptstore[plot]'); without it the report
    says that it is left out, and so does a line on stderr.
    """
    from ckptstore.report.html import MAX_EVENTS, page
    from ckptstore.storage.output_files import write_file

    if file.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"{printable(str(file))}: does not end in .html")
    with open_store(store_path) as store:
        target = require_outside(store.path, absolute(file), "FILE")
        plotted = plotted_runs(store, runs)
        image, no_image = _picture(plotted, title_of(store, plotted))
        # One event more than the page shows, so that it can tell that there are older ones.
        states = {run.name: run for run in store.runs()}
        reports = [
            _report_on(store, run, states.get(run.history.run), max_events=MAX_EVENTS + 1) for run in plotted
        ]
        html = page(title_of(store, plotted), datetime.now(UTC), reports, image, no_image=no_image)
    written = write_file(target, html.encode(errors="backslashreplace"), overwrite=overwrite)
    if as_json:
        names = [run.history.run for run in plotted]
        print_json({"path": str(target), "nbytes": written.nbytes, "runs": names})
    else:
        echo(written_line(target, len(plotted), written.nbytes))


def _picture(plotted: list[PlottedRun], title: str) -> tuple[bytes | None, str]:
    """Return the plot, or None and the reason why there is none, which is logged too."""
    from ckptstore.report.plot import draw

    try:
        return draw(plotted, title, "png")[0], ""
    except MissingPackageError as error:
        reason = f"The picture is left out: {error}"
        log(reason)
        return None, reason


def _report_on(store: CheckpointStore, plotted: PlottedRun, now: Run | None, *, max_events: int) -> RunReport:
    from ckptstore.report.html import RunReport
    from ckptstore.store.contents import configuration_of, layout_of

    layout, configuration = {}, {}
    newest = next(reversed(plotted.checkpoints), None)
    if newest is not None:
        try:
            layout = layout_of(newest)
            configuration = configuration_of(newest)
        except (CorruptPayloadError, StorageError) as error:
            log(f"no configuration of run {plotted.history.run}: {printable(error.message)}")
    events = store.events(run=plotted.history.run, limit=max_events)
    return RunReport(
        plotted=plotted,
        now=now,
        events=events,
        layout=layout,
        configuration=configuration,
        attempts=store.attempts(plotted.history.run),
    )
