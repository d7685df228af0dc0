"""Makes files for people, outside a store: written in a hidden folder, synced, and only then given their own.

A crash leaves nothing under the name, or the whole; and may leave a hidden folder, which ends in ``.ckptstore``, and
which the next file that is made beside it takes away.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from pathlib import Path

from ckptstore.errors import InvalidArgumentError, StorageError
from ckptstore.storage.durable_writer import DurableWriter, Written
from ckptstore.storage.files import (
    fsync_directory,
    link,
    make_directory,
    remove_directory,
    rename_to_new,
    replace,
    unlink,
)
from ckptstore.storage.locks import directory_lock
from ckptstore.storage.publish import NO_LINKS

_MODE = 0o666
_NAME_MOST = 200
_WORKSPACE = re.compile(r"\..+\.[0-9a-f]{12}\.ckptstore", re.DOTALL)


def write_file(target: Path, data: bytes, *, overwrite: bool = False) -> Written:
    """Write a whole file; durable when it returns.

    Args:
        target: The file, absolute; its parents are made.
        data: Its bytes.
        overwrite: True to take the place of one that is there.

    Raises:
        InvalidArgumentError: Something is there already.
        StorageError: The disk failed, or is full; what was there is as it was.
    """
    if not overwrite and os.path.lexists(target):
        raise already_exists(target)
    with workspace(target) as room:
        beside = room / target.name
        written = write_new(beside, len(data), methodcaller("write", data))
        if overwrite:
            replace(beside, target)
            fsync_directory(target.parent)
        else:
            move_into_place(beside, target)
    return written


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside a target for this block; those that dead processes left there are removed.

    A living process holds its own by a kernel lock.

    Raises:
        StorageError: It cannot be made.
    """
    make_directory(target.parent)
    _sweep(target.parent)
    while True:
        room = _hidden_beside(target)
        make_directory(room, durable=False)
        with directory_lock(room) as held:
            # Somebody may have taken it for a dead one's, before it was held.
            if held is not False:
                try:
                    yield room
                finally:
                    _remove(room)
                return


def _sweep(folder: Path) -> None:
    """Remove the workspaces in a folder whose process is dead; what cannot be removed stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _WORKSPACE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                with directory_lock(path) as held:
                    if held:
                        _remove(path)


def _remove(folder: Path) -> None:
    """Remove a folder and what is in it; raises nothing, while another error may be on its way."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                _remove(path)
            else:
                unlink(path)
        remove_directory(folder)


def already_exists(target: Path) -> InvalidArgumentError:
    """Return the error that says that nothing is written over what is there."""
    return InvalidArgumentError(
        argument="path",
        value=str(target),
        reason="is there already, and is not overwritten",
        hint="choose another name, or remove it first",
    )


def _hidden_beside(target: Path) -> Path:
    """Return a hidden name beside a target that nobody else uses."""
    name = target.name if len(os.fsencode(target.name)) <= _NAME_MOST else "export"
    return target.with_name(f".{name}.{uuid.uuid4().hex[:12]}.ckptstore")


def move_into_place(beside: Path, target: Path) -> None:
    """Give a whole file its name, which nobody may have got meanwhile."""
    try:
        link(beside, target)
    except StorageError as error:
        if error.errno == errno.EEXIST:
            raise already_exists(target) from error
        if error.errno not in NO_LINKS:
            raise
        rename_to_new(beside, target)
    else:
        unlink(beside)
    fsync_directory(target.parent)


def write_new(target: Path, nbytes: int, fill: Callable[[DurableWriter], object]) -> Written:
    """Write a new file by a function that is given its writer; a failure leaves nothing behind."""
    writer = DurableWriter(target, reserve=nbytes, mode=_MODE)
    try:
        fill(writer)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise
