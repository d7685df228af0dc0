"""The file of a `keras.callbacks.CSVLogger`: its rows are part of a fit's state, and come back with it.

A logger without ``append=True`` empties its file when a fit begins; one with it writes the rows of epochs that are
trained again once more. After a resume the file holds what it held at the save, so that it ends as that of a fit that
was never interrupted.

The attributes of the logger are those of Keras 3.12 to 3.15, which does not document them. Where one is missing, the
logger has no state, and the resume names it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptstore.errors import StorageError
from ckptstore.system import messages

# Some 40,000 epochs of ten metrics; each save copies the file.
MAX_BYTES = 4 << 20
_ROWS, _KEYS = "rows", "keys"


def is_csv_logger(callback: Any) -> bool:
    """Return True if a callback writes its rows to a local file as Keras' logger does.

    Example:
        >>> is_csv_logger(keras.callbacks.History())
        False
    """
    return isinstance(callback, keras.callbacks.CSVLogger) and isinstance(
        getattr(callback, "csv_file", None), io.TextIOWrapper
    )


def rows_written(logger: Any) -> dict[str, Any] | None:
    """Return the rows of a logger's file, and the columns; None if the file is gone, or larger than `MAX_BYTES`.

    Args:
        logger: A callback for which `is_csv_logger` is true.
    """
    try:
        with Path(logger.filename).open("rb") as file:
            rows = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    if len(rows) > MAX_BYTES:
        return None
    return {_ROWS: np.frombuffer(rows, np.uint8), _KEYS: logger.keys}


def restore_rows(logger: Any, saved: Mapping[str, Any], *, ended: bool = False) -> None:
    """Have a logger's file hold the rows that it held at the save; warn where it holds others.

    A crash leaves the rows that the file had, or some of those to be restored; the next resume completes them.

    Args:
        logger: A callback for which `is_csv_logger` is true, after its ``on_train_begin``.
        saved: What `rows_written` returned.
        ended: True if no epoch follows: then rows behind those of the save, of a later fit, stay.

    Raises:
        StorageError: The file cannot be written.
    """
    rows = np.asarray(saved[_ROWS]).tobytes()
    path = Path(logger.filename)
    try:
        if not logger.csv_file.closed:
            logger.csv_file.flush()
        found = path.read_bytes()
        if not found.startswith(rows[: len(found)]):
            messages.warn(
                f"CSVLogger: {path} does not hold the rows that it held at the save; it is left as it is, and the rows "
                "that follow are written at its end"
            )
        elif len(found) < len(rows):
            with path.open("ab") as file:
                file.write(rows[len(found) :])
        elif not ended:
            logger.csv_file.truncate(len(rows))
    except OSError as error:
        raise StorageError(operation="restoring the rows of CSVLogger", path=path, error=error) from error
    if not logger.csv_file.closed:
        logger.csv_file.seek(0, io.SEEK_END)
    logger.keys, logger.writer = saved[_KEYS], None
    logger.append_header = not rows
