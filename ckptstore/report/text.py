"""Checkpoints and problems as people read them: rich tables and lines, without doing anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptstore.records import Checkpoint, Problem
from ckptstore.report.table import (
    KEEP_ALWAYS,
    Column,
    TextTable,
    cell_width,
    column,
    fitting,
    grid,
    padded,
    texts,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ckptstore.store.history import History, RunSummary
    from ckptstore.store.prune import Pruned

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_METRIC = 40


def size_text(nbytes: int) -> str:
    """Return a size with three significant digits and a decimal unit.

    Example:
        >>> size_text(512), size_text(48_213), size_text(806_000_000)
        ('512 B', '48.2 kB', '806 MB')
    """
    value = float(nbytes)
    unit = 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    if unit == 0:
        return f"{nbytes} B"
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f} {_UNITS[unit]}"


def metric_text(value: float | None) -> str:
    """Return a metric with five significant digits; nothing where it is missing.

    Example:
        >>> metric_text(0.98765432), metric_text(float("nan")), metric_text(None)
        ('0.98765', 'nan', '')
    """
    return "" if value is None else f"{value:.5g}"


def time_text(moment: datetime) -> str:
    """Return a moment in local time, to the second."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def age_text(seconds: float) -> str:
    """Return how long ago something was, in its largest unit.

    Example:
        >>> age_text(41.2), age_text(750), age_text(12_000), age_text(400_000)
        ('41 s', '12 min', '3.3 h', '4.6 days')
    """
    if seconds < 120:
        return f"{max(0, round(seconds))} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def printable(text: str) -> str:
    r"""Return text with everything escaped that could move the cursor, change colours or break the line.

    Example:
        >>> printable("val_loss\x1b[31m\n 损失")
        'val_loss\\x1b[31m\\n 损失'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def position_text(checkpoint: Checkpoint) -> str:
    """Return where in the training it was taken, as in ``"epoch 3, batch 17, step 152"``."""
    batch = "end" if checkpoint.batch is None else f"batch {checkpoint.batch}"
    where = f"epoch {checkpoint.epoch}, {batch}"
    return where if checkpoint.step is None else f"{where}, step {checkpoint.step}"


def summary(checkpoint: Checkpoint) -> str:
    """Return one line that tells a checkpoint from the others."""
    metrics = (f"{printable(name)} {metric_text(value)}" for name, value in checkpoint.metrics.items())
    parts = (
        f"version {checkpoint.version}",
        f"run {printable(checkpoint.run)}",
        position_text(checkpoint),
        ", ".join(metrics),
        size_text(checkpoint.nbytes),
        time_text(checkpoint.created_at),
    )
    return " | ".join(part for part in parts if part)


def checkpoint_table(
    checkpoints: Sequence[Checkpoint], width: int | None
) -> tuple[TextTable, tuple[str, ...]]:
    """Return a table of checkpoints, and the names of the columns left out.

    Args:
        checkpoints: In the order of the rows.
        width: Terminal cells that there are, or None for as many as it takes.
    """
    columns = [column for column in _columns(checkpoints) if any(column.cells) or column.rank == KEEP_ALWAYS]
    shown = fitting(columns, width)
    left_out = tuple(column.name for column in columns if column not in shown)
    return TextTable(shown), left_out


def problem_table(problems: Sequence[Problem]) -> TextTable:
    """Return a table of what `verify` found, or of what `repair` found and did."""
    columns = [
        column("version", (_number(problem.version) for problem in problems)),
        column("problem", (problem.kind for problem in problems), left=True),
        column("detail", (printable(problem.detail) for problem in problems), left=True),
    ]
    if any(problem.action is not None for problem in problems):
        actions = (printable(problem.action or "nothing") for problem in problems)
        columns.append(column("done", actions, left=True))
    return TextTable(columns)


def pruned_lines(pruned: Pruned) -> Iterator[str]:
    """Yield what goes and what stays, and why, oldest first, in columns; there may be very many lines."""
    size, why = lru_cache(size_text), lru_cache(_why)
    # Gone over twice, for only at the end is it known how wide the columns are.
    runs, epoch, batch, sizes, version = {"run"}, 0, 0, {"size"}, 0
    for place, _ in pruned.places():
        version, epoch, batch = place.version, max(epoch, place.epoch), max(batch, place.batch or 0)
        runs.add(printable(place.run))
        sizes.add(size(place.nbytes))
    widest = max(map(cell_width, runs))
    run = lru_cache(lambda name: padded(printable(name), widest, left=True))
    widths = (
        _width("version", version),
        _width("epoch", epoch),
        _width("batch", batch),
        max(map(len, sizes)),
    )
    line = "{{:>{}}}  {{}}  {{:>{}}}  {{:>{}}}  {{:>{}}}  {{:<5}}  {{}}".format(*widths)
    yield line.format("version", run("run"), "epoch", "batch", "size", "", "why").rstrip()
    for place, goes in pruned.places():
        at = "end" if place.batch is None else place.batch
        verdict = "goes" if goes else "stays"
        reasons = why(pruned.reasons.get(place.version, ()))
        cells = (place.version, run(place.run), place.epoch, at, size(place.nbytes), verdict, reasons)
        yield line.format(*cells).rstrip()


def _width(name: str, number: int) -> int:
    return max(len(name), len(str(number)))


def _why(reasons: tuple[str, ...]) -> str:
    return printable(", ".join(reasons))


def history_table(history: History, metrics: Sequence[str]) -> TextTable:
    """Return a table of a run's metrics, a row for each epoch.

    Args:
        history: The run's history.
        metrics: The columns; empty for all metrics.
    """
    epochs = history.epochs
    names = metrics or history.metrics
    columns = [
        column("epoch", (str(epoch.epoch) for epoch in epochs)),
        column("batch", ("end" if epoch.batch is None else str(epoch.batch) for epoch in epochs)),
        *(column(printable(name), (metric_text(one.metrics.get(name)) for one in epochs)) for name in names),
        column("version", (str(epoch.version) for epoch in epochs)),
    ]
    return TextTable(columns)


def comparison_table(summaries: Sequence[RunSummary]) -> TextTable:
    """Return a table of runs; behind each best value stands its version."""
    names = dict.fromkeys(name for summary in summaries for name in summary.best)
    columns = [
        column("run", (printable(summary.run) for summary in summaries), left=True),
        column("epochs", (str(summary.epochs) for summary in summaries)),
        column("checkpoints", (str(summary.checkpoints) for summary in summaries)),
        column("resumed", (str(summary.resumes) for summary in summaries)),
        *(column(f"best {printable(name)}", (_best_cell(one, name) for one in summaries)) for name in names),
    ]
    return TextTable(columns)


def _best_cell(summary: RunSummary, metric: str) -> str:
    checkpoint = summary.best.get(metric)
    return "" if checkpoint is None else f"{metric_text(checkpoint.metrics[metric])} (v{checkpoint.version})"


def counted(checkpoints: Iterable[Checkpoint]) -> Counter[str]:
    """Return how many checkpoints there are in each state."""
    return Counter(checkpoint.state for checkpoint in checkpoints)


def all_whole(counts: Counter[str]) -> str:
    """Return the line of a store without problems; losses that are known are no problem, but are told.

    Example:
        >>> all_whole(Counter(complete=3, missing=1))
        '3 checkpoints, all whole; 1 known to be lost (ckptstore ls tells which)'
    """
    lost = f"; {_lost(counts)} known to be lost (ckptstore ls tells which)" if _lost(counts) else ""
    return f"{counts['complete']} checkpoints, all whole{lost}"


def findings(problems: Sequence[Problem], counts: Counter[str], *, ok: bool) -> dict[str, Any]:
    """Return the JSON of `verify` and `repair`; it tells of known losses only where there are some."""
    documents = [problem.to_json() for problem in problems]
    found = {"ok": ok, "checked": counts.total(), "problems": documents}
    return {**found, "lost": _lost(counts)} if _lost(counts) else found


def _lost(counts: Counter[str]) -> int:
    return counts["missing"] + counts["damaged"]


def details_table(checkpoint: Checkpoint) -> Table:
    """Return everything that is known of one checkpoint, a fact a line."""
    rows = [*_facts(checkpoint), *((name, metric_text(value)) for name, value in checkpoint.metrics.items())]
    table = grid()
    for name, value in rows:
        table.add_row(*texts((printable(name), printable(value))))
    return table


def _facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    facts = [
        ("version", str(checkpoint.version)),
        ("run", checkpoint.run),
        ("position", position_text(checkpoint)),
        ("saved", time_text(checkpoint.created_at)),
        ("state", checkpoint.state),
        ("resumable", "yes" if checkpoint.resumable else "no"),
        ("tags", ", ".join(checkpoint.tags)),
        ("pinned", "yes" if checkpoint.pinned else ""),
        ("format", checkpoint.format),
        ("size", f"{size_text(checkpoint.nbytes)} ({checkpoint.nbytes:,} bytes)"),
        ("digest", checkpoint.digest),
        ("cost", _cost(checkpoint)),
        ("extra", "" if checkpoint.extra is None else str(dict(checkpoint.extra))),
        ("file", str(checkpoint.path)),
    ]
    return [(name, value) for name, value in facts if value]


def _cost(checkpoint: Checkpoint) -> str:
    times = ((checkpoint.blocked_s, "s of waiting"), (checkpoint.total_s, "s in all"))
    return ", ".join(f"{seconds:.3f} {what}" for seconds, what in times if seconds is not None)


def _columns(checkpoints: Sequence[Checkpoint]) -> list[Column]:
    several_runs = len({checkpoint.run for checkpoint in checkpoints}) > 1
    several_formats = len({checkpoint.format for checkpoint in checkpoints}) > 1
    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.metrics)
    ranks = _metric_ranks(list(names))
    metrics = [
        column(
            printable(name),
            (metric_text(checkpoint.metrics.get(name)) for checkpoint in checkpoints),
            rank=ranks[name],
        )
        for name in names
    ]
    return [
        column("version", (str(checkpoint.version) for checkpoint in checkpoints), rank=KEEP_ALWAYS),
        column(
            "run", (printable(one.run) if several_runs else "" for one in checkpoints), rank=99, left=True
        ),
        column("epoch", (str(checkpoint.epoch) for checkpoint in checkpoints), rank=KEEP_ALWAYS),
        column("batch", ("end" if one.batch is None else str(one.batch) for one in checkpoints), rank=98),
        column("step", (_number(checkpoint.step) for checkpoint in checkpoints), rank=20),
        *metrics,
        column("size", (size_text(checkpoint.nbytes) for checkpoint in checkpoints), rank=30),
        column("saved", (time_text(checkpoint.created_at) for checkpoint in checkpoints), rank=25, left=True),
        column("format", (one.format if several_formats else "" for one in checkpoints), rank=10, left=True),
        column(
            "state", ("" if one.state == "complete" else one.state for one in checkpoints), rank=97, left=True
        ),
        column("tags", (printable(", ".join(_marks(one))) for one in checkpoints), rank=90, left=True),
    ]


def _metric_ranks(names: Sequence[str]) -> dict[str, float]:
    """Return how much each metric matters: those of the validation more, and the first of a kind more."""
    base = {name: 2 * _METRIC if name.startswith("val_") else _METRIC for name in names}
    return {name: base[name] - _METRIC * index / len(names) for index, name in enumerate(names)}


def _marks(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (*checkpoint.tags, "(pinned)") if checkpoint.pinned else checkpoint.tags


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def table_of(columns: Mapping[str, Iterable[str]], *, left: Collection[str] = ()) -> TextTable:
    """Return a table of columns by their names; those in `left` hold text, the others numbers."""
    return TextTable([column(name, cells, left=name in left) for name, cells in columns.items()])
