"""What callbacks refuse before training: arguments and places that cannot work, in Keras' words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ckptstore.errors import InvalidArgumentError, StorageError


def check_save_freq(save_freq: object, *, auto: bool = False) -> None:
    """Refuse what is neither ``"epoch"`` nor a number of batches, nor ``"auto"`` where that is known, in Keras' words.

    Raises:
        InvalidArgumentError: It is neither.
    """
    is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq != "epoch" and not is_count and not (auto and save_freq == "auto"):
        raise InvalidArgumentError(
            argument="save_freq",
            value=save_freq,
            reason=f"Unrecognized save_freq: {save_freq}. Expected save_freq are 'epoch' or integer values",
            hint="a number of batches is 1 or more",
        )


def check_keep(keep: object) -> None:
    """Refuse what is neither a retention policy nor ``"all"`` nor None.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if keep is not None and keep != "all" and not callable(keep):
        raise InvalidArgumentError(
            argument="keep",
            value=keep,
            reason="must be a retention policy, such as ckptstore.keep_last(3), or 'all'",
        )


def refuse_a_second(callback: object, is_resumed: bool) -> None:
    """Refuse a callback in a fit that another one resumes.

    Raises:
        InvalidArgumentError: There is one.
    """
    if is_resumed:
        raise InvalidArgumentError(
            argument="callbacks",
            value=type(callback).__name__,
            reason="another callback of this fit resumes it already",
            hint="use one of them; ckptstore.ModelCheckpoint may stand beside it",
        )


def refuse_directory(target: Path) -> None:
    """Refuse a directory where a file is to appear, in Keras' words.

    Raises:
        StorageError: (an OSError) There is a directory.
    """
    if target.is_dir():
        text = (
            "Please specify a non-directory filepath for ModelCheckpoint. "
            f"Filepath used is an existing directory: {target}"
        )
        raise StorageError(operation="saving", path=target, error=IsADirectoryError(errno.EISDIR, text))


def refuse_unwritable(directory: Path) -> None:
    """Refuse a directory that files cannot be put into.

    Raises:
        StorageError: They cannot.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise StorageError(operation="writing", path=directory, error=error, hint="choose another folder")
