"""What the callbacks that resume have in common: Keras' hooks, handed to the session of the fit that is running."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from ckptstore.background.save_queue import Backpressure
from ckptstore.records import Checkpoint
from ckptstore.store.store import CheckpointStore
from ckptstore.system.stop_signals import StopRequest
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.run_writer import RunWriter
from ckptstore.training.saving.saves import Saves, check_background
from ckptstore.training.session.save_point import Moment
from ckptstore.training.session.session import FitSession, Resume


class ResumingCallback(keras.callbacks.Callback):
    """A callback that saves a fit and goes on with it in another process; see `ckptstore.training.session.session`.

    Args:
        path: The store's directory, absolute.
        run: The run.
        resume: What to do with a resume point, see `FitSession`.
        signals: Signals at which to save and stop.
        save_on_exception: Whether to save when an exception ends the fit.
        failures: What is done when a save fails.
        background: Whether to save beside the training.
        backpressure: What to do when saves come faster than the disk takes them.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        *,
        resume: Resume,
        signals: Sequence[signal.Signals],
        save_on_exception: bool,
        failures: SaveFailures,
        background: bool,
        backpressure: Backpressure,
    ) -> None:
        super().__init__()
        check_background(background, backpressure)
        self.run = run
        self.store_path = path
        self._resume: Resume = resume
        self._signals = tuple(signals)
        self._save_on_exception = save_on_exception
        self._writer = RunWriter(path, run)
        self._failures = failures
        self._saves: Saves[Any] = Saves(
            failures, self.settled, background=background, backpressure=backpressure
        )
        self._session: FitSession | None = None
        self._stop: StopRequest | None = None

    # --- what a callback decides -------------------------------------------------------------------

    def fit_begins(self, store: CheckpointStore) -> None:
        """Prepare for a fit; nothing is loaded or saved yet."""

    def due_after(self, batches: int) -> bool:
        """Return whether to save, now that so many more batches are finished."""
        raise NotImplementedError

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Return whether to save at an epoch's end; `last` where training ends with it."""
        raise NotImplementedError

    def save_at(self, moment: Moment) -> bool:
        """Save, or hand over to whoever saves beside the training; returns whether that was done."""
        raise NotImplementedError

    def settled(self, note: Any, checkpoint: Checkpoint | None) -> None:
        """Hear what became of a save: the checkpoint, or None where it failed and training goes on."""
        raise NotImplementedError

    def save_options(self) -> dict[str, Any]:
        """Return what is the same for all saves."""
        raise NotImplementedError

    def fit_ended(self, *, complete: bool) -> None:
        """Hear that the fit ended by itself; `complete` where it reached its last epoch."""

    def progress(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of this callback itself a fit needs that is resumed from what is about to be saved."""
        return {}

    def set_progress(self, saved: Mapping[str, Any]) -> None:
        """Take over what `progress` returned."""

    # --- saving beside the training ----------------------------------------------------------------

    @property
    def background(self) -> bool:
        """Whether saves are made beside the training."""
        return self._saves.background

    def wait(self) -> None:
        """Wait until every save so far is durable and in the manifest; an interrupt ends the waiting alone.

        What `keep` lets go with the last one may be removed from the disk a moment later.

        Raises:
            CheckpointStoreError: One failed, and `on_save_error` says to raise.
        """
        self._saves.drain()

    def saves_begin(self, store: CheckpointStore) -> None:
        """Get ready to save."""
        self._saves.begin(store, self.run, self.model)

    def look_after_saves(self) -> None:
        """Hear of saves that are done, and make ready for the first one."""
        self._saves.settle()
        # On JAX, asking for the model has Keras put its state into it: once, and not at every batch.
        if self._saves.to_prepare:
            self._saves.prepare(self.model, epoch=0, **self.save_options())

    def has_waited(self, seconds: float) -> None:
        """Hear for how long the training has waited for what is no save."""

    def saves_end(self, error: BaseException | None) -> None:
        """Wait for what is on its way; failures are raised, or are notes on the error that ends the fit."""
        self._saves.end(error)

    # --- Keras' hooks ------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the store, finishing what a crash left; take the run; go on from its resume point.

        Raises:
            CheckpointStoreError: As `CheckpointStore` and its `resume` say; nothing of the model was changed.
        """
        if self._session is not None:
            self._session.end()
        self._session = FitSession(
            self,
            self._writer,
            resume=self._resume,
            stop=self._stop_request(),
            save_on_exception=self._save_on_exception,
        )
        # Work alone: a lock that is waited for, or a disk, is no cost of saving.
        began = time.thread_time()
        self._session.begin()
        if self._session.resumed is None:
            self.has_waited(time.thread_time() - began)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where training is, in a loop that is not Keras' own."""
        if self._session is not None:
            self._session.epoch_begins_elsewhere(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time, in a loop that is not Keras' own."""
        if self._session is not None:
            self._session.batch_ends_elsewhere(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        if self._session is not None:
            self._session.note_epoch_logs(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let go of the run and the store, in a loop that is not Keras' own."""
        if self._session is not None:
            self._session.train_ends_elsewhere()

    # Outside of a fit there is nothing to save, and a signal that has come ends the loop.

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen for signals during an evaluation by itself."""
        self._listen()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if a signal has come."""
        self._obey()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen for signals during a prediction."""
        self._listen()

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if a signal has come."""
        self._obey()

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()

    def _stop_request(self) -> StopRequest:
        return StopRequest(self._signals)

    def _listen(self) -> None:
        if self._stop is None and (self._session is None or not self._session.is_open):
            self._stop = self._stop_request()
            self._stop.install()

    def _obey(self) -> None:
        stop = self._stop
        if stop is not None and stop.received is not None:
            self._stop_listening()
            stop.deliver()

    def _stop_listening(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop.uninstall()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit out: a copy begins its own."""
        return {**self.__dict__, "_session": None, "_stop": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with a writer and saves of its own."""
        self.__dict__.update(state)
        self._writer = RunWriter(self.store_path, self.run)
        self._saves = self._saves.anew(self._failures, self.settled)
