"""`ModelCheckpoint`: Keras' callback of that name, with saves that are atomic, durable and indexed."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras

from ckptstore.background.save_queue import Backpressure
from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.private import print_message, synced_train_state
from ckptstore.metrics import better_of, is_better, scalars
from ckptstore.records import Checkpoint, Mode
from ckptstore.retention import Policy, keep_last
from ckptstore.store.store import CheckpointStore
from ckptstore.training.saving import monitor as monitoring
from ckptstore.training.saving.arguments import (
    check_keep,
    check_save_freq,
    refuse_directory,
    refuse_unwritable,
)
from ckptstore.training.saving.failures import OnSaveError, SaveFailures, check_on_save_error
from ckptstore.training.saving.file_template import CheckpointPath
from ckptstore.training.saving.monitor import Verdict
from ckptstore.training.saving.run_writer import RunWriter
from ckptstore.training.saving.saves import Saves, check_background
from ckptstore.training.session.position import BatchCount
from ckptstore.validation import check_run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What is remembered of a save: the epoch, the file as the user named it, and the value, where it is the best."""

    epoch: int
    filled: str
    value: float | None


class ModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Save the model while it trains; `keras.callbacks.ModelCheckpoint` with a safe store behind it.

    The first eight arguments are Keras'. Each checkpoint is written to the store ``.ckptstore`` beside the file, made
    durable and recorded with its position and all its metrics; then `filepath` shows it, by an atomic rename of a hard
    link. A crash at any instant leaves at `filepath` the complete old file or the complete new one, and every
    checkpoint that was reported saved. It is a subclass of Keras' class, so that code which looks for one finds it.

    Where it differs from Keras':

    - The best survives a restart: it is looked up in the store when training begins, for the file at `filepath` (of a
      name with placeholders: for the best one's file). Removing that file makes the best void.
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
        mode: ``"min"``, ``"max"``, or ``"auto"`` to tell by the metric.
        save_freq: ``"epoch"``, or a number of batches after which to save, counted across epochs.
        initial_value_threshold: The best to begin with.
        run: The name of the run in the store; by default made from the file name. Two callbacks that write at
            once need two runs.
        keep: What stays in the store; by default, with placeholders everything (as in Keras), without them the
            checkpoint at `filepath` and the one before. ``"all"`` keeps everything. A checkpoint whose file still
            stands at a path is kept whatever the policy says.
        background: True to save beside the training, in a process of its own: a step waits for one copy of the state
            in memory, and the file appears when it is durable, at latest when training ends. The older ``.h5`` format
            is waited for all the same.
        backpressure: What happens to one that waits when saves come faster than the disk takes them: ``"replace"``
            it, where the file has one name, by a newer that is no worse than the best; or ``"wait"`` for the disk.
        on_save_error: What happens when the disk fails or is full, after some tries: ``"warn"`` lets training go on
            without that checkpoint, ``"raise"`` ends it.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training all the same.

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

    best: float | None

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
        self.run = self._path.run if run is None else check_run(run)
        self.keep = keep
        self._failures = SaveFailures(on_save_error, max_save_failures)
        self._saves: Saves[_Note] = Saves(
            self._failures, self._settled, background=background, backpressure=backpressure
        )
        self._writer = RunWriter(self.store_path, self.run)
        self.initial_value_threshold = initial_value_threshold
        self.best = self._best_saved = initial_value_threshold
        self.last: Checkpoint | None = None
        self._mode: Mode | None = None
        self._count = BatchCount()
        self._dropped_logs: set[str] = set()
        self._thread: int | None = None

    @property
    def store_path(self) -> Path:
        """The directory of the store, absolute."""
        return self._path.store

    @property
    def background(self) -> bool:
        """Whether saves are made beside the training."""
        return self._saves.background

    def wait(self) -> None:
        """Wait until every save so far is durable, in the manifest and shown; an interrupt ends the waiting alone.

        What `keep` lets go with the last one may be removed from the disk a moment later.

        Raises:
            CheckpointStoreError: One failed, and `on_save_error` says to raise.
        """
        self._saves.drain()

    # --- Keras' hooks ------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the store, finishing what a crash left; take the run; look up its best.

        Raises:
            InvalidArgumentError: Nothing tells the direction of `monitor`; or two callbacks of this fit write
                one run.
            RunLockedError: Another process writes the run.
            StorageError: `filepath` is a directory, or its folder cannot be written.
        """
        self._mode = self._resolved()
        if not self._path.has_placeholders:
            refuse_directory(self._path.absolute(self._path.fill(epoch=0, batch=None, logs={})))
        steps = (self.params or {}).get("steps")
        self._count.begin(None if steps is None else int(steps))
        self._thread = threading.get_ident()
        store = self._open()
        shown = monitoring.best_shown(store, self.run, self.monitor, self._mode)
        self.best = better_of(self.initial_value_threshold, shown, self._mode)
        self._best_saved = self.best

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where training is."""
        self._count.begin_epoch(epoch, self._steps_before)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, if enough batches have passed; with ``steps_per_execution`` several pass at once."""
        self._count.batch_done(batch)
        self._look_after_saves()
        if self.save_freq != "epoch":
            self._refuse_another_thread()
            if self._count.is_due(self.save_freq):
                self._consider(self._count.epoch, batch, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save, unless `save_freq` counts batches."""
        self._saves.settle()
        if self.save_freq == "epoch":
            self._consider(epoch, None, logs or {})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for what is still being saved, and let go of the run and the store."""
        self._writer.close_for_another()

    # --- a fit that is resumed by another callback ---------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Return where training is, as this callback counts it; `best` is not part of it, the store knows that."""
        return self._count.state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where training was; called after `on_train_begin`, in the middle of an epoch or at its end.

        Args:
            state: What `get_state` returned, perhaps in another process.
        """
        self._count.set_state(state)

    # --- what to save ------------------------------------------------------------------------------

    def _consider(self, epoch: int, batch: int | None, logs: dict[str, Any]) -> None:
        filled = self._path.fill(epoch=epoch, batch=batch, logs=logs)
        target = self._path.absolute(filled)
        if not self._is_wanted(epoch, logs, filled, target):
            return
        self._save(epoch, batch, logs, target, filled)

    def _refuse_another_thread(self) -> None:
        """Refuse to read a model that is being trained meanwhile.

        Given one callback that is not in a list, Keras calls its batch hooks from another thread and goes on.
        """
        if self._thread not in (None, threading.get_ident()):
            raise InvalidArgumentError(
                argument="callbacks",
                value=type(self).__name__,
                reason="Keras runs a callback that is not in a list beside the training, which changes the model",
                hint="pass a list: fit(..., callbacks=[callback])",
            )

    def _is_wanted(self, epoch: int, logs: dict[str, Any], filled: str, target: Path) -> bool:
        if not self.save_best_only:
            self._say(epoch, f"saving model to {filled}")
            return True
        value: Any = logs.get(self.monitor)
        verdict = monitoring.judge(value, self.best, self._direction())
        if verdict in (Verdict.MISSING, Verdict.NOT_SCALAR, Verdict.NAN):
            return self._is_wanted_all_the_same(verdict, value, epoch, target)
        best = "None" if self.best is None else f"{self.best:.5f}"
        if verdict is Verdict.NOT_BETTER:
            self._say(epoch, f"{self.monitor} did not improve from {best}")
            return False
        self._say(
            epoch, f"{self.monitor} improved from {best} to {float(value):.5f}, saving model to {filled}"
        )
        return True

    def _is_wanted_all_the_same(self, verdict: Verdict, value: Any, epoch: int, target: Path) -> bool:
        """Decide without a usable metric: what replaces nothing is saved, with Keras' warning."""
        if verdict is Verdict.NOT_SCALAR:
            text = f"Can save best model only when `monitor` is a scalar value. Received: {value}."
        else:
            text = f"Can save best model only with {self.monitor} available."
            text += " Received: NaN." if verdict is Verdict.NAN else ""
        self._saves.drain()  # what is there can only be told once everything is
        wanted = not os.path.lexists(target) and (verdict is not Verdict.NAN or self._has_nothing())
        rest = (
            "it is saved, since there is no file yet"
            if wanted
            else "it is not saved, to replace no better one"
        )
        warnings.warn(f"{text} Epoch {epoch + 1}: {rest}.", UserWarning, stacklevel=2)
        return wanted

    def _has_nothing(self) -> bool:
        """Return True when no checkpoint of the run has been seen that NaN might be worse than."""
        if self.best is not None or not self._path.has_placeholders:
            return self.best is None
        return (self._writer.store or self._open()).latest(self.run) is None

    def _say(self, epoch: int, text: str) -> None:
        if self.verbose > 0:
            print_message(f"\nEpoch {epoch + 1}: {text}")

    # --- saving ------------------------------------------------------------------------------------

    def _save(self, epoch: int, batch: int | None, logs: dict[str, Any], target: Path, filled: str) -> None:
        refuse_directory(target)
        if self._writer.store is None:
            self._open()
        metrics = self._metrics(logs)
        value = metrics.get(self.monitor)
        better = value is not None and is_better(value, self.best, self._direction())
        note = _Note(epoch=epoch, filled=filled, value=value if better else None)
        with synced_train_state(self):
            self._saves.save(
                self.model,
                note,
                droppable=not self._path.has_placeholders,
                best=better,
                epoch=epoch,
                batch=None if batch is None else self._count.finished(batch + 1) - 1,
                step=self._count.step,
                metrics=metrics,
                publish=target,
                keep=self._policy(),
                monitor=None if self._mode is None else (self.monitor, self._mode),
                **self._save_options(),
            )
        if better and self._saves.waiting:
            self.best = value  # the next one is compared with it, whether it is on the disk by then or not

    def _save_options(self) -> dict[str, Any]:
        return {"format": self._path.format}

    def _look_after_saves(self) -> None:
        self._saves.settle()
        if self._saves.to_prepare:
            self._refuse_another_thread()
            self._saves.prepare(self.model, epoch=0, **self._save_options())

    def _settled(self, note: _Note, checkpoint: Checkpoint | None) -> None:
        """Take what is saved as the last, and perhaps as the best: what could not be saved is no best."""
        if checkpoint is None:
            self.best = self._best_saved
            return
        self.last = checkpoint
        if note.value is not None:
            self._best_saved = note.value
            self.best = better_of(self.best, note.value, self._direction())
        if self._failures.in_a_row == 0:
            self._say(note.epoch, f"finished saving model to {note.filled}")

    def _metrics(self, logs: dict[str, Any]) -> dict[str, float]:
        metrics, dropped = scalars(logs)
        new = [name for name in dropped if name not in self._dropped_logs]
        if new:
            self._dropped_logs.update(new)
            warnings.warn(
                f"Logs that are not single numbers are not recorded as metrics: {', '.join(new)}",
                UserWarning,
                stacklevel=2,
            )
        return metrics

    def _policy(self) -> Policy | None:
        if self.keep == "all":
            return None
        if self.keep is None:
            return None if self._path.has_placeholders else keep_last(2)
        return self.keep

    def _direction(self) -> Mode:
        if self._mode is None:
            self._mode = self._resolved()
        return self._mode

    def _resolved(self) -> Mode:
        return monitoring.resolve_mode(self.monitor, self.mode, self.model, callback=type(self).__name__)

    # --- the store ---------------------------------------------------------------------------------

    def _open(self) -> CheckpointStore:
        """Open the store and become the run's writer, in place of one whose fit an exception ended."""
        store = self._writer.open(
            self.params,
            ready=partial(refuse_unwritable, self._path.directory),
            before=self._saves.end,
        )
        self._saves.begin(store, self.run, self.model)
        return store

    def _steps_before(self, epoch: int) -> int:
        """Return how many batches the run had finished when it last came to the beginning of an epoch."""
        store = self._writer.store
        if epoch == 0 or store is None:
            return 0
        before = f"epoch < {epoch} and not step is None"
        earlier = store.checkpoints(self.run, where=before, order_by="-version", limit=1)
        return earlier[0].step or 0 if earlier else 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be a copy that begins a fit of its own: another process may have it, or this one beside the original."""
        self.__dict__.update(state)
        self._writer = RunWriter(self.store_path, self.run)
        self._saves = self._saves.anew(self._failures, self._settled)
