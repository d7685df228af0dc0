"""Plots of runs: metrics over epochs, across restarts, with checkpoints, best and resume point."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ckptstore.errors import MissingPackageError
from ckptstore.printable import printable
from ckptstore.records import Checkpoint
from ckptstore.report.text import metric_text, position_text
from ckptstore.store.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ImageFormat = Literal["png", "svg"]

# Okabe and Ito's colours, which colour-blind people can tell apart too; the lightest is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#6b6b6b"
_MAX_PANELS = 8
# More checkpoints than these get small dots.
_MAX_LARGE_DOTS = 80
# From this ratio of the largest to the smallest value on, the axis is logarithmic.
_LOGARITHMIC_RATIO = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlottedRun:
    """Everything that a plot shows of one run.

    Attributes:
        history: Its metrics by epoch.
        checkpoints: Its existing checkpoints.
        best: Its best checkpoint by metric.
        resume_point: The checkpoint that it would resume from, or None.
    """

    history: History
    checkpoints: Sequence[Checkpoint]
    best: Mapping[str, Checkpoint]
    resume_point: Checkpoint | None

    def x(self, epoch: int, batch: int | None) -> float:
        """Return the x of a position: the end of an epoch is at its number, its batches lie before it."""
        if batch is None:
            return float(epoch)
        return epoch - 1 + min(1.0, (batch + 1) / self._batches_per_epoch())

    def _batches_per_epoch(self) -> int:
        """Return the number of batches of an epoch: from the steps at the ends of epochs, else the most seen."""
        ends = [
            checkpoint.step / (checkpoint.epoch + 1)
            for checkpoint in self.checkpoints
            if checkpoint.batch is None and checkpoint.step
        ]
        seen = [checkpoint.batch + 1 for checkpoint in self.checkpoints if checkpoint.batch is not None]
        return max(1, round(ends[-1])) if ends else max(seen, default=1)


def panels_of(runs: Sequence[PlottedRun], metrics: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the metrics of each panel; a metric and its ``val_`` share one.

    Example:
        >>> from ckptstore.records import Epoch
        >>> panels_of([])
        {}
    """
    known = dict.fromkeys(name for run in runs for name in run.history.metrics)
    wanted = [name for name in known if not metrics or name in metrics]
    panels: dict[str, list[str]] = {}
    for name in sorted(wanted, key=lambda name: (name.removeprefix("val_") != "loss",)):
        panels.setdefault(name.removeprefix("val_"), []).append(name)
    return {panel: sorted(names, key=lambda name: name.startswith("val_")) for panel, names in panels.items()}


def draw(
    runs: Sequence[PlottedRun], title: str, format: ImageFormat, metrics: Sequence[str] = ()
) -> tuple[bytes, tuple[str, ...]]:
    """Plot runs; return the image, and the metrics for which there was no room.

    Args:
        runs: The runs; at least one has a metric.
        title: The heading.
        format: ``"png"``, or ``"svg"`` with text as shapes and without external references.
        metrics: The metrics to plot; empty for all.

    Raises:
        MissingPackageError: (an ImportError) matplotlib is not installed.
    """
    panels = panels_of(runs, metrics)
    shown = dict(list(panels.items())[:_MAX_PANELS])
    left_out = tuple(name for names in list(panels.values())[_MAX_PANELS:] for name in names)
    with _matplotlib():
        figure = _figure(runs, title, shown)
        image = io.BytesIO()
        # No date, so that equal plots are equal files.
        metadata: dict[str, Any] = {"Date": None, "Creator": None} if format == "svg" else {}
        figure.savefig(image, format=format, dpi=150, metadata=metadata)
    return image.getvalue(), left_out


