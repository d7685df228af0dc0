"""`BackupAndRestore`: Keras' callback of that name, with backups that survive any crash and go back to the batch."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ckptstore.background.save_queue import Backpressure
from ckptstore.errors import InvalidArgumentError
from ckptstore.metrics import scalar, scalars
from ckptstore.records import Checkpoint
from ckptstore.retention import keep_last
from ckptstore.storage.layout import Layout, absolute
from ckptstore.store.store import CheckpointStore
from ckptstore.system.stop_signals import STOP_SIGNALS
from ckptstore.training.resuming_callback import ResumingCallback
from ckptstore.training.saving.failures import OnSaveError, SaveFailures, check_on_save_error
from ckptstore.training.session.save_point import Moment

_RUN = "backup"


class BackupAndRestore(ResumingCallback):
    """Back up a fit, and go on with it after an interruption; `keras.callbacks.BackupAndRestore` done safely.

    The first four arguments are Keras'. `backup_dir` is a store; a crash at any instant leaves its newest backup
    whole.

    Where it differs from Keras':

    - It goes on with the batch behind the backup, and so with the same result as a fit that was never interrupted;
      Keras trains the batches of the epoch again, on top of what they did. The state of the other callbacks, metrics
      and random generators comes back too.
    - A damaged backup is put into quarantine, and the one before is taken, whatever `double_checkpoint` says.
    - `model._initial_epoch` is put back, so that another fit of the same model is not cut short.
    - ``save_freq=False`` saves at signals and exceptions alone.
    - ``delete_checkpoint=True`` removes the backup only once the last epoch is reached with a finite loss: after a NaN
      stop or an early stop it stays. What others have put into `backup_dir` stays in any case.
    - After a fit that failed on the disk, training goes on; see `on_save_error`.

    Args:
        backup_dir: The directory of the backups; str or PathLike.
        save_freq: ``"epoch"``, a number of batches, or False.
        double_checkpoint: Accepted; two backups are kept in any case.
        delete_checkpoint: Whether to remove the backups when the fit has come to its end.
        background: Whether to back up beside the training, in a process of its own; see `ckptstore.StoreCheckpoint`.
        backpressure: What happens then when backups come faster than the disk takes them: ``"replace"`` the one that
            waits, or ``"wait"``.
        save_on_exception: Save what is finished when a callback ends the fit by an exception.
        signals: Signals at which to save and stop; see `ckptstore.StoreCheckpoint`.
        on_save_error: What happens when the disk fails or is full: ``"warn"`` or ``"raise"``.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training all the same.

    Raises:
        InvalidArgumentError: (a ValueError) An argument cannot be used, in Keras' words.

    Example:
        >>> callback = BackupAndRestore("backups/digits", save_freq=50)
        >>> callback.delete_checkpoint
        True
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: int | Literal["epoch"] = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        background: bool = False,
        backpressure: Backpressure = "replace",
        save_on_exception: bool = False,
        signals: Sequence[signal.Signals] = STOP_SIGNALS,
        on_save_error: OnSaveError = "warn",
        max_save_failures: int = 3,
    ) -> None:
        _check(backup_dir, save_freq)
        check_on_save_error(on_save_error, max_save_failures)
        super().__init__(
            absolute(backup_dir),
            _RUN,
            resume="auto",
            signals=signals,
            save_on_exception=save_on_exception,
            failures=SaveFailures(on_save_error, max_save_failures),
            background=background,
            backpressure=backpressure,
        )
        self.backup_dir = backup_dir
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.last: Checkpoint | None = None
        self._batches_seen_since_last_saving = 0
        self._last_batch_seen = 0
        self._current_epoch = 0
        self._loss: float | None = None

    # --- when --------------------------------------------------------------------------------------

    def fit_begins(self, store: CheckpointStore) -> None:
        """Begin to count anew."""
        self._batches_seen_since_last_saving = 0

    def due_after(self, batches: int) -> bool:
        """Return whether enough batches have passed since the last backup."""
        self._batches_seen_since_last_saving += batches
        if self.save_freq == "epoch" or self.save_freq is False:
            return False
        return self._batches_seen_since_last_saving >= self.save_freq

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Return whether each epoch's end is backed up; the last one's is, unless the backups are to go."""
        return self.save_freq == "epoch" or (last and not self.delete_checkpoint)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the batch."""
        self._last_batch_seen = batch
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._current_epoch, self._last_batch_seen = epoch + 1, 0
        self._loss = scalar((logs or {}).get("loss"))
        super().on_epoch_end(epoch, logs)

    # --- saving ------------------------------------------------------------------------------------

    def save_at(self, moment: Moment) -> bool:
        """Back up, or hand over to the process that does; returns whether that was done. The two newest stay."""
        metrics, _ = scalars(moment.logs)
        before, self._batches_seen_since_last_saving = self._batches_seen_since_last_saving, 0
        return self._saves.save(
            self.model,
            before,
            droppable=moment.droppable,
            epoch=moment.epoch,
            batch=moment.batch,
            step=moment.step,
            metrics=metrics,
            keep=keep_last(2),
            fit=moment.fit,
            resumable=moment.resumable,
            **self.save_options(),
        )

    def save_options(self) -> dict[str, Any]:
        """Return what is the same for all backups."""
        return {"format": "weights"}

    def settled(self, note: int, checkpoint: Checkpoint | None) -> None:
        """Take what is saved as the last; what could not be saved is due again."""
        if checkpoint is None:
            self._batches_seen_since_last_saving += note
        else:
            self.last = checkpoint

    def fit_ended(self, *, complete: bool) -> None:
        """Remove the backups, if they are not wanted and the fit is really at its end.

        A crash meanwhile leaves all of them, or none.
        """
        if self.delete_checkpoint and complete and (self._loss is None or math.isfinite(self._loss)):
            CheckpointStore.discard(self.store_path, run=self.run)

    # --- where Keras' class has its files ----------------------------------------------------------

    @property
    def _weights_path(self) -> str:
        return str(self._payload(1))

    @property
    def _prev_weights_path(self) -> str:
        return str(self._payload(2))

    @property
    def _training_metadata_path(self) -> str:
        return str(Layout(self.store_path).manifest)

    _prev_training_metadata_path = _training_metadata_path

    def _payload(self, newest: int) -> Path:
        layout = Layout(self.store_path)
        names = layout.payload_names()
        return layout.checkpoints / (names[-newest] if newest <= len(names) else "none")


def _check(backup_dir: object, save_freq: object) -> None:
    if not backup_dir:
        raise InvalidArgumentError(
            argument="backup_dir", value=backup_dir, reason="Empty `backup_dir` argument passed"
        )
    is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq != "epoch" and save_freq is not False and not is_count:
        raise InvalidArgumentError(
            argument="save_freq",
            value=save_freq,
            reason=f"Invalid value for argument `save_freq`. Received: save_freq={save_freq}. "
            "Expected either 'epoch' or an integer value.",
        )
