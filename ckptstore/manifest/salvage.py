"""Reads from a damaged manifest what no payload knows, as far as SQLite still can."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeGuard

from ckptstore.errors import CorruptManifestError, InvalidArgumentError
from ckptstore.manifest.engine import roll_back_hot_journal, uri_of
from ckptstore.records import END_REASONS, Attempt, FinishedEpoch, Mode
from ckptstore.validation import check_metrics, check_position, check_run, check_tag

_MONITORS = (
    "SELECT runs.name, metric_names.name, mode FROM monitors"
    " JOIN runs ON runs.id = run_id JOIN metric_names ON metric_names.id = metric_id"
)
_BEGAN = (
    "SELECT runs.name, version, detail FROM events JOIN runs ON runs.id = run_id"
    " WHERE kind = 'began' ORDER BY events.id"
)
# The ends of epochs; ordered so that the rows of one epoch follow each other.
_EPOCHS = (
    "SELECT runs.name, epochs.epoch, epochs.step, epochs.version, epochs.created_at, metric_names.name, value"
    " FROM epochs JOIN runs ON runs.id = epochs.run_id"
    " JOIN epoch_metrics ON epoch_metrics.run_id = epochs.run_id AND epoch_metrics.epoch = epochs.epoch"
    " JOIN metric_names ON metric_names.id = metric_id"
    " WHERE epochs.batch IS NULL ORDER BY epochs.run_id, epochs.epoch"
)
_ATTEMPT_COLUMNS = tuple(field.name for field in fields(Attempt) if field.name != "run")
_ATTEMPTS = (
    f"SELECT runs.name, {', '.join(_ATTEMPT_COLUMNS)} FROM attempts"
    " JOIN runs ON runs.id = attempts.run_id ORDER BY attempts.run_id, attempts.attempt"
)


@dataclass(slots=True)
class Salvaged:
    """The facts that could be read from a damaged manifest; empty where nothing could.

    Attributes:
        uuid: The store's id, or None.
        next_version: The number of the next version; 1 where unknown.
        pinned: Versions that are pinned.
        tags: Versions by tag.
        costs: `blocked_s` and `total_s` by version.
        monitors: Run, metric and better direction.
        beginnings: First versions of the beginnings, by run and number.
        epochs: Epochs that were finished, by run and the version that recorded them.
        attempts: Attempts at runs.
        unsound: Versions that were found unsound when a loss went bad.
    """

    uuid: str | None = None
    next_version: int = 1
    pinned: set[int] = field(default_factory=set)
    tags: dict[str, int] = field(default_factory=dict)
    costs: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    monitors: list[tuple[str, str, Mode]] = field(default_factory=list)
    beginnings: dict[tuple[str, int], int] = field(default_factory=dict)
    epochs: dict[tuple[str, int], list[FinishedEpoch]] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    unsound: set[int] = field(default_factory=set)


def salvage(path: Path) -> Salvaged:
    """Read what is left of a damaged manifest.

    Each table is read separately, so that one bad page costs only the rows after it.
    """
    found = Salvaged()
    if not path.is_file():
        return found
    with suppress(CorruptManifestError):
        # As any opening would, this undoes a commit during which a writer died; a damaged file is left as it is.
        roll_back_hot_journal(path)
    for uuid, next_version in _rows(path, "SELECT uuid, next_version FROM store"):
        if isinstance(uuid, str) and isinstance(next_version, int) and 0 < next_version < 10**18:
            found.uuid, found.next_version = uuid, next_version
    for (version,) in _rows(path, "SELECT version FROM checkpoints WHERE pinned"):
        if isinstance(version, int):
            found.pinned.add(version)
    for name, version in _rows(path, "SELECT name, version FROM tags"):
        if isinstance(version, int) and _is_tag(name):
            found.tags[name] = version
    for version, blocked_s, total_s in _rows(path, "SELECT version, blocked_s, total_s FROM checkpoints"):
        if isinstance(version, int):
            found.costs[version] = (_seconds(blocked_s), _seconds(total_s))
    for run, metric, mode in _rows(path, _MONITORS):
        if isinstance(run, str) and isinstance(metric, str) and mode in ("min", "max"):
            found.monitors.append((run, metric, "min" if mode == "min" else "max"))
    unsound = _rows(path, "SELECT version FROM events WHERE kind = 'unsound'")
    found.unsound = {version for (version,) in unsound if isinstance(version, int)}
    found.beginnings = _beginnings(path, found.next_version)
    found.epochs = _epochs(path)
    found.attempts = _attempts(path)
    return found


def _epochs(path: Path) -> dict[tuple[str, int], list[FinishedEpoch]]:
    found: dict[tuple[str, int], dict[int, FinishedEpoch]] = {}
    for run, epoch, step, version, ended_at, name, value in _rows(path, _EPOCHS):
        with suppress(ValueError, TypeError, OverflowError):
            check_position(epoch, None, step)
            metrics = check_metrics({str(name): math.nan if value is None else float(str(value))})
            moment = datetime.fromisoformat(str(ended_at)).astimezone(UTC)
            if isinstance(run, str) and isinstance(version, int) and isinstance(epoch, int):
                of_version = found.setdefault((run, version), {})
                known = of_version.get(epoch)
                of_version[epoch] = FinishedEpoch(
                    epoch=epoch,
                    step=step if isinstance(step, int) else None,
                    ended_at=moment,
                    metrics=metrics if known is None else {**known.metrics, **metrics},
                )
    return {key: list(epochs.values()) for key, epochs in found.items()}


def _is_tag(name: object) -> TypeGuard[str]:
    try:
        check_tag(name)
    except InvalidArgumentError:
        return False
    return True


def _beginnings(path: Path, next_version: int) -> dict[tuple[str, int], int]:
    found: dict[tuple[str, int], int] = {}
    for run, version, detail in _rows(path, _BEGAN):
        number = _number(detail)
        if isinstance(run, str) and isinstance(version, int) and 0 < version <= next_version and number:
            found[run, number] = version
    return found


def _attempts(path: Path) -> list[Attempt]:
    found = {}
    for run, *row in _rows(path, _ATTEMPTS):
        with suppress(ValueError, TypeError, AttributeError):
            values = dict(zip(_ATTEMPT_COLUMNS, row, strict=True))
            found[run, values["attempt"]] = _attempt(path.parent, check_run(run), values)
    return list(found.values())


def _attempt(store: Path, run: str, values: dict[str, Any]) -> Attempt:
    """Return the attempt of a row; raises TypeError, ValueError or AttributeError of one that is damaged."""
    for name in ("attempt", "pid"):
        if type(values[name]) is not int or values["attempt"] < 1:
            raise ValueError(f"{name} is {values[name]!r}")
    for name in ("resumed_from", "batches_lost", "exit_code"):
        if values[name] is not None and type(values[name]) is not int:
            raise ValueError(f"{name} is {values[name]!r}")
    for name in ("host", "directory"):
        values[name] = str(values[name])
    for name in ("git_commit", "signal"):
        values[name] = None if values[name] is None else str(values[name])
    for name in ("command", "devices"):
        values[name] = tuple(map(str, json.loads(values[name])))
    for name in ("versions", "environment", "detail"):
        values[name] = dict(json.loads(values[name]).items())
    values["started_at"] = datetime.fromisoformat(values["started_at"]).astimezone(UTC)
    if values["ended_at"] is not None:
        values["ended_at"] = datetime.fromisoformat(values["ended_at"]).astimezone(UTC)
    for name in ("log", "diff"):
        values[name] = None if values[name] is None else Path(os.path.normpath(store / values[name]))
    values["git_dirty"] = None if values["git_dirty"] is None else bool(values["git_dirty"])
    values["supervised"] = bool(values["supervised"])
    if (values["reason"] is None) != (values["ended_at"] is None) or values["reason"] not in (
        None,
        *END_REASONS,
    ):
        raise ValueError(f"reason is {values['reason']!r}")
    return Attempt(run=run, **values)


def _number(detail: object) -> int | None:
    try:
        found = json.loads(detail) if isinstance(detail, str) else {}
        number = found.get("beginning", found.get("attempt"))
    except (ValueError, AttributeError):
        return None
    return number if type(number) is int and number > 0 else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Return the rows that come before the first error."""
    rows: list[tuple[object, ...]] = []
    try:
        # Immutable: no journal is rolled back, no log is read, and nothing is written beside it.
        with closing(sqlite3.connect(f"{uri_of(path)}?mode=ro&immutable=1", uri=True)) as connection:
            for row in connection.execute(query):
                rows.append(row)
    except sqlite3.Error:
        # Expected of a damaged manifest: the rest cannot be read.
        return rows
    return rows
