"""What runs went through: each metric by epoch, across restarts, and several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ckptstore.errors import MetricNotFoundError, RunNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.metrics import mode_of
from ckptstore.records import Checkpoint, Epoch, Mode, Resumed, json_number, json_time


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run's metrics by epoch, as far as checkpoints told of them, also of those that are gone by now.

    Of an epoch that was trained twice, as after a crash, the later time counts; of a run that was begun anew, the
    newest attempt.

    Attributes:
        run: The run.
        epochs: What is known of each epoch, in order.
        resumes: Where the run was gone on with after it had been interrupted, in order.
    """

    run: str
    epochs: Sequence[Epoch]
    resumes: Sequence[Resumed]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics, in the order in which they appeared."""
        return tuple(dict.fromkeys(name for epoch in self.epochs for name in epoch.metrics))

    def of(self, metric: str) -> tuple[list[int], list[float]]:
        """Return the epochs, zero-based, in which a metric is known, and its values there."""
        known = [epoch for epoch in self.epochs if metric in epoch.metrics]
        return [epoch.epoch for epoch in known], [epoch.metrics[metric] for epoch in known]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "run": self.run,
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "resumes": [resumed.to_json() for resumed in self.resumes],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run beside others.

    Attributes:
        run: The run.
        checkpoints: How many it has.
        epochs: How many epochs it has told of.
        resumes: How often it was gone on with.
        latest: Its newest checkpoint, or None.
        first_at: When its first epoch was saved; aware, UTC; None where it saved none.
        best: By metric, its best checkpoint, where the direction is known.
        modes: By metric, the direction.
    """

    run: str
    checkpoints: int
    epochs: int
    resumes: int
    latest: Checkpoint | None
    first_at: datetime | None
    best: Mapping[str, Checkpoint]
    modes: Mapping[str, Mode]

    def best_value(self, metric: str) -> float:
        """Return the best value of a metric; NaN where there is none."""
        checkpoint = self.best.get(metric)
        return math.nan if checkpoint is None else checkpoint.metrics[metric]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        best = {
            metric: {
                "mode": self.modes[metric],
                "value": json_number(one.metrics[metric]),
                "version": one.version,
            }
            for metric, one in self.best.items()
        }
        return {
            "run": self.run,
            "checkpoints": self.checkpoints,
            "epochs": self.epochs,
            "resumes": self.resumes,
            "first_at": None if self.first_at is None else json_time(self.first_at),
            "latest": None if self.latest is None else self.latest.to_json(),
            "best": best,
        }


def history_of(manifest: Manifest, store: Path, run: str) -> History:
    """Return a run's history.

    Raises:
        RunNotFoundError: There is no such run.
    """
    _check_runs(manifest, store, [run])
    return History(
        run=run, epochs=tuple(manifest.epochs.iterate(run)), resumes=tuple(manifest.events.resumes(run))
    )


def compare(
    manifest: Manifest, store: Path, runs: Collection[str], metrics: Collection[str] | None
) -> list[RunSummary]:
    """Return runs side by side; `ckptstore.CheckpointStore.compare` says how.

    Raises:
        RunNotFoundError: There is no such run.
        MetricNotFoundError: None of the runs has a metric.
    """
    _check_runs(manifest, store, runs)
    chosen = list(dict.fromkeys(runs)) or list(manifest.runs.names())
    recorded = {run: manifest.metrics.names(run) for run in chosen}
    known = sorted({metric for names in recorded.values() for metric in names})
    for metric in metrics or ():
        if metric not in known:
            raise MetricNotFoundError(metric=metric, store=store, known=tuple(known))
    wanted = known if metrics is None else list(dict.fromkeys(metrics))
    return [_summary(manifest, run, [one for one in wanted if one in recorded[run]]) for run in chosen]


def _summary(manifest: Manifest, run: str, metrics: Sequence[str]) -> RunSummary:
    watched = manifest.runs.monitors(run)
    modes = {metric: mode for metric in metrics if (mode := watched.get(metric) or mode_of(metric))}
    found = {metric: manifest.checkpoints.best(metric, mode, run) for metric, mode in modes.items()}
    best = {metric: one for metric, one in found.items() if one is not None}
    epochs, first_at = manifest.epochs.count_and_start(run)
    return RunSummary(
        run=run,
        checkpoints=manifest.checkpoints.count(run),
        epochs=epochs,
        resumes=len(manifest.events.resumes(run)),
        latest=manifest.checkpoints.latest(run),
        first_at=first_at,
        best=best,
        modes={metric: modes[metric] for metric in best},
    )


def _check_runs(manifest: Manifest, store: Path, runs: Collection[str]) -> None:
    known = manifest.runs.names()
    for run in runs:
        if run not in known:
            raise RunNotFoundError(run=run, store=store, known=known)