@contextmanager
def _matplotlib() -> Iterator[None]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingPackageError(package="matplotlib", needed_for="a plot", extra="plot") from error
    settings: Any = {
        "text.parse_math": False,  # names of metrics are not formulas
        "svg.hashsalt": "ckptstore",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _figure(runs: Sequence[PlottedRun], title: str, panels: Mapping[str, Sequence[str]]) -> Figure:
    from matplotlib.figure import Figure

    columns = 1 if len(panels) < 4 else 2
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(8.5 if columns == 1 else 12, 1.3 + 2.7 * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for (name, metrics), axis in zip(panels.items(), axes, strict=False):
        _draw_panel(axis, runs, name, metrics)
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel("epoch, from 0 (the end of an epoch is at its number)")
        axis.tick_params(labelbottom=True)
    figure.suptitle(_drawable(title, 110), fontsize=11, x=0.01, ha="left")
    figure.legend(handles=_legend(runs, panels), loc="outside lower left", ncols=2, frameon=False)
    return figure


def _draw_panel(axis: Axes, runs: Sequence[PlottedRun], name: str, metrics: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    values = []
    for run, colour in zip(runs, _colours(runs), strict=True):
        for resumed in run.history.interruptions:
            axis.axvline(
                run.x(resumed.epoch, resumed.batch), color=colour if len(runs) > 1 else _GREY,
                linestyle=":", linewidth=1.1, zorder=1,
            )  # fmt: skip
        for metric in metrics:
            values += _draw_curve(axis, run, metric, colour, alone=len(metrics) == 1)
        _draw_best(axis, run, metrics[-1], colour, named=len(runs) == 1)
        if run.resume_point is not None:
            x = run.x(run.resume_point.epoch, run.resume_point.batch)
            axis.plot(
                [x], [0], marker="^", markersize=8, color=colour, markeredgecolor="white", clip_on=False,
                transform=axis.get_xaxis_transform(), zorder=6,
            )  # fmt: skip
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) > _LOGARITHMIC_RATIO * min(finite):
        _make_logarithmic(axis)
    if len(finite) < len(values):
        note = f"{len(values) - len(finite)} values are not finite"
        axis.text(0.99, 0.97, note, transform=axis.transAxes, ha="right", va="top", color=_GREY)
    axis.set_ylabel(_drawable(name, 30))
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.margins(x=0.04, y=0.12)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _make_logarithmic(axis: Axes) -> None:
    """Make an axis logarithmic, with plain numbers as labels: those of matplotlib are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(numticks=8))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _draw_curve(axis: Axes, run: PlottedRun, metric: str, colour: str, *, alone: bool) -> list[float]:
    """Draw a metric's curve and a dot for each existing checkpoint; return the values."""
    solid = alone or metric.startswith("val_")
    known = [epoch for epoch in run.history.epochs if metric in epoch.metrics]
    values = [epoch.metrics[metric] for epoch in known]
    axis.plot(
        [run.x(epoch.epoch, epoch.batch) for epoch in known],
        [value if math.isfinite(value) else math.nan for value in values],
        color=colour, linestyle="-" if solid else (0, (4, 2)), linewidth=1.6 if solid else 1.1, zorder=3,
    )  # fmt: skip
    dotted = [
        checkpoint
        for checkpoint in run.checkpoints
        if math.isfinite(checkpoint.metrics.get(metric, math.nan))
    ]
    few = len(dotted) <= _MAX_LARGE_DOTS
    axis.plot(
        [run.x(checkpoint.epoch, checkpoint.batch) for checkpoint in dotted],
        [checkpoint.metrics[metric] for checkpoint in dotted],
        linestyle="", marker="o", markersize=5 if few else 2.5, color=colour if solid else "white",
        markeredgecolor=("white" if solid else colour) if few else colour, markeredgewidth=0.9 if few else 0.3,
        zorder=4,
    )  # fmt: skip
    return values


def _draw_best(axis: Axes, run: PlottedRun, metric: str, colour: str, *, named: bool) -> None:
    best = run.best.get(metric)
    if best is None or not math.isfinite(best.metrics[metric]):
        return
    x, y = run.x(best.epoch, best.batch), best.metrics[metric]
    axis.plot(
        [x],
        [y],
        marker="*",
        markersize=13,
        color=colour,
        markeredgecolor="black",
        markeredgewidth=0.8,
        zorder=5,
    )
    if named:
        # Above the panel, where it hides no curve.
        label = f"best {_drawable(metric, 30)}: {metric_text(y)} (version {best.version})"
        axis.set_title(label, loc="right", fontsize=8.5, color=_GREY)


def _legend(runs: Sequence[PlottedRun], panels: Mapping[str, Sequence[str]]) -> list[Any]:
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Any:
        return Line2D([], [], **{"color": _GREY, "linestyle": "", **style}, label=label)

    colours = list(_colours(runs))
    paired = any(len(metrics) > 1 for metrics in panels.values())
    base = colours[0] if len(runs) == 1 else _GREY
    entries = []
    if len(runs) > 1:
        entries += [
            entry(_run_label(run, next(iter(panels.values()))[-1]), color=colour, linestyle="-", linewidth=3)
            for run, colour in zip(runs, colours, strict=True)
        ]
    if paired:
        entries.append(entry("validation", color=base, linestyle="-", linewidth=1.6))
        entries.append(entry("training", color=base, linestyle=(0, (4, 2)), linewidth=1.1))
    entries.append(entry("existing checkpoint", color=base, marker="o", markersize=5))
    if any(run.best for run in runs):
        entries.append(entry("best", color=base, marker="*", markersize=12, markeredgecolor="black"))
    points = [run for run in runs if run.resume_point is not None]
    if points:
        point = points[0].resume_point
        details = f": version {point.version} ({position_text(point)})" if len(runs) == 1 and point else ""
        entries.append(entry(f"resume point{details}", color=base, marker="^", markersize=8))
    if any(run.history.interruptions for run in runs):
        entries.append(entry("interrupted, and resumed from here", linestyle=":", linewidth=1.1))
    return entries


def _run_label(run: PlottedRun, metric: str) -> str:
    name = f"run {_drawable(run.history.run, 40)}"
    best = run.best.get(metric)
    if best is None:
        return name
    value = metric_text(best.metrics[metric])
    return f"{name}: best {_drawable(metric, 30)} {value} (version {best.version})"


def _colours(runs: Sequence[PlottedRun]) -> Iterator[str]:
    return (COLOURS[index % len(COLOURS)] for index in range(len(runs)))


def _drawable(text: str, max_length: int) -> str:
    """Return a text that the font can draw: a character without a shape is escaped, a long text is cut."""
    text = printable(text)
    if not text.isascii():
        shapes = _shapes()
        text = "".join(char if ord(char) in shapes else ascii(char)[1:-1] for char in text)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


@cache
def _shapes() -> frozenset[int]:
    from matplotlib import font_manager, ft2font

    return frozenset(ft2font.FT2Font(font_manager.findfont(font_manager.FontProperties())).get_charmap())
