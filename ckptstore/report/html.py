"""A report on runs as one HTML file: plot, checkpoints, configuration, cost of saving, events.

The file is complete in itself. Every text that comes from a store is escaped, for HTML and against what would change
the direction of the text around it, and a content security policy lets the page load nothing.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape as escape_markup
from typing import Any

from ckptstore.printable import printable_json, printable_lines
from ckptstore.records import Attempt, Checkpoint, Event, Run, json_time
from ckptstore.report.attempts import code_text, duration_text, reason_text
from ckptstore.report.plot import PlottedRun
from ckptstore.report.run_list import run_line
from ckptstore.report.text import metric_text, position_text, size_text
from ckptstore.report.variables import Layout, layer_rows

MAX_CHECKPOINTS, MAX_EVENTS, MAX_ATTEMPTS = 300, 200, 200
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-top: 1.6rem; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 0.8rem 0.2rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
pre { font-size: 0.8rem; background: #f5f5f5; padding: 0.8rem; overflow-x: auto; }
summary { cursor: pointer; } .quiet { color: #595959; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Everything that the report shows of one run.

    Attributes:
        plotted: Its history, checkpoints, best and resume point.
        now: The run as it stood when the report was made, or None.
        events: Its events, newest first.
        attempts: Its attempts, oldest first.
        layout: Shape and dtype of the variables of its newest checkpoint; empty where that cannot be read.
        configuration: The newest checkpoint's configuration by document, parsed JSON.
    """

    plotted: PlottedRun
    now: Run | None
    events: Sequence[Event]
    layout: Layout = field(hash=False)
    configuration: dict[str, Any] = field(hash=False)
    attempts: Sequence[Attempt] = ()

    @property
    def run(self) -> str:
        """The run's name."""
        return self.plotted.history.run


def page(
    title: str, made_at: datetime, runs: Sequence[RunReport], image: bytes | None, *, no_image: str = ""
) -> str:
    """Return the page.

    Args:
        title: The heading; names the store.
        made_at: The time of the report; aware.
        runs: The runs.
        image: A plot of them as PNG, or None where there is none.
        no_image: The reason why there is none.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">made by ckptstore, {escape(json_time(made_at))}</p>',
        f"<p>{escape(no_image)}</p>" if image is None else _image(image),
    ]
    for run in runs:
        parts += _run(run)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return text that a page shows as it is; what is not printable is shown as an escape."""
    return escape_markup(printable_lines(text))


