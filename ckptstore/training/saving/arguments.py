"""Checks of the callbacks' arguments, and of the places they write to; errors use Keras' words where Keras has some."""

from __future__ import annotations

import errno
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Literal

from ckptstore.errors import InvalidArgumentError, StorageError
from ckptstore.storage.layout import absolute
from ckptstore.storage.payloads.names import ends_as_payload

OnSaveError = Literal["warn", "raise"]
Resume = Literal["auto", "must", "never"]


def check_save_freq(save_freq: object, *, auto: bool = False) -> None:
    """Check ``save_freq``: ``"epoch"``, a number of batches or, if `auto`, ``"auto"``.

    Raises:
        InvalidArgumentError: It is something else, in Keras' words.
    """
    if save_freq != "epoch" and not _is_count(save_freq) and not (auto and save_freq == "auto"):
        raise InvalidArgumentError(
            argument="save_freq",
            value=save_freq,
            reason=f"Unrecognized save_freq: {save_freq}. Expected save_freq are 'epoch' or integer values",
            hint="a number of batches is 1 or more",
        )


def check_directory(directory: str | os.PathLike[str]) -> Path:
    """Return the directory of a store, absolute.

    Raises:
        InvalidArgumentError: It is empty, begins with an unexpanded ``~``, or is the name of a file, such as Keras'
            ModelCheckpoint is given, and no directory has that name.

    Example:
        >>> check_directory("models/{epoch:02d}.keras")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: directory='models/{epoch:02d}.keras': is the name of a file, ...
    """
    text = os.fspath(directory)
    path = absolute(text)
    if (ends_as_payload(text) or re.search(r"\{\w+(:[^{}]*)?\}", text)) and not path.is_dir():
        raise InvalidArgumentError(
            argument="directory",
            value=text,
            reason="is the name of a file, and a store is a directory",
            hint="StoreCheckpoint('runs/mine'), or ckptstore.ModelCheckpoint with this name",
        )
    return path


def check_backup_arguments(backup_dir: object, save_freq: object) -> None:
    """Check the arguments of `ckptstore.BackupAndRestore` that Keras has too.

    Raises:
        InvalidArgumentError: One cannot be used, in Keras' words.
    """
    if not backup_dir:
        raise InvalidArgumentError(
            argument="backup_dir", value=backup_dir, reason="Empty `backup_dir` argument passed"
        )
    if save_freq != "epoch" and save_freq is not False and not _is_count(save_freq):
        raise InvalidArgumentError(
            argument="save_freq",
            value=save_freq,
            reason=f"Invalid value for argument `save_freq`. Received: save_freq={save_freq}. "
            "Expected either 'epoch' or an integer value.",
        )


def check_keep(keep: object) -> None:
    """Check ``keep``: a retention policy, ``"all"`` or None.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if keep is not None and keep != "all" and not callable(keep):
        raise InvalidArgumentError(
            argument="keep",
            value=keep,
            reason="must be a retention policy, such as ckptstore.keep_last(3), or 'all'",
        )


def check_resume(resume: object) -> None:
    """Check ``resume``.

    Raises:
        InvalidArgumentError: It is not one of the three values.

    Example:
        >>> check_resume("always")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: resume='always': must be 'auto', 'must' or 'never'
    """
    if resume not in ("auto", "must", "never"):
        raise InvalidArgumentError(
            argument="resume", value=resume, reason="must be 'auto', 'must' or 'never'"
        )


def check_background(background: object, backpressure: object) -> None:
    """Check ``background`` and ``backpressure``.

    Raises:
        InvalidArgumentError: One cannot be used.

    Example:
        >>> check_background(True, "drop")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: backpressure='drop': must be 'replace' or 'wait'
    """
    if not isinstance(background, bool):
        raise InvalidArgumentError(argument="background", value=background, reason="must be True or False")
    if backpressure not in ("replace", "wait"):
        raise InvalidArgumentError(
            argument="backpressure", value=backpressure, reason="must be 'replace' or 'wait'"
        )


def check_on_save_error(on_save_error: object, max_save_failures: object) -> None:
    """Check ``on_save_error`` and ``max_save_failures``.

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
    if not _is_count(max_save_failures):
        raise InvalidArgumentError(
            argument="max_save_failures", value=max_save_failures, reason="must be an integer, 1 or more"
        )


def check_max_overhead(max_overhead: object) -> None:
    """Check ``max_overhead``.

    Raises:
        InvalidArgumentError: It is not a share of the run.

    Example:
        >>> check_max_overhead(3.5)
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: max_overhead=3.5: must be a share of the run, above 0 and below 1
    """
    if not isinstance(max_overhead, (int, float)) or not 0 < max_overhead < 1:
        raise InvalidArgumentError(
            argument="max_overhead",
            value=max_overhead,
            reason="must be a share of the run, above 0 and below 1",
        )


def interval_s(interval: float | timedelta | None) -> float | None:
    """Return ``save_interval`` in seconds.

    Raises:
        InvalidArgumentError: It is not a positive time.

    Example:
        >>> interval_s(timedelta(minutes=10)), interval_s(30), interval_s(None)
        (600.0, 30.0, None)
    """
    if interval is None:
        return None
    try:
        seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidArgumentError(
            argument="save_interval",
            value=interval,
            reason="must be a time in seconds, or a timedelta, above zero",
        )
    return seconds


def refuse_second_resume(callback: object, *, is_resumed: bool) -> None:
    """Refuse a callback in a fit that another callback resumes.

    Raises:
        InvalidArgumentError: There is another one.
    """
    if is_resumed:
        raise InvalidArgumentError(
            argument="callbacks",
            value=type(callback).__name__,
            reason="another callback of this fit resumes it already",
            hint="use one of them; ckptstore.ModelCheckpoint may be used with it",
        )


def refuse_directory(target: Path) -> None:
    """Refuse a directory where a file is to appear.

    Raises:
        StorageError: (an OSError) There is a directory, in Keras' words.
    """
    if target.is_dir():
        text = (
            "Please specify a non-directory filepath for ModelCheckpoint. "
            f"Filepath used is an existing directory: {target}"
        )
        raise StorageError(operation="saving", path=target, error=IsADirectoryError(errno.EISDIR, text))


def refuse_unwritable(directory: Path) -> None:
    """Refuse a directory that no file can be written into.

    Raises:
        StorageError: It is not writable.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise StorageError(operation="writing", path=directory, error=error, hint="choose another folder")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
