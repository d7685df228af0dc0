"""The logs of starts: where one begins, where it lies after a start that reached no fit, and which there are.

A training gives its log its own name, ``logs/<run>/<attempt>.log``, when its fit begins. Until then, and for good where
no fit begins, it lies in ``logs/.starts``; as long as there is no store, in the supervisor's hidden directory.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ckptstore.errors import StorageError
from ckptstore.storage import log_files
from ckptstore.storage.files import make_directory, replace
from ckptstore.storage.layout import Layout
from ckptstore.supervisor.waiting_directory import layout_of, waiting_directories, waiting_directory

# A directory that no run can have the name of.
STARTS = ".starts"


def begin_log(path: Path, token: str) -> Path:
    """Create the log of a start, and return where it lies.

    Args:
        path: The store, or the place where it will be.
        token: The name of the start.

    Raises:
        StorageError: It cannot be created.
    """
    layout = layout_of(path)
    directory = waiting_directory(path) if layout is None else layout.logs / STARTS
    make_directory(directory, durable=False)
    log = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token}.log"
    os.close(log_files.create_log(log))
    return log


def find_log(path: Path, log: Path, inode: int) -> Path | None:
    """Return where a log lies now that was begun by another supervisor, or None."""
    layout = layout_of(path)
    places = [] if layout is None else [*layout.logs.glob("*/*.log")]
    for found in (log, *places):
        with suppress(OSError):
            if found.stat().st_ino == inode:
                return found
    return None


def move_to_store(path: Path, keep: Path | None = None) -> Path | None:
    """Move logs that were begun before there was a store into it; returns where one of them lies now.

    Args:
        path: The store, or the place where it will be.
        keep: The log to tell the place of.

    Raises:
        StorageError: A log cannot be renamed.
    """
    layout = layout_of(path)
    if layout is not None:
        target = layout.logs / STARTS
        for directory in waiting_directories(path):
            for log in log_files.logs_in(directory):
                make_directory(target, durable=False)
                log_files.move_parts(log, target / log.name)
                replace(log, target / log.name)
                keep = target / log.name if log == keep else keep
    return keep


def logs_without_fit(path: Path) -> list[Path]:
    """Return the logs of the starts that reached no fit, oldest first; there may be no store."""
    layout = layout_of(path)
    places = waiting_directories(path) + ([] if layout is None else [layout.logs / STARTS])
    return sorted((log for place in places for log in log_files.logs_in(place)), key=lambda log: log.name)


def logs_of_run(layout: Layout, run: str) -> list[Path]:
    """Return the logs of a run's attempts, oldest first."""
    return log_files.logs_in(layout.logs / run)


def forget(log: Path) -> None:
    """Remove the log of a start that could not be made."""
    with suppress(StorageError):
        log_files.remove_log(log)