def _image(image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return f'<img alt="metrics over epochs" src="data:image/png;base64,{data}">'


def _run(run: RunReport) -> list[str]:
    checkpoints = run.plotted.checkpoints
    interruptions = len(run.plotted.history.interruptions)
    nbytes = sum(checkpoint.nbytes for checkpoint in checkpoints)
    counted = f"{len(checkpoints)} checkpoints, {size_text(nbytes)}"
    parts = [
        f"<h2>Run {escape(run.run)}</h2>",
        *([] if run.now is None else [f"<p>{escape(run_line(run.now))}</p>"]),
        f"<p>{counted}; interrupted {interruptions} time{'' if interruptions == 1 else 's'}.</p>",
    ]
    if run.plotted.best or run.plotted.resume_point is not None:
        parts += ["<h3>Best and resume point</h3>", _best(run.plotted)]
    if run.attempts:
        parts += ["<h3>Attempts</h3>", _attempts(run.attempts)]
    if checkpoints:
        parts += [
            "<h3>Checkpoints</h3>",
            _checkpoints(checkpoints),
            "<h3>Cost of saving</h3>",
            _cost(checkpoints),
        ]
    if run.layout:
        head = ("layer", "variables", "dtype", "values", "size")
        parts += ["<h3>Configuration</h3>", _table(head, layer_rows(run.layout), numbers=(3, 4))]
    for name, document in run.configuration.items():
        text = printable_json(json.dumps(document, indent=2, ensure_ascii=False))
        parts.append(_folded(name, f"<pre>{escape(text)}</pre>"))
    if run.events:
        parts += [
            "<h3>Events</h3>",
            _folded(f"the newest {min(len(run.events), MAX_EVENTS)}", _events(run.events)),
        ]
    return parts


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _best(run: PlottedRun) -> str:
    rows = [
        (f"best {name}", metric_text(best.metrics[name]), str(best.version), position_text(best))
        for name, best in run.best.items()
    ]
    if run.resume_point is not None:
        point = run.resume_point
        rows.append(("resume point", "", str(point.version), position_text(point)))
    return _table(("", "value", "version", "position"), rows, numbers=(1, 2))


def _checkpoints(checkpoints: Sequence[Checkpoint]) -> str:
    shown = checkpoints[-MAX_CHECKPOINTS:]
    names = list(dict.fromkeys(name for checkpoint in shown for name in checkpoint.metrics))
    head = ("version", "epoch", "batch", "step", *names, "size", "saved", "tags", "digest")
    rows = [
        (
            str(checkpoint.version),
            str(checkpoint.epoch),
            "end" if checkpoint.batch is None else str(checkpoint.batch),
            "" if checkpoint.step is None else str(checkpoint.step),
            *(metric_text(checkpoint.metrics.get(name)) for name in names),
            size_text(checkpoint.nbytes),
            json_time(checkpoint.created_at)[:19],
            ", ".join([*checkpoint.tags, *(["(pinned)"] if checkpoint.pinned else [])]),
            checkpoint.digest.partition(":")[2][:12],
        )
        for checkpoint in shown
    ]
    older = len(checkpoints) - len(shown)
    note = f'<p class="quiet">{older} older ones are not shown.</p>' if older else ""
    return note + _table(head, rows, numbers=range(4 + len(names) + 1))


def _cost(checkpoints: Sequence[Checkpoint]) -> str:
    rows = []
    for name, times in (
        ("training waited", [checkpoint.blocked_s for checkpoint in checkpoints]),
        ("until it was durable", [checkpoint.total_s for checkpoint in checkpoints]),
    ):
        known = [seconds for seconds in times if seconds is not None]
        if known:
            figures = (sum(known), statistics.median(known), max(known))
            rows.append((name, str(len(known)), *(f"{seconds:.3f} s" for seconds in figures)))
    return _table(("", "saves", "together", "median", "longest"), rows, numbers=range(1, 5))


def _attempts(attempts: Sequence[Attempt]) -> str:
    shown, now = attempts[-MAX_ATTEMPTS:], datetime.now(UTC)
    rows = [
        (
            str(attempt.attempt),
            json_time(attempt.started_at)[:19],
            duration_text(attempt, now),
            reason_text(attempt),
            "" if attempt.resumed_from is None else str(attempt.resumed_from),
            "" if attempt.batches_lost is None else str(attempt.batches_lost),
            code_text(attempt),
            f"{attempt.host}, process {attempt.pid}",
            " ".join(attempt.command),
        )
        for attempt in shown
    ]
    older = len(attempts) - len(shown)
    note = f'<p class="quiet">{older} older ones are not shown.</p>' if older else ""
    head = (
        "attempt",
        "began (UTC)",
        "lasted",
        "ended",
        "resumed from",
        "batches lost",
        "code",
        "host",
        "command",
    )
    return note + _table(head, rows, numbers=(0, 2, 4, 5))


def _events(events: Sequence[Event]) -> str:
    rows = [
        (
            json_time(event.at)[:19],
            event.kind,
            "" if event.version is None else str(event.version),
            ""
            if event.detail is None
            else printable_json(json.dumps(dict(event.detail), ensure_ascii=False)),
        )
        for event in events[:MAX_EVENTS]
    ]
    note = '<p class="quiet">Older ones are not shown.</p>' if len(events) > MAX_EVENTS else ""
    return note + _table(("at (UTC)", "event", "version", "detail"), rows, numbers=(2,))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=' + chr(34) + 'n' + chr(34) if at in right else ''}>{escape(text)}</{kind}>"
            for at, text in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{cells("th", head)}</tr>\n{body}\n</table></div>'
