"""Saves that appear as files under the user's names, with the decisions and messages of Keras' ModelCheckpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ckptstore.background.save_queue import Backpressure
from ckptstore.errors import StorageError, StoreLockedError
from ckptstore.keras.private import print_message, synced_train_state
from ckptstore.metrics import scalars
from ckptstore.records import Checkpoint
from ckptstore.store.store import CheckpointStore
from ckptstore.system import messages
from ckptstore.training.saving.arguments import refuse_directory, refuse_unwritable
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.file_template import CheckpointPath
from ckptstore.training.saving.monitor import MonitoredMetric, Verdict
from ckptstore.training.saving.save_point import SavePoint
from ckptstore.training.saving.saves import Saves


class FileSaves(Saves):
    """Saves a model, and publishes each checkpoint at a path.

    Args:
        files: The template of the paths; its directory holds the store.
        run: The run.
        failures: Handles failed saves.
        background: As for `Saves`.
        backpressure: As for `Saves`.

    Attributes:
        best_only: Whether to save only what is better than everything before.
        monitored: The monitored metric.
    """

    monitored: MonitoredMetric
    has_fixed_format = True

    def __init__(
        self,
        files: CheckpointPath,
        run: str,
        failures: SaveFailures,
        *,
        background: bool,
        backpressure: Backpressure,
    ) -> None:
        super().__init__(files.store, run, failures, background=background, backpressure=backpressure)
        self.best_only = False
        self._files = files
        self._dropped_logs: set[str] = set()

    def open(self, fit: object, *, ready: Callable[[], None] | None = None) -> CheckpointStore:
        """Open the store and take the run; refuses a folder that cannot be written."""
        super().open(fit, ready=ready or partial(refuse_unwritable, self._files.directory))
        store = self.store
        assert store is not None
        return store

    @property
    def store(self) -> CheckpointStore | None:
        """The store while it is open, else None; files are shown by one process alone."""
        store = super().store
        assert store is None or isinstance(store, CheckpointStore)
        return store

    def reopen(self, model: Any, fit: object) -> CheckpointStore:
        """Return the store, opened again if another callback has taken the run meanwhile."""
        if self.store is not None:
            return self.store
        store = self.open(fit)
        self.begin(model)
        return store

    # --- what to save ------------------------------------------------------------------------------

    def save_if_wanted(self, model: Any, point: SavePoint, *, batch: int | None, fit: object) -> None:
        """Save and publish, unless only the best is wanted and this is not better.

        Args:
            model: The model; on JAX the last step's state need not be in its variables.
            point: The position, with its logs.
            batch: Index of the batch as Keras counts it, for the file name; None at an epoch's end.
            fit: As for `open`.

        Raises:
            StorageError: There is a directory at the path.
            CheckpointStoreError: As `save`.
        """
        monitored = self.monitored
        if monitored.mode is None and (self.best_only or point.logs.get(monitored.name) is not None):
            monitored.resolve(model)
        name = self._files.fill(epoch=point.epoch, batch=batch, logs=point.logs)
        target = self._files.absolute(name)
        if self._is_wanted(model, point, name, target, fit):
            refuse_directory(target)
            self.reopen(model, fit)
            with synced_train_state(model):
                self.save(model, replace(point, publish=target), name=name)

    def _is_wanted(self, model: Any, point: SavePoint, name: str, target: Path, fit: object) -> bool:
        metric = self.monitored.name
        if not self.best_only:
            self._print(point.epoch, f"saving model to {name}")
            return True
        value: Any = point.logs.get(metric)
        verdict = self.monitored.judge(value)
        if verdict in (Verdict.MISSING, Verdict.NOT_SCALAR, Verdict.NAN):
            if verdict is Verdict.NOT_SCALAR:
                text = f"Can save best model only when `monitor` is a scalar value. Received: {value}."
            else:
                text = f"Can save best model only with {metric} available."
                text += " Received: NaN." if verdict is Verdict.NAN else ""
            self.drain()  # only then is it known which files there are
            wanted = not os.path.lexists(target) and (
                verdict is not Verdict.NAN or self._has_nothing(model, fit)
            )
            rest = (
                "it is saved, since there is no file yet"
                if wanted
                else "it is not saved, to replace no better one"
            )
            messages.warn(f"{text} Epoch {point.epoch + 1}: {rest}.", UserWarning)
            return wanted
        best = "None" if self.monitored.best is None else f"{self.monitored.best:.5f}"
        if verdict is Verdict.NOT_BETTER:
            self._print(point.epoch, f"{metric} did not improve from {best}")
            return False
        text = f"{metric} improved from {best} to {float(value):.5f}, saving model to {name}"
        self._print(point.epoch, text)
        return True

    def _has_nothing(self, model: Any, fit: object) -> bool:
        """Return True if the run has no checkpoint that could be better than NaN."""
        if self.monitored.best is not None or not self._files.has_placeholders:
            return self.monitored.best is None
        return self.reopen(model, fit).latest(self.run) is None

    def _metrics(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return the logs that are numbers; warns of the others, once for each name."""
        metrics, dropped = scalars(logs)
        new = [name for name in dropped if name not in self._dropped_logs]
        if new:
            self._dropped_logs.update(new)
            messages.warn(
                f"Logs that are not single numbers are not recorded as metrics: {', '.join(new)}", UserWarning
            )
        return metrics

    def _warn_if_not_monitored(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Say nothing here: a save that needs the metric says it, in Keras' words."""

    def record_last_epochs(self) -> None:
        """Record the metrics of the epochs after the last save, at the end of a fit: no other save will."""
        self.drain()
        epochs = self.unrecorded.all()
        if not epochs or self.store is None:
            return
        try:
            self.store.record_epochs(self.run, epochs)
        except (StorageError, StoreLockedError) as error:
            messages.warn(f"the metrics of the last epochs are not recorded: {error}", UserWarning)
        self.unrecorded.replace()

    # --- messages ----------------------------------------------------------------------------------

    def _print_saved(self, saved: Checkpoint, best: float | None, name: str) -> None:
        if self._failures.in_a_row == 0:
            self._print(saved.epoch, f"finished saving model to {name}")

    def _print(self, epoch: int, text: str) -> None:
        if self.settings.verbose > 0:
            print_message(f"\nEpoch {epoch + 1}: {text}")
