"""What a callback does when a save fails: tries again, warns, lets training go on, and gives up after some in a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

from ckptstore.commit.retry import with_retries
from ckptstore.errors import (
    InvalidArgumentError,
    LockedError,
    RunLockedError,
    SaveInProgressError,
    StorageError,
    UnfinishedSaveError,
)
from ckptstore.records import Checkpoint

OnSaveError = Literal["warn", "raise"]


def check_on_save_error(on_save_error: object, max_save_failures: object) -> None:
    """Check the two arguments of a callback.

    Raises:
        InvalidArgumentError: One cannot be used.

    Example:
        >>> check_on_save_error("ignore", 3)
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: on_save_error='ignore': must be 'warn' or 'raise'
    """
    if on_save_error not in ("warn", "raise"):
        raise InvalidArgumentError(
            argument="on_save_error", value=on_save_error, reason="must be 'warn' or 'raise'"
        )
    number = isinstance(max_save_failures, int) and not isinstance(max_save_failures, bool)
    if not number or max_save_failures < 1:  # type: ignore[operator]
        raise InvalidArgumentError(
            argument="max_save_failures", value=max_save_failures, reason="must be an integer, 1 or more"
        )


class SaveFailures:
    """Tries saves, and counts those that failed in a row.

    Only what the disk, or another process's lock, did is handled so; an error that another try would meet again, such
    as a model that cannot be saved, is raised as it is.

    Args:
        on_save_error: ``"warn"`` to let training go on without the checkpoint, ``"raise"`` to end it at once.
        most: With ``"warn"``: the failure that ends the training when so many came in a row.
    """

    def __init__(self, on_save_error: OnSaveError, most: int) -> None:
        self.on_save_error = on_save_error
        self.most = most
        self.in_a_row = 0
        self._before = 0

    def attempt(self, save: Callable[[], Checkpoint]) -> Checkpoint | None:
        """Save, trying again after some delays; returns None where that failed and training goes on.

        A checkpoint that is saved and not shown at its path is returned, and counts as a failure.

        Raises:
            RunLockedError: Another writer has the run.
            StorageError: It failed, and `on_save_error` or the number of failures says to raise.
            StoreLockedError: Likewise.
        """
        try:
            return self.heard(with_retries(save), None)
        except (RunLockedError, SaveInProgressError):
            raise
        except (StorageError, LockedError) as error:
            return self.heard(getattr(error, "checkpoint", None), error)

    def heard(self, checkpoint: Checkpoint | None, error: BaseException | None) -> Checkpoint | None:
        """Count how a save ended that was tried elsewhere; returns the checkpoint, None where there is none.

        Raises:
            StorageError: It failed, and `on_save_error` or the number of failures says to raise.
            StoreLockedError: Likewise.
            BaseException: `error`, where it is neither the disk's nor a lock's doing.
        """
        if error is None:
            self._before, self.in_a_row = self.in_a_row, 0
            return checkpoint
        if isinstance(error, UnfinishedSaveError):
            if not isinstance(error.__cause__, StorageError | LockedError):
                raise error
            # There is a checkpoint; that nobody sees it at its path is a failure all the same.
            self._failed(error, f"{error}")
            return error.checkpoint
        if isinstance(error, RunLockedError | SaveInProgressError) or not isinstance(
            error, StorageError | LockedError
        ):
            raise error
        self._failed(error, f"this checkpoint was not saved, and training goes on without it: {error}")
        return None

    def heard_behind(self, error: UnfinishedSaveError) -> None:
        """Count that a removal behind the save that was heard of last has failed: it was no success after all.

        Raises:
            UnfinishedSaveError: As `heard`.
        """
        self.in_a_row = self._before
        self.heard(error.checkpoint, error)

    def _failed(self, error: StorageError | LockedError, text: str) -> None:
        self.in_a_row += 1
        if self.on_save_error == "raise" or self.in_a_row >= self.most:
            if self.in_a_row > 1:
                error.add_note(f"{self.in_a_row} saves in a row have failed")
            raise error
        left = self.most - self.in_a_row
        warnings.warn(
            f"SAVING FAILED ({self.in_a_row} in a row; {left} more will end the training): {text}",
            UserWarning,
            stacklevel=4,
        )
