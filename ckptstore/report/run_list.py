"""Text for people about runs: a table of all, and a line about one."""

from __future__ import annotations

from collections.abc import Sequence

from ckptstore.printable import printable
from ckptstore.records import Checkpoint, Run
from ckptstore.report.progress import batches_text, epochs_text, finished_epochs
from ckptstore.report.table import ALWAYS_SHOWN, Column, TextTable, column, fit_columns


def run_list(runs: Sequence[Run], width: int | None) -> tuple[TextTable, tuple[str, ...]]:
    """Return a table of runs, and the names of the columns that were left out.

    Args:
        runs: In the order of the rows.
        width: The terminal's width in cells, or None for no limit.
    """
    columns = [column for column in _columns(runs) if any(column.cells) or column.priority == ALWAYS_SHOWN]
    shown = fit_columns(columns, width)
    left_out = tuple(column.name for column in columns if column not in shown)
    return TextTable(shown), left_out


def _columns(runs: Sequence[Run]) -> list[Column]:
    return [
        column("run", (printable(run.name) for run in runs), priority=ALWAYS_SHOWN, left=True),
        column("state", (run.state for run in runs), priority=ALWAYS_SHOWN, left=True),
        column("epochs", (epochs_text(run) for run in runs), priority=90),
        column("batches", (batches_text(run) for run in runs), priority=80),
        column("step", (_number(run.step) for run in runs), priority=60),
        column("steps/s", (_rate(run.steps_per_s) for run in runs), priority=70),
        column("latest", (_version(run.latest) for run in runs), priority=50),
        column("best", (_version(run.best) for run in runs), priority=55),
        column("resume point", (_version(run.resume_point) for run in runs), priority=40),
        column("checkpoints", (str(run.checkpoints) for run in runs), priority=30),
        column("attempts", (_number(run.attempts or None) for run in runs), priority=35),
        column("note", (printable(run.note) for run in runs), priority=65, left=True),
    ]


def run_line(run: Run) -> str:
    """Return one line about a run: its state, and where it stands or why it ended.

    Example:
        >>> run_line(Run(name="digits", state="running", attempts=1, checkpoints=2, epoch=3, batch=7, epochs=10))
        'run digits: running, epoch 3, batch 7, 3 of 10 epochs finished'
    """
    parts: list[str] = [run.state]
    if run.is_active and run.epoch is not None:
        parts.append(f"epoch {run.epoch}")
    if run.is_active and run.batch is not None:
        parts.append(f"batch {run.batch}")
    if run.is_active and run.epochs:
        parts.append(f"{finished_epochs(run)} of {run.epochs} epochs finished")
    if run.is_active and run.steps_per_s is not None:
        parts.append(f"{_rate(run.steps_per_s)} steps/s")
    note = f" ({printable(run.note)})" if run.note else ""
    return f"run {printable(run.name)}: {', '.join(parts)}{note}"


def _rate(steps_per_s: float | None) -> str:
    return "" if steps_per_s is None else f"{steps_per_s:.3g}"


def _version(checkpoint: Checkpoint | None) -> str:
    return "" if checkpoint is None else str(checkpoint.version)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
