"""Handling of failed saves: retries, warns, lets training continue, and gives up after several failures in a row."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.commit.retry import with_retries
from ckptstore.errors import (
    LockedError,
    RunLockedError,
    SaveEndUnknownError,
    SaveInProgressError,
    StorageError,
    UnfinishedSaveError,
)
from ckptstore.records import Checkpoint
from ckptstore.system import messages
from ckptstore.training.saving.arguments import OnSaveError


class SaveFailures:
    """Retries saves, and counts the failures in a row.

    Only errors of the disk, or of another process's lock, are handled. An error that another try would meet again, such
    as a model that cannot be saved, is raised as it is.

    Args:
        on_save_error: ``"warn"`` to let training continue without the checkpoint, ``"raise"`` to end it at once.
        most: With ``"warn"``, the number of failures in a row that ends the training.

    Attributes:
        in_a_row: Failures since the last save that succeeded.
        may_end: False where another process of the fit decides whether failures end it.
    """

    def __init__(self, on_save_error: OnSaveError, most: int) -> None:
        self.on_save_error = on_save_error
        self.most = most
        self.in_a_row = 0
        self.may_end = True
        self._before = 0

    def attempt(self, save: Callable[[], Checkpoint], *, retries: bool = True) -> Checkpoint | None:
        """Save, with retries after some delays; returns None if all failed and training continues.

        A checkpoint that is saved but not published at its path is returned, and counts as a failure.

        Args:
            save: Saves.
            retries: False if it makes its retries itself.

        Raises:
            RunLockedError: Another writer has the run.
            StorageError: It failed, and `on_save_error` or the number of failures asks for an error.
            StoreLockedError: As `StorageError`.
        """
        try:
            return self.count(with_retries(save) if retries else save(), None)
        except (RunLockedError, SaveInProgressError):
            raise
        except (StorageError, LockedError) as error:
            return self.count(getattr(error, "checkpoint", None), error)

    def count(self, checkpoint: Checkpoint | None, error: BaseException | None) -> Checkpoint | None:
        """Count the outcome of a save that was made elsewhere; returns the checkpoint, or None if there is none.

        Raises:
            StorageError: It failed, and `on_save_error` or the number of failures asks for an error.
            StoreLockedError: As `StorageError`.
            BaseException: `error`, where neither the disk nor a lock has caused it.
        """
        if error is None:
            self._before, self.in_a_row = self.in_a_row, 0
            return checkpoint
        if isinstance(error, UnfinishedSaveError):
            if not isinstance(error.__cause__, StorageError | LockedError):
                raise error
            # There is a checkpoint; but it is not at its path, which is a failure too.
            self._failed(error, f"{error}")
            return error.checkpoint
        if isinstance(error, RunLockedError | SaveInProgressError) or not isinstance(
            error, StorageError | LockedError
        ):
            raise error
        if isinstance(error, SaveEndUnknownError):
            self._failed(
                error, f"it is not known here if this checkpoint was saved; training continues: {error}"
            )
        else:
            self._failed(error, f"this checkpoint was not saved, and training continues without it: {error}")
        return None

    def count_removal(self, error: UnfinishedSaveError) -> None:
        """Count the failed removal after the save that was counted last: that one was no success after all.

        Raises:
            UnfinishedSaveError: As `count`.
        """
        self.in_a_row = self._before
        self.count(error.checkpoint, error)

    def _failed(self, error: StorageError | LockedError, text: str) -> None:
        self.in_a_row += 1
        if not self.may_end:
            messages.warn(f"SAVING FAILED: {text}", UserWarning)
            return
        if self.on_save_error == "raise" or self.in_a_row >= self.most:
            if self.in_a_row > 1:
                error.add_note(f"{self.in_a_row} saves in a row have failed")
            raise error
        left = self.most - self.in_a_row
        messages.warn(
            f"SAVING FAILED ({self.in_a_row} in a row; {left} more will end the training): {text}",
            UserWarning,
        )
