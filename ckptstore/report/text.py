"""Text for people: values, and lines and tables of checkpoints, problems, runs and what was pruned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ckptstore.printable import printable
from ckptstore.records import Attempt, Checkpoint, Problem, Run
from ckptstore.report.table import (
    ALWAYS_SHOWN,
    Column,
    TextTable,
    cell_width,
    column,
    facts_table,
    fit_columns,
    pad,
    plain_cells,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ckptstore.commit.retention.prune import Pruned
    from ckptstore.store.history import History, RunSummary

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
# The priority of the columns of metrics.
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
    """Return a metric with five significant digits; an empty text where it is missing.

    Example:
        >>> metric_text(0.98765432), metric_text(float("nan")), metric_text(None)
        ('0.98765', 'nan', '')
    """
    return "" if value is None else f"{value:.5g}"


def time_text(time: datetime) -> str:
    """Return a time as local time, to the second."""
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def age_text(seconds: float) -> str:
    """Return an age in its largest unit.

    Example:
        >>> age_text(41.2), age_text(750), age_text(12_000), age_text(400_000)
        ('41 s', '12 min', '3.3 h', '4.6 days')
    """
    if seconds < 120:
        return f"{max(0, round(seconds))} s"
    if seconds < 7200:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def position_text(checkpoint: Checkpoint) -> str:
    """Return the position in the training of a checkpoint, such as ``"epoch 3, batch 17, step 152"``."""
    batch = "end" if checkpoint.batch is None else f"batch {checkpoint.batch}"
    position = f"epoch {checkpoint.epoch}, {batch}"
    return position if checkpoint.step is None else f"{position}, step {checkpoint.step}"


def summary(checkpoint: Checkpoint) -> str:
    """Return one line about a checkpoint: version, run, position, metrics, size and time."""
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
    """Return a table of checkpoints, and the names of the columns that were left out.

    Args:
        checkpoints: In the order of the rows.
        width: The terminal's width in cells, or None for no limit.
    """
    columns = [
        column for column in _columns(checkpoints) if any(column.cells) or column.priority == ALWAYS_SHOWN
    ]
    shown = fit_columns(columns, width)
    left_out = tuple(column.name for column in columns if column not in shown)
    return TextTable(shown), left_out


def problem_table(problems: Sequence[Problem]) -> TextTable:
    """Return a table of problems, with what `repair` did about each."""
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
    """Yield a line for each checkpoint, oldest first: removed or kept, and why; there may be millions."""
    size, why = lru_cache(size_text), lru_cache(_why)
    # Two passes: the widths of the columns are known only at the end of the first.
    runs, epoch, batch, sizes, version = {"run"}, 0, 0, {"size"}, 0
    for place, _ in pruned.places():
        version, epoch, batch = place.version, max(epoch, place.epoch), max(batch, place.batch or 0)
        runs.add(printable(place.run))
        sizes.add(size(place.nbytes))
    widest = max(map(cell_width, runs))
    run = lru_cache(lambda name: pad(printable(name), widest, left=True))
    widths = (
        _width("version", version),
        _width("epoch", epoch),
        _width("batch", batch),
        max(map(len, sizes)),
    )
    line = "{{:>{}}}  {{}}  {{:>{}}}  {{:>{}}}  {{:>{}}}  {{:<5}}  {{}}".format(*widths)
    yield line.format("version", run("run"), "epoch", "batch", "size", "", "why").rstrip()
    for place, goes in pruned.places():
        verdict = "goes" if goes else "stays"
        reasons = why(pruned.reasons.get(place.version, ()))
        batch_text = _batch(place.batch)
        cells = (place.version, run(place.run), place.epoch, batch_text, size(place.nbytes), verdict, reasons)
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
        column("batch", (_batch(epoch.batch) for epoch in epochs)),
        *(
            column(printable(name), (metric_text(epoch.metrics.get(name)) for epoch in epochs))
            for name in names
        ),
        column("version", (str(epoch.version) for epoch in epochs)),
    ]
    return TextTable(columns)


def comparison_table(summaries: Sequence[RunSummary]) -> TextTable:
    """Return a table of runs; each best value is followed by its checkpoint's version."""
    names = dict.fromkeys(name for summary in summaries for name in summary.best)
    columns = [
        column("run", (printable(summary.run) for summary in summaries), left=True),
        column("state", (summary.state for summary in summaries), left=True),
        column("epochs", (str(summary.epochs) for summary in summaries)),
        column("checkpoints", (str(summary.checkpoints) for summary in summaries)),
        column("resumed", (str(summary.resumes) for summary in summaries)),
        *(
            column(f"best {printable(name)}", (_best_cell(summary, name) for summary in summaries))
            for name in names
        ),
    ]
    return TextTable(columns)


def _best_cell(summary: RunSummary, metric: str) -> str:
    checkpoint = summary.best.get(metric)
    return "" if checkpoint is None else f"{metric_text(checkpoint.metrics[metric])} (v{checkpoint.version})"


