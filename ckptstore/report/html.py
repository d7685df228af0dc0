"""One HTML file about runs, which needs nothing else: picture, checkpoints, configuration, cost of saving, events.

Every text that comes from a store is escaped, and a content policy lets the page load nothing.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Any

from ckptstore.records import Checkpoint, Event, json_time
from ckptstore.report.plot import RunPicture
from ckptstore.report.text import metric_text, position_text, size_text
from ckptstore.report.variables import Layout, layer_rows

_CHECKPOINTS_MOST, _EVENTS_MOST = 300, 200
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
    """What there is to tell of one run.

    Attributes:
        picture: Its history, checkpoints, best and resume point.
        events: What happened, newest first.
        layout: Shape and dtype of the variables of its newest checkpoint; empty where that cannot be read.
        configuration: The newest checkpoint's configuration by document, parsed JSON.
    """

    picture: RunPicture
    events: Sequence[Event]
    layout: Layout = field(hash=False)
    configuration: dict[str, Any] = field(hash=False)

    @property
    def run(self) -> str:
        """The run's name."""
        return self.picture.history.run


def page(title: str, made_at: datetime, runs: Sequence[RunReport], image: bytes | None) -> str:
    """Return the page.

    Args:
        title: What stands above; the store.
        made_at: When the page is made; aware.
        runs: The runs.
        image: A picture of them, PNG, or None where there is nothing to draw.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">made by ckptstore, {escape(json_time(made_at))}</p>',
        "<p>No metrics yet.</p>" if image is None else _image(image),
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


def _image(image: bytes) -> str:
    data = base64.b64encode(image).decode("ascii")
    return f'<img alt="metrics over epochs" src="data:image/png;base64,{data}">'


def _run(run: RunReport) -> list[str]:
    checkpoints = run.picture.checkpoints
    resumes = run.picture.history.resumes
    counted = f"{len(checkpoints)} checkpoints, {size_text(sum(one.nbytes for one in checkpoints))}"
    parts = [
        f"<h2>Run {escape(run.run)}</h2>",
        f"<p>{counted}; interrupted {len(resumes)} time{'' if len(resumes) == 1 else 's'}.</p>",
    ]
    if run.picture.best or run.picture.resume_point is not None:
        parts += ["<h3>Best and resume point</h3>", _best(run.picture)]
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
        text = json.dumps(document, indent=2, ensure_ascii=False)
        parts.append(f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>")
    if run.events:
        parts += ["<h3>Events</h3>", _events(run.events)]
    return parts


def _best(picture: RunPicture) -> str:
    rows = [
        (f"best {name}", metric_text(one.metrics[name]), str(one.version), position_text(one))
        for name, one in picture.best.items()
    ]
    if picture.resume_point is not None:
        point = picture.resume_point
        rows.append(("resume point", "", str(point.version), position_text(point)))
    return _table(("", "value", "version", "position"), rows, numbers=(1, 2))


def _checkpoints(checkpoints: Sequence[Checkpoint]) -> str:
    shown = checkpoints[-_CHECKPOINTS_MOST:]
    names = list(dict.fromkeys(name for one in shown for name in one.metrics))
    head = ("version", "epoch", "batch", "step", *names, "size", "saved", "tags", "digest")
    rows = [
        (
            str(one.version),
            str(one.epoch),
            "end" if one.batch is None else str(one.batch),
            "" if one.step is None else str(one.step),
            *(metric_text(one.metrics.get(name)) for name in names),
            size_text(one.nbytes),
            json_time(one.created_at)[:19],
            ", ".join([*one.tags, *(["(pinned)"] if one.pinned else [])]),
            one.digest.partition(":")[2][:12],
        )
        for one in shown
    ]
    left = len(checkpoints) - len(shown)
    before = f'<p class="quiet">{left} older ones are not shown.</p>' if left else ""
    return before + _table(head, rows, numbers=range(4 + len(names) + 1))


def _cost(checkpoints: Sequence[Checkpoint]) -> str:
    rows = []
    for what, values in (
        ("training waited", [one.blocked_s for one in checkpoints if one.blocked_s is not None]),
        ("until it was durable", [one.total_s for one in checkpoints if one.total_s is not None]),
    ):
        if values:
            told = (sum(values), statistics.median(values), max(values))
            rows.append((what, str(len(values)), *(f"{seconds:.3f} s" for seconds in told)))
    return _table(("", "saves", "together", "median", "longest"), rows, numbers=range(1, 5))


def _events(events: Sequence[Event]) -> str:
    rows = [
        (
            json_time(event.at)[:19],
            event.kind,
            "" if event.version is None else str(event.version),
            "" if event.detail is None else json.dumps(dict(event.detail), ensure_ascii=False),
        )
        for event in events[:_EVENTS_MOST]
    ]
    left = '<p class="quiet">Older ones are not shown.</p>' if len(events) > _EVENTS_MOST else ""
    return left + _table(("at (UTC)", "event", "version", "detail"), rows, numbers=(2,))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cells(kind: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=' + chr(34) + 'n' + chr(34) if at in right else ''}>{escape(text)}</{kind}>"
            for at, text in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{cells("th", head)}</tr>\n{body}\n</table></div>'
