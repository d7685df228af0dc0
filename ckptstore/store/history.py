"""A run's metrics by epoch, across restarts, and the comparison of several runs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import MetricNotFoundError, RunNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.metrics import mode_of
from ckptstore.records import (
    Checkpoint,
    Epoch,
    FinishedEpoch,
    Mode,
    Resumed,
    RunState,
    json_number,
    json_time,
)
from ckptstore.storage.layout import Layout
from ckptstore.store.runs import runs_of

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run's metrics by epoch, as its checkpoints recorded them, including checkpoints that were removed.

    A checkpoint also records the epochs that ended before it without being saved. Of an epoch trained twice, as after a
    crash, the later record counts; of a run begun from scratch again, the newest beginning.

    Attributes:
        run: The run.
        epochs: The record of each epoch, in order.
        resumes: The positions from which the run was resumed, in order: after an interruption, or after its end.
    """

    run: str
    epochs: Sequence[Epoch]
    resumes: Sequence[Resumed]

    @property
    def interruptions(self) -> tuple[Resumed, ...]:
        """The positions from which the run was resumed after an interruption, in order."""
        return tuple(resumed for resumed in self.resumes if resumed.interrupted)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all metrics, in the order in which they appeared."""
        return tuple(dict.fromkeys(name for epoch in self.epochs for name in epoch.metrics))

    def of(self, metric: str) -> tuple[list[int], list[float]]:
        """Return the epochs, zero-based, in which a metric is known, and its values there."""
        known = [epoch for epoch in self.epochs if metric in epoch.metrics]
        return [epoch.epoch for epoch in known], [epoch.metrics[metric] for epoch in known]

    def to_dataframe(self) -> DataFrame:
        """Return it as a pandas table: a row for each epoch, its fields, then a column for each metric.

        Raises:
            MissingPackageError: (an ImportError) pandas is not installed.
        """
        from ckptstore.store.dataframe import dataframe_of_epochs

        return dataframe_of_epochs(self.epochs)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "run": self.run,
            "epochs": [epoch.to_json() for epoch in self.epochs],
            "resumes": [resumed.to_json() for resumed in self.resumes],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Summary of one run, for a comparison.

    Attributes:
        run: The run.
        state: Its state, as `Run` has it.
        checkpoints: Number of its checkpoints.
        epochs: Number of epochs that it has recorded.
        resumes: Number of times it was resumed.
        latest: Its newest checkpoint, or None.
        first_at: When its first recorded epoch ended or was saved; aware, UTC; None if it saved nothing.
        best: Its best checkpoint by each metric whose better direction is known.
        modes: The better direction of each of these metrics.
    """

    run: str
    state: RunState
    checkpoints: int
    epochs: int
    resumes: int
    latest: Checkpoint | None
    first_at: datetime | None
    best: Mapping[str, Checkpoint]
    modes: Mapping[str, Mode]

    def best_value(self, metric: str) -> float:
        """Return the best value of a metric; NaN if there is none."""
        checkpoint = self.best.get(metric)
        return math.nan if checkpoint is None else checkpoint.metrics[metric]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        best = {
            metric: {
                "mode": self.modes[metric],
                "value": json_number(checkpoint.metrics[metric]),
                "version": checkpoint.version,
            }
            for metric, checkpoint in self.best.items()
        }
        return {
            "run": self.run,
            "state": self.state,
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


def epochs_since_checkpoint_before(manifest: Manifest, checkpoint: Checkpoint) -> list[FinishedEpoch]:
    """Return the finished epochs between a checkpoint and the existing one before it in its run.

    They were not saved, or their checkpoints have been removed.
    """
    before = manifest.checkpoints.latest(checkpoint.run, before=checkpoint.version)
    after = 0 if before is None else before.version
    return manifest.epochs.not_saved_between(checkpoint.run, after, checkpoint)


def compare(
    manifest: Manifest, store: Path, runs: Collection[str], metrics: Collection[str] | None
) -> list[RunSummary]:
    """Return a summary of each run; see `ckptstore.CheckpointStore.compare`.

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
    states = {run.name: run.state for run in runs_of(manifest, Layout(store))}
    return [
        _summary(manifest, run, states[run], [metric for metric in wanted if metric in recorded[run]])
        for run in chosen
    ]


def _summary(manifest: Manifest, run: str, state: RunState, metrics: Sequence[str]) -> RunSummary:
    watched = manifest.runs.monitors(run)
    modes = {metric: mode for metric in metrics if (mode := watched.get(metric) or mode_of(metric))}
    found = {metric: manifest.checkpoints.best(metric, mode, run) for metric, mode in modes.items()}
    best = {metric: checkpoint for metric, checkpoint in found.items() if checkpoint is not None}
    epochs, first_at = manifest.epochs.count_and_start(run)
    return RunSummary(
        run=run,
        state=state,
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
