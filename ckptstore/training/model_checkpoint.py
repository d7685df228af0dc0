"""`ModelCheckpoint`: Keras' callback of that name, with saves that are atomic, durable and indexed."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Literal

import keras

from ckptstore.background.save_queue import Backpressure
from ckptstore.commit.earlier_epochs import EARLIER_EPOCHS, read_earlier_epochs
from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.model.processes import refuse_fit_in_several_processes
from ckptstore.keras.private import FitLoop, running_fit, unsynced_model
from ckptstore.retention import Policy, keep_last
from ckptstore.system.messages import warn
from ckptstore.training.saving.arguments import (
    OnSaveError,
    check_background,
    check_keep,
    check_on_save_error,
    check_save_freq,
    refuse_directory,
)
from ckptstore.training.saving.attempt_end import plan_end
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.file_saves import FileSaves
from ckptstore.training.saving.file_template import CheckpointPath
from ckptstore.training.saving.monitor import MonitoredMetric
from ckptstore.training.saving.save_point import SavePoint
from ckptstore.training.saving.saves import SaveSettings
from ckptstore.training.saving.schedule import every
from ckptstore.training.saving_callback import SavingCallback
from ckptstore.training.session.fit_heartbeat import FitHeartbeat
from ckptstore.training.session.fit_order import fits_on
from ckptstore.training.session.position import BatchPosition
from ckptstore.validation import check_run


class ModelCheckpoint(SavingCallback, keras.callbacks.ModelCheckpoint):
    """Save the model while it trains; `keras.callbacks.ModelCheckpoint` with a safe store behind it.

    The first eight arguments are Keras'. Each checkpoint is written to the store ``.ckptstore`` beside the file, made
    durable and recorded with its position and all its metrics; then `filepath` shows it, by an atomic rename of a hard
    link. A crash at any instant leaves at `filepath` the complete old file or the complete new one, and every
    checkpoint that was reported saved. The metrics of epochs that are not saved are recorded with the next save, or at
    the end of the fit. It is a subclass of Keras' class, so that code which looks for one finds it.

    Where it differs from Keras':

    - The best survives a restart: it is looked up in the store when training begins, for the file at `filepath` (of a
      name with placeholders: for the best one's file). Removing that file makes the best void. As with Keras', the
      next fit of the same process with another callback begins without a best: give each fold its own file, since a
      script that is started again finds the last one's.
    - A metric that is missing, NaN or not a scalar never replaces a best, nor a file that is there. Where none is there
      yet the checkpoint is saved, with Keras' warning.
    - ``save_best_only`` with an integer `save_freq` works from the first batch on.
    - ``mode="auto"`` is resolved, or refused, when training begins, not an epoch later.
    - A placeholder without a value becomes ``nan``, with a warning, and does not end the run.
    - An existing directory as `filepath` and a folder that cannot be written are refused when training begins.
    - A relative `filepath` is resolved when the callback is made.
    - A full or failing disk does not end the training at once; see `on_save_error`.

    Args:
        filepath: Where the file appears; str or PathLike, with placeholders for ``epoch``, ``batch`` (both
            count from 1) and every log, such as ``"models/{epoch:02d}-{val_loss:.2f}.keras"``. Ends with
            ``.keras`` or ``.h5``, or with ``.weights.h5`` if `save_weights_only`. Missing folders are made.
        monitor: The log to watch.
        verbose: 0 is silent, 1 prints Keras' messages.
        save_best_only: Save only what is better by `monitor` than everything before.
        save_weights_only: Save weights and optimizer, not the whole model.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to decide by the metric.
        save_freq: ``"epoch"``, or a number of batches after which to save, counted across epochs.
        initial_value_threshold: The best to begin with.
        run: The name of the run in the store; by default made from the file name. Two callbacks that write at
            once need two runs.
        keep: What stays in the store; by default, with placeholders everything (as in Keras), without them the
            checkpoint at `filepath` and the one before. ``"all"`` keeps everything. A checkpoint whose file still
            stands at a path is kept in any case.
        background: True to save in the background, in a process of its own: a step waits for one copy of the state
            in memory, and the file appears when it is durable, at latest when training ends. The older ``.h5`` format
            is waited for anyway.
        backpressure: What happens to one that waits when saves come faster than the disk takes them: ``"replace"``
            it, where the file has one name, by a newer that is no worse than the best; or ``"wait"`` for the disk.
        on_save_error: What happens when the disk fails or is full, after some tries: ``"warn"`` lets training
            continue without that checkpoint, ``"raise"`` ends it.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training anyway.

    Raises:
        InvalidArgumentError: (a ValueError) An argument cannot be used, in Keras' words where it has some.

    Attributes:
        best: The best value so far, or None.
        last: The checkpoint saved last, or None.

    Example:
        >>> callback = ModelCheckpoint("models/best.keras", monitor="val_accuracy", save_best_only=True)
        >>> callback.run
        'best'
    """

    def __init__(  # noqa: PLR0917 - Keras' order
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: int | Literal["epoch"] = "epoch",
        initial_value_threshold: float | None = None,
        *,
        run: str | None = None,
        keep: Policy | Literal["all"] | None = None,
        background: bool = False,
        backpressure: Backpressure = "replace",
        on_save_error: OnSaveError = "warn",
        max_save_failures: int = 3,
    ) -> None:
        self._path = CheckpointPath(filepath, weights_only=save_weights_only)
        check_save_freq(save_freq)
        check_keep(keep)
        check_on_save_error(on_save_error, max_save_failures)
        check_background(background, backpressure)
        named = self._path.run if run is None else check_run(run)
        self.run = named
        self._saves: FileSaves = FileSaves(
            self._path,
            named,
            SaveFailures(on_save_error, max_save_failures),
            background=background,
            backpressure=backpressure,
        )
        self._saves.monitored = MonitoredMetric(monitor)
        super().__init__(
            filepath,
            monitor=monitor,
            verbose=verbose,
            save_best_only=save_best_only,
            save_weights_only=save_weights_only,
            mode=mode,
            save_freq=save_freq,
            initial_value_threshold=initial_value_threshold,
        )
        # Not every Keras keeps it.
        self.mode = mode if mode in ("min", "max") else "auto"
        self.keep = keep
        self.initial_value_threshold = initial_value_threshold
        self._position = BatchPosition()
        self._schedule = every(save_freq)
        self._thread: int | None = None
        self._fit_heartbeat: FitHeartbeat | None = None
        self._is_by_hand = False
        self._loop: FitLoop | None = None
        self._set_up_saves()

    def _set_up_saves(self) -> None:
        self._pass_on_settings()
        self._saves.monitored = MonitoredMetric(
            self.monitor,
            self.mode,
            threshold=self.initial_value_threshold,
            callback=type(self).__name__,
        )

    def _pass_on_settings(self) -> None:
        """Pass on `verbose`, `save_best_only` and `keep` as they are now: as in Keras, they may change in a fit."""
        keep = self.keep
        if keep is None and not self._path.has_placeholders:
            keep = keep_last(2)
        self._saves.settings = SaveSettings(
            format=self._path.format, keep=None if keep == "all" else keep, verbose=self.verbose
        )
        self._saves.best_only = self.save_best_only

    @property
    def best(self) -> float | None:
        """The best value so far, or None."""
        return self._saves.monitored.best

    @best.setter
    def best(self, best: float | None) -> None:
        self._saves.monitored.begin(best)

    # --- Keras' hooks ------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the store, finish what a crash left, take the run, and look up its best.

        Raises:
            SeveralProcessesError: Several processes train the model together; nothing was opened.
            InvalidArgumentError: Nothing tells the direction of `monitor`; or two callbacks of this fit write
                one run.
            RunLockedError: Another process writes the run.
            StorageError: `filepath` is a directory, or its folder cannot be written.
        """
        refuse_fit_in_several_processes(self, self.model)
        self._set_up_saves()
        self._saves.monitored.resolve(self.model)
        if not self._path.has_placeholders:
            refuse_directory(self._path.absolute(self._path.fill(epoch=0, batch=None, logs={})))
        steps = (self.params or {}).get("steps")
        self._position = BatchPosition(per_epoch=None if steps is None else int(steps))
        # As in Keras, the batches since the last save continue to count.
        since_save, self._schedule = self._schedule.since_save, every(self.save_freq)
        self._schedule.since_save = since_save
        self._thread = threading.get_ident()
        self._release_loop()
        store = self._saves.open(self.params)
        self._loop = running_fit(self)
        self._is_by_hand = self._loop is None
        if self._loop is not None:
            self._loop.report_errors(self._saves.training_failed)
        self._saves.begin(self.model)
        self._saves.unrecorded.replace()
        if not fits_on(self.store_path).reopen(self._saves.run, by=self):
            change = self._saves.monitored.begin_with_published(store, self._saves.run)
            if change is not None:
                warn(change)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the position."""
        is_first = self._position.steps_before is None
        self._position.begin_epoch(epoch)
        if (heartbeat := self._heartbeat()) is not None:
            heartbeat.epoch_begins(epoch)
        if is_first:
            self._position.steps_before = self._steps_before(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, if enough batches have passed; with ``steps_per_execution`` several pass at once."""
        position, saves = self._position, self._saves
        before = position.counted
        position.batch_done(batch)
        if (heartbeat := self._heartbeat()) is not None:
            heartbeat.batch_ends(logs)
        due = self._schedule.due_after(position.counted - before)
        saves.settle()
        if self.save_freq != "epoch" or saves.needs_preparation:
            self._refuse_another_thread()
        if saves.needs_preparation:
            saves.prepare(self.model)
        if due:
            self._schedule.save_begins()
            self._save(position.epoch, batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, unless `save_freq` counts batches; the epoch's metrics go to the manifest with the next save."""
        if (heartbeat := self._heartbeat()) is not None:
            heartbeat.epoch_ends(logs)
        self._saves.settle()
        self._saves.epoch_ended(epoch, self._position.step, logs or {})
        if self.save_freq == "epoch":
            self._save(epoch, None, logs or {})

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Note that a validation begins."""
        if (heartbeat := self._heartbeat()) is not None:
            heartbeat.test_begins()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Note that a validation has ended."""
        if (heartbeat := self._heartbeat()) is not None:
            heartbeat.test_ends()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for what is still being saved, record the epochs behind it, and release the run and the store."""
        self._release_loop()
        self._saves.record_last_epochs()
        plan_end(self._saves, logs or {}, self.model)
        self._saves.close_for_another()
        fits_on(self.store_path).complete(self._saves.run, by=self)

    def _release_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.release()

    def _save(self, epoch: int, batch: int | None, logs: dict[str, Any]) -> None:
        self._pass_on_settings()
        position = self._position
        point = SavePoint(
            epoch=epoch,
            batch=None if batch is None else position.batch,
            step=position.step,
            logs=logs,
            droppable=not self._path.has_placeholders,
        )
        self._saves.save_if_wanted(unsynced_model(self), point, batch=batch, fit=self.params)

    def _heartbeat(self) -> FitHeartbeat | None:
        """Return the heartbeat of the fit; None outside of a fit, or while another callback has the run."""
        heartbeat, found = self._saves.heartbeat, self._fit_heartbeat
        if heartbeat is None:
            return None
        if found is None or found.heartbeat is not heartbeat:
            found = FitHeartbeat(heartbeat, self._position, self.params, is_by_hand=self._is_by_hand)
            self._fit_heartbeat = found
        return found

    def _refuse_another_thread(self) -> None:
        """Refuse to read a model that is being trained meanwhile.

        Given one callback that is not in a list, Keras calls its batch hooks from another thread and trains on.
        """
        if self._thread not in (None, threading.get_ident()):
            raise InvalidArgumentError(
                argument="callbacks",
                value=type(self).__name__,
                reason="Keras runs a callback that is not in a list in parallel with the training of its model",
                hint="pass a list: fit(..., callbacks=[callback])",
            )

    def _steps_before(self, epoch: int) -> int:
        """Return how many batches the run had finished when it last reached the beginning of an epoch."""
        store = self._saves.store
        if epoch == 0 or store is None:
            return 0
        before = f"epoch < {epoch} and not step is None"
        earlier = store.checkpoints(self._saves.run, where=before, order_by="-version", limit=1)
        return earlier[0].step or 0 if earlier else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit out: a copy begins its own."""
        return {**super().__getstate__(), "_fit_heartbeat": None, "_loop": None}

    # --- a fit that another callback resumes ---------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return the position as this callback counts it; `best` is not part of it, since the store knows it."""
        return {
            "epoch": self._position.epoch,
            "batches_in_epoch": self._position.counted,
            "batches_since_save": self._schedule.since_save,
            "steps_before_epoch": self._position.steps_before,
            EARLIER_EPOCHS: [finished.to_json() for finished in self._saves.unrecorded.all()],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a position; called after `on_train_begin`, in the middle of an epoch or at its end.

        Args:
            state: What `get_state` returned, perhaps in another process.
        """
        position = self._position
        position.epoch, position.steps_before = state["epoch"], state["steps_before_epoch"]
        position.counted = position.batches = 0
        position.batch_done(state["batches_in_epoch"] - 1)
        self._schedule.since_save = state["batches_since_save"]
        self._saves.unrecorded.replace(read_earlier_epochs(state))
