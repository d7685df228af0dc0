"""The log of a supervised start: its first attempt gives it the name of the attempt, ``logs/<run>/<attempt>.log``.

A supervisor begins the log in a hidden directory, before it is known which attempt the start makes, and names it in
`LOG_VARIABLE`. The process that it starts writes to the open file, wherever that is renamed to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import StorageError
from ckptstore.storage.files import make_directory, rename_to_new
from ckptstore.storage.layout import WAITING_PREFIX, Layout, log_file
from ckptstore.system.supervisor_variables import LOG_VARIABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLog:
    """The file that this process' output goes to.

    Attributes:
        path: Where it is now, or None where it is not known.
        moves: True if the next attempt is to give it its own name.
    """

    path: Path | None = None
    moves: bool = False


def planned(layout: Layout, environment: Mapping[str, str] | None = None) -> OwnLog:
    """Return the log of this process, and whether an attempt that begins in a store is to rename it.

    Args:
        layout: The store's paths.
        environment: The environment; None for this process'.
    """
    given = (os.environ if environment is None else environment).get(LOG_VARIABLE)
    path = None if not given else Path(given)
    if path is None or not path.is_absolute() or not path.is_file():
        return OwnLog()
    is_hidden = path.parent.name.startswith(".")
    is_of_store = layout.root in path.parents or path.parent.name.startswith(WAITING_PREFIX)
    with suppress(OSError):
        is_near = path.stat().st_dev == layout.root.stat().st_dev
        return OwnLog(path=path, moves=is_hidden and is_of_store and is_near)
    return OwnLog(path=path)


def move(log: OwnLog, layout: Layout, run: str, attempt: int) -> bool:
    """Give a log the name of an attempt; returns False if it has kept its own, since the file system refused.

    Processes that this one starts from now on know it by its new name. A crash leaves it under one name or the other.
    """
    assert log.path is not None
    target = layout.root / log_file(run, attempt)
    try:
        make_directory(target.parent, durable=False)
        rename_to_new(log.path, target)
    except StorageError:
        return False
    os.environ[LOG_VARIABLE] = str(target)
    return True


def lowest_number(layout: Layout, run: str) -> int:
    """Return the lowest number that an attempt may have: files of higher ones are there if the manifest was lost."""
    try:
        names = os.listdir(layout.logs / run)
    except OSError:
        return 1
    heads = (name.partition(".")[0] for name in names)
    return max((int(head) for head in heads if head.isascii() and head.isdecimal()), default=0) + 1
