"""Plots the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {"ours": "#1b6ca8", "keras": "#c44e52", "orbax": "#dd8452"}
FLOOR = "#8c8c8c"
# A bar on a logarithmic axis needs a positive length.
MIN_LENGTH = 1e-5


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Plot single saves (step wait and time to durable) and whole runs, a panel for each workload and backend.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    panels = [
        (kind, workload, backend, [row for row in rows if "unavailable" not in row])
        for backend, parts in document["backends"].items()
        for kind in ("save", "run")
        for workload, rows in parts.get(kind, {}).items()
    ]
    panels = [panel for panel in panels if panel[3]]
    if not panels:
        return
    # Two columns only for many panels, which need a large screen anyway.
    columns = 1 if len(panels) < 3 else 2
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(8.5 * columns, 3.6 * lines + 0.5), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, workload, backend, rows) in zip(axes.flat, panels, strict=False):
        (_draw_saves if kind == "save" else _draw_runs)(axis, rows)
        size = next((f", {row['state_bytes'] / 1e6:,.0f} MB" for row in rows if "state_bytes" in row), "")
        title = "one save" if kind == "save" else "a whole run"
        axis.set_title(f"{title}: {workload}{size}, {backend}", fontsize=10)
    figure.suptitle(_conditions(document), fontsize=8, color="#595959")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _conditions(document: Mapping[str, Any]) -> str:
    """Return the machine, its load, and the number of rounds."""
    facts = document["facts"]
    rounds = "one round" if document["repeats"] == 1 else f"{document['repeats']} rounds"
    return (
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load']:.1f} before and"
        f" {facts.get('load_after', facts['load']):.1f} after; {rounds}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _colour(row: Mapping[str, Any]) -> str:
    return COLOURS.get(row["subject"].partition(" ")[0], FLOOR)


def _draw_saves(axis: Any, rows: list[Any]) -> None:
    places = range(len(rows), 0, -1)
    colours = [_colour(row) for row in rows]
    axis.barh(places, [max(MIN_LENGTH, row["durable_s"]) for row in rows], 0.75, color=colours, alpha=0.35)
    axis.barh(places, [max(MIN_LENGTH, row["wait_s"]) for row in rows], 0.4, color=colours)
    labels = [
        row["subject"] + ("" if row["synced"] or _colour(row) == FLOOR else ", unsynced") for row in rows
    ]
    axis.set_yticks(list(places), labels, fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, place: _time(value))
    axis.margins(x=0.2)
    for place, row in zip(places, rows, strict=True):
        label = _time(row["wait_s"])
        if row["durable_s"] > 1.2 * row["wait_s"]:
            label += f", {_time(row['durable_s'])}"
        axis.text(max(MIN_LENGTH, row["durable_s"]) * 1.06, place, label, va="center", fontsize=7.5)
    axis.set_xlabel(
        "the step waits (dark); until it is durable, or written where unsynced (light)", fontsize=8
    )
    axis.grid(axis="x", alpha=0.3)


def _draw_runs(axis: Any, rows: list[Any]) -> None:
    places = range(len(rows), 0, -1)
    colours = [_colour(row) for row in rows]
    axis.barh(places, [100 * row["overhead"] for row in rows], 0.6, color=colours)
    axis.set_yticks(list(places), [row["subject"] for row in rows], fontsize=8)
    axis.set_xlabel("overhead of the run, %", fontsize=8)
    axis.axvline(3.5, color="black", linewidth=0.7, linestyle=":")
    axis.grid(axis="x", alpha=0.3)
