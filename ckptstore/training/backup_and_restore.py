"""`BackupAndRestore`: Keras' callback of that name, with backups that survive any crash and resume at the batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ckptstore.background.save_queue import Backpressure
from ckptstore.retention import keep_last
from ckptstore.storage.layout import Layout, absolute
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.system.stop_signals import STOP_SIGNALS
from ckptstore.training.resuming_callback import ResumingCallback
from ckptstore.training.saving.arguments import OnSaveError, check_backup_arguments, check_on_save_error
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.saves import SaveSettings
from ckptstore.training.saving.schedule import SaveSchedule, every
from ckptstore.training.session.fit_order import fits_on
from ckptstore.training.session.fit_start import FitStart
from ckptstore.training.session.session import FitSession

_RUN = "backup"


class BackupAndRestore(ResumingCallback):
    """Back up a fit, and resume it after an interruption; `keras.callbacks.BackupAndRestore` done safely.

    The first four arguments are Keras'. `backup_dir` is a store; a crash at any instant leaves its newest backup
    intact.

    Where it differs from Keras':

    - It resumes with the batch after the backup, and so with the same result as a fit that was never interrupted;
      Keras trains the batches of the epoch again, on top of what they did. The state of the other callbacks, metrics
      and random generators comes back too.
    - A damaged backup is put into quarantine, and the one before is taken, whatever `double_checkpoint` is.
    - `model._initial_epoch` is put back, so that another fit of the same model is not cut short.
    - ``save_freq=False`` saves at signals and exceptions alone.
    - ``delete_checkpoint=True`` removes the backup only once the last epoch is reached with a finite loss: after a NaN
      stop or an early stop it stays, and the same fit of another process trains nothing. The next fit of the same
      process, and one with other hyperparameters or data, trains from the beginning, as with Keras'. What others have
      put into `backup_dir` stays in any case.
    - After a save that failed on the disk, training continues; see `on_save_error`.

    Args:
        backup_dir: The directory of the backups; str or PathLike.
        save_freq: ``"epoch"``, a number of batches, or False.
        double_checkpoint: Accepted; two backups are kept in any case.
        delete_checkpoint: Whether to remove the backups when the fit has come to its end.
        background: Whether to back up in the background, in a process of its own; see `ckptstore.StoreCheckpoint`.
        backpressure: What happens then when backups come faster than the disk takes them: ``"replace"`` the one that
            waits, or ``"wait"``.
        save_on_exception: Save what is finished when a callback ends the fit by an exception.
        signals: Signals at which to save and stop; see `ckptstore.StoreCheckpoint`.
        on_save_error: What happens when the disk fails or is full: ``"warn"`` or ``"raise"``.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training anyway.

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
        check_backup_arguments(backup_dir, save_freq)
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

    def _begin_fit(self) -> SaveSchedule:
        self._saves.settings = SaveSettings(
            format="weights", keep=keep_last(2), discard_at_end=self.delete_checkpoint
        )
        # The last epoch's end is backed up unless the backups are removed right after.
        at_end = not self.delete_checkpoint
        if self.save_freq is False:
            return SaveSchedule(at_end=at_end)
        return every(self.save_freq, at_end=at_end)

    def _choose_run(self, session: FitSession) -> FitStart:
        """Start over after a fit of this process that has ended, as Keras' own does, even if its backups are there."""
        ended = fits_on(self.store_path).reopen(_RUN)
        return FitStart(
            resume="never" if ended else "auto", allows_other_values=False, after_another="start over"
        )

    # --- what Keras' class has, too ----------------------------------------------------------------

    @property
    def _current_epoch(self) -> int:
        return 0 if self._session is None else self._session.position.next_epoch

    @property
    def _last_batch_seen(self) -> int:
        position = None if self._session is None else self._session.position
        return 0 if position is None or position.ended else max(position.batch, 0)

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
        payloads = payloads_at(Layout(self.store_path))
        names = payloads.names()
        found = payloads.local_path(names[-newest] if newest <= len(names) else "none")
        return Path(self.store_path, "none") if found is None else found
