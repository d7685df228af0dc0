"""The table of runs of a screen: as many columns and rows as there is room for, among them the chosen run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ckptstore.records import ObservedRun, Run, RunState
from ckptstore.report.glyphs import Glyphs
from ckptstore.report.progress import epochs_text, finished_share, restarts, time_left_s
from ckptstore.report.screen import Screen
from ckptstore.report.table import ALWAYS_SHOWN, Column, cell_width, column, fit_columns, pad
from ckptstore.report.text import age_text, metric_text

if TYPE_CHECKING:
    from rich.text import Text

STYLES: dict[RunState, str] = {
    "running": "green",
    "saving": "cyan",
    "hung": "bold red",
    "interrupted": "yellow",
    "finished": "blue",
    "failed": "red",
    "stopped": "red",
}
_GAP = "  "
_MARK = 2
_WIDEST_RUN, _NARROWEST_RUN, _WIDEST_METRIC = 28, 8, 12
# Cells that the columns beside the run's name take, but for those of low priority.
_OTHERS = 50
_CURVE, _BAR = 8, 6


def run_table(
    screen: Screen, runs: Sequence[ObservedRun], chosen: ObservedRun, rows: int, now: datetime
) -> Iterator[Text]:
    """Yield a heading and the rows of some runs.

    Args:
        screen: Where they are shown.
        runs: All runs, in their order.
        chosen: One of them, which is among the rows.
        rows: How many rows there is room for; at most the number of runs.
        now: The time.
    """
    glyphs = screen.glyphs
    first = max(0, min(runs.index(chosen) - rows // 2, len(runs) - rows))
    # As wide as all rows need, not only those that are seen, so that nothing moves while the user goes through them.
    columns = fit_columns(_columns(runs, screen, now), screen.width - _MARK)
    hidden = ((glyphs.above, first), (glyphs.below, len(runs) - first - rows))
    more = "".join(f" {sign}{count}" for sign, count in hidden if count)
    room = screen.width - _MARK - cell_width(more)
    heading = _GAP.join(pad(column.name, column.width, left=column.left) for column in columns)
    heading = pad(glyphs.shorten(heading, room), room, left=True)
    yield screen.line((" " * _MARK, ""), (heading, "bold"), (more, "dim"))
    for number in range(first, first + rows):
        here = runs[number] is chosen
        row = [(f"{glyphs.chosen} " if here else " " * _MARK, "bold")]
        for shown in columns:
            style = STYLES[runs[number].run.state] if shown.name == "state" else ""
            text = pad(shown.cells[number], shown.width, left=shown.left)
            row += [(text, f"bold {style}" if here else style), (_GAP, "")]
        yield screen.line(*row[:-1])


def _columns(runs: Sequence[ObservedRun], screen: Screen, now: datetime) -> list[Column]:
    """Return the columns that have something to show, whether or not there is room for them."""
    glyphs = screen.glyphs
    widest = max(_NARROWEST_RUN, min(_WIDEST_RUN, screen.width - _MARK - _OTHERS))
    names = (glyphs.shorten(glyphs.text(observed.run.name), widest) for observed in runs)
    monitors = {observed.monitor[0] for observed in runs if observed.monitor is not None}
    one = _metric_name(next(iter(monitors)), glyphs) if len(monitors) == 1 else None
    columns = [
        column("run", names, left=True),
        column("state", (observed.run.state for observed in runs), left=True),
        column("epochs", (epochs_text(observed.run) for observed in runs), priority=90),
        column("left", (_left(observed) for observed in runs), priority=85),
        column("progress", (_progress(observed.run, glyphs) for observed in runs), priority=60),
        column(
            one or "metric",
            (_metric(observed, glyphs, named=one is None) for observed in runs),
            priority=70,
        ),
        column("curve", (_curve(observed, glyphs) for observed in runs), priority=50, left=True),
        column("saved", (_saved(observed.run, now) for observed in runs), priority=75),
        column("restarts", (str(restarts(observed.run) or "") for observed in runs), priority=40),
    ]
    return [shown for shown in columns if any(shown.cells) or shown.priority == ALWAYS_SHOWN]


def percent(share: float) -> str:
    """Return a share from 0 to 1 in per cent, rounded down: 100 is shown only where nothing is left.

    Example:
        >>> percent(0.999), percent(1.0)
        ('99 %', '100 %')
    """
    return f"{int(share * 100)} %"


def newest_value(observed: ObservedRun, metric: str) -> float | None:
    """Return the newest known value of a metric: the live ones are those of batches, without those of validation."""
    latest = observed.run.latest
    ended = (epoch.metrics for epoch in reversed(observed.epochs))
    known = (observed.metrics, {} if latest is None else latest.metrics, *ended)
    return next((metrics[metric] for metrics in known if metric in metrics), None)


def metric_curve(observed: ObservedRun, metric: str) -> list[float]:
    """Return the values of a metric at the ends of the run's epochs."""
    return [epoch.metrics[metric] for epoch in observed.epochs if metric in epoch.metrics]


def _metric_name(name: str, glyphs: Glyphs) -> str:
    return glyphs.shorten(glyphs.text(name), _WIDEST_METRIC)


def _left(observed: ObservedRun) -> str:
    left = time_left_s(observed)
    return "" if left is None else age_text(left)


def _progress(run: Run, glyphs: Glyphs) -> str:
    share = finished_share(run)
    return "" if share is None else f"{glyphs.bar(share, _BAR)} {percent(share):>5}"


def _metric(observed: ObservedRun, glyphs: Glyphs, *, named: bool) -> str:
    if observed.monitor is None:
        return ""
    value = metric_text(newest_value(observed, observed.monitor[0]))
    return f"{_metric_name(observed.monitor[0], glyphs)} {value}" if value and named else value


def _curve(observed: ObservedRun, glyphs: Glyphs) -> str:
    return (
        "" if observed.monitor is None else glyphs.curve(metric_curve(observed, observed.monitor[0]), _CURVE)
    )


def _saved(run: Run, now: datetime) -> str:
    return "" if run.latest is None else age_text((now - run.latest.created_at).total_seconds())
