"""The command report: an HTML page about runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import command, open_store, several_runs, with_json, with_overwrite
from ckptstore.cli.output import echo, log, print_json
from ckptstore.cli.plot import plotted_runs, title_of, written_line
from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.report import text
from ckptstore.storage.layout import absolute, require_outside

if TYPE_CHECKING:
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

    Plot, best, checkpoints, layers and configuration, cost of saving, and events. The page is complete in
    itself and loads nothing. Needs matplotlib: pip install 'ckptstore[plot]'.
    """
    from ckptstore.report.html import MAX_EVENTS, page
    from ckptstore.report.plot import draw
    from ckptstore.storage.output_files import write_file

    if file.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"{text.printable(str(file))}: does not end in .html")
    with open_store(store_path) as store:
        target = require_outside(store.path, absolute(file), "FILE")
        plotted = plotted_runs(store, runs)
        image, _ = draw(plotted, title_of(store, plotted), "png")
        # One event more than the page shows, so that it can tell that there are older ones.
        reports = [_report_on(store, run, max_events=MAX_EVENTS + 1) for run in plotted]
        html = page(title_of(store, plotted), datetime.now(UTC), reports, image)
    written = write_file(target, html.encode(errors="backslashreplace"), overwrite=overwrite)
    if as_json:
        names = [run.history.run for run in plotted]
        print_json({"path": str(target), "nbytes": written.nbytes, "runs": names})
    else:
        echo(written_line(target, len(plotted), written.nbytes))


def _report_on(store: CheckpointStore, plotted: PlottedRun, *, max_events: int) -> RunReport:
    from ckptstore.report.html import RunReport
    from ckptstore.store.contents import configuration_of, layout_of

    layout, configuration = {}, {}
    newest = next(reversed(plotted.checkpoints), None)
    if newest is not None:
        try:
            layout = layout_of(newest)
            configuration = configuration_of(newest)
        except (CorruptPayloadError, StorageError) as error:
            log(f"no configuration of run {plotted.history.run}: {text.printable(error.message)}")
    events = store.events(run=plotted.history.run, limit=max_events)
    return RunReport(plotted=plotted, events=events, layout=layout, configuration=configuration)