def count_states(checkpoints: Iterable[Checkpoint]) -> Counter[str]:
    """Count checkpoints by their state."""
    return Counter(checkpoint.state for checkpoint in checkpoints)


def no_problems_line(counts: Counter[str]) -> str:
    """Return the line about a store without problems; known losses are no problem, but are reported.

    Example:
        >>> no_problems_line(Counter(complete=3, missing=1))
        '3 checkpoints, all intact; 1 known to be lost (ckptstore ls tells which)'
    """
    lost = f"; {_lost(counts)} known to be lost (ckptstore ls tells which)" if _lost(counts) else ""
    return f"{counts['complete']} checkpoints, all intact{lost}"


def verify_document(problems: Sequence[Problem], counts: Counter[str], *, ok: bool) -> dict[str, Any]:
    """Return the JSON document of `verify` and `repair`; it has ``lost`` only where there are known losses."""
    documents = [problem.to_json() for problem in problems]
    document = {"ok": ok, "checked": counts.total(), "problems": documents}
    return {**document, "lost": _lost(counts)} if _lost(counts) else document


def _lost(counts: Counter[str]) -> int:
    return counts["missing"] + counts["damaged"]


def details_table(
    checkpoint: Checkpoint,
    attempt: Attempt | None = None,
    run: Run | None = None,
    more: Mapping[str, str] | None = None,
) -> Table:
    """Return a table of everything known about one checkpoint, one fact on each line.

    Args:
        checkpoint: The checkpoint.
        attempt: The attempt that saved it, or None where that is not known.
        run: Its run as it stands now, or None.
        more: Facts of its payload, by name.
    """
    saved_by = [] if attempt is None else [("attempt", _attempt_text(attempt))]
    rows = [
        *_facts(checkpoint, run),
        *(more or {}).items(),
        *saved_by,
        *((name, metric_text(value)) for name, value in checkpoint.metrics.items()),
    ]
    table = facts_table()
    for name, value in rows:
        table.add_row(*plain_cells((printable(name), printable(value))))
    return table


def _facts(checkpoint: Checkpoint, run: Run | None) -> list[tuple[str, str]]:
    facts = [
        ("version", str(checkpoint.version)),
        ("run", checkpoint.run if run is None else f"{checkpoint.run} ({run.state})"),
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


def _attempt_text(attempt: Attempt) -> str:
    changes = " with changes" if attempt.git_dirty else ""
    code = "" if attempt.git_commit is None else f", of commit {attempt.git_commit[:12]}{changes}"
    return f"{attempt.attempt}{code}"


def _cost(checkpoint: Checkpoint) -> str:
    times = ((checkpoint.blocked_s, "s of waiting"), (checkpoint.total_s, "s in all"))
    return ", ".join(f"{seconds:.3f} {unit}" for seconds, unit in times if seconds is not None)


def _columns(checkpoints: Sequence[Checkpoint]) -> list[Column]:
    several_runs = len({checkpoint.run for checkpoint in checkpoints}) > 1
    several_formats = len({checkpoint.format for checkpoint in checkpoints}) > 1
    names = dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.metrics)
    priorities = _metric_priorities(list(names))

    def of_each(
        name: str, text: Callable[[Checkpoint], str], priority: float, *, left: bool = False
    ) -> Column:
        return column(name, map(text, checkpoints), priority=priority, left=left)

    def metric(name: str) -> Column:
        return of_each(
            printable(name), lambda checkpoint: metric_text(checkpoint.metrics.get(name)), priorities[name]
        )

    def state(checkpoint: Checkpoint) -> str:
        return "" if checkpoint.state == "complete" else checkpoint.state

    return [
        of_each("version", lambda checkpoint: str(checkpoint.version), ALWAYS_SHOWN),
        of_each("run", lambda checkpoint: printable(checkpoint.run) if several_runs else "", 99, left=True),
        of_each("epoch", lambda checkpoint: str(checkpoint.epoch), ALWAYS_SHOWN),
        of_each("batch", lambda checkpoint: _batch(checkpoint.batch), 98),
        of_each("step", lambda checkpoint: _number(checkpoint.step), 20),
        *map(metric, names),
        of_each("size", lambda checkpoint: size_text(checkpoint.nbytes), 30),
        of_each("saved", lambda checkpoint: time_text(checkpoint.created_at), 25, left=True),
        of_each("format", lambda checkpoint: checkpoint.format if several_formats else "", 10, left=True),
        of_each("state", state, 97, left=True),
        of_each("tags", lambda checkpoint: printable(", ".join(_tags(checkpoint))), 90, left=True),
    ]


def _metric_priorities(names: Sequence[str]) -> dict[str, float]:
    """Return the priority of each metric: higher for validation metrics, and for the first ones of a kind."""
    base = {name: 2 * _METRIC if name.startswith("val_") else _METRIC for name in names}
    return {name: base[name] - _METRIC * index / len(names) for index, name in enumerate(names)}


def _tags(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (*checkpoint.tags, "(pinned)") if checkpoint.pinned else checkpoint.tags


def _batch(batch: int | None) -> str:
    return "end" if batch is None else str(batch)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
