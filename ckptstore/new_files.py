"""Makes files for people, outside a store: written under a hidden name, synced, and only then given their own.

A crash leaves nothing under the name, or the whole; and may leave the hidden file, which ends in ``.ckptstore``.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from pathlib import Path

from ckptstore.errors import InvalidArgumentError, StorageError
from ckptstore.files import fsync_directory, link, make_directory, rename_to_new, replace, unlink
from ckptstore.payload_writer import PayloadWriter, Written
from ckptstore.publishing import NO_LINKS

_MODE = 0o666
_NAME_MOST = 200


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
        raise exists_already(target)
    make_directory(target.parent)
    beside = hidden_beside(target)
    try:
        written = write_new(beside, len(data), methodcaller("write", data))
        if overwrite:
            replace(beside, target)
            fsync_directory(target.parent)
        else:
            give_name(beside, target)
    except BaseException:
        with suppress(OSError):
            unlink(beside)
        raise
    return written


def exists_already(target: Path) -> InvalidArgumentError:
    """Return the error that says that nothing is written over what is there."""
    return InvalidArgumentError(
        argument="path",
        value=str(target),
        reason="is there already, and is not overwritten",
        hint="choose another name, or remove it first",
    )


def hidden_beside(target: Path) -> Path:
    """Return a hidden name beside a target that nobody else uses."""
    name = target.name if len(os.fsencode(target.name)) <= _NAME_MOST else "export"
    return target.with_name(f".{name}.{uuid.uuid4().hex[:12]}.ckptstore")


def give_name(beside: Path, target: Path) -> None:
    """Give a whole file its name, which nobody may have got meanwhile."""
    try:
        link(beside, target)
    except StorageError as error:
        if error.errno == errno.EEXIST:
            raise exists_already(target) from error
        if error.errno not in NO_LINKS:
            raise
        rename_to_new(beside, target)
    else:
        unlink(beside)
    fsync_directory(target.parent)


def write_new(target: Path, nbytes: int, fill: Callable[[PayloadWriter], object]) -> Written:
    """Write a new file by a function that is given its writer; a failure leaves nothing behind."""
    writer = PayloadWriter(target, reserve=nbytes, mode=_MODE)
    try:
        fill(writer)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise
