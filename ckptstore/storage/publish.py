"""Publishes a payload at a user's path: at every instant the complete old file or the complete new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import xxhash

from ckptstore.errors import StorageError
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.files import fsync_directory, is_same_file, link, make_directory, replace, unlink
from ckptstore.storage.random_access import RandomAccess

_CHUNK = 4 << 20
# The longest file name on the usual file systems, in bytes.
_MAX_NAME = 255
NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def publish(payload: Path, target: Path) -> None:
    """Publish `payload` at `target`: a hard link under a temporary name beside it, then an atomic rename.

    Where hard links are not available, a copy is made the same way. Durable when it returns. A crash leaves at
    `target` the complete old file or the complete new one. It may leave the temporary name, which
    `remove_leftover` removes.

    Raises:
        StorageError: The file system refused; `target` is unchanged.
    """
    if is_same_file(payload, target):
        return

    def fill(temporary: Path) -> None:
        try:
            link(payload, temporary)
        except StorageError as error:
            if error.errno not in NO_LINKS:
                raise
            copy_file(payload, temporary)

    _put(target, fill)


def publish_copy(source: RandomAccess, target: Path) -> None:
    """Publish bytes that are no local file at `target`, by a copy that is made as `publish` makes one.

    Raises:
        StorageError: The bytes cannot be read, or the file system refused; `target` is unchanged.
    """

    def fill(temporary: Path) -> None:
        writer = DurableWriter(temporary, reserve=source.nbytes)
        try:
            with closing(source.parts()) as parts:
                for part in parts:
                    writer.write(part)
            writer.finish()
        except BaseException:
            writer.abort()
            raise

    _put(target, fill)


def _put(target: Path, fill: Callable[[Path], object]) -> None:
    """Have a file made under a temporary name beside `target`, then renamed to it, durably."""
    make_directory(target.parent)
    temporary = _temporary_name(target)
    unlink(temporary)
    fill(temporary)
    try:
        replace(temporary, target)
    except StorageError:
        unlink(temporary)
        raise
    fsync_directory(target.parent)


def remove_leftover(target: Path) -> None:
    """Remove the temporary name that a crash in `publish` may have left beside `target`."""
    temporary = _temporary_name(target)
    if os.path.lexists(temporary):
        unlink(temporary)


def copy_file(source: Path, target: Path) -> str:
    """Copy a file to a new name, synced, and return its digest; the name is durable after `fsync_directory`.

    A crash leaves a part of it under that name.
    """
    with source.open("rb") as file:
        writer = DurableWriter(target, reserve=os.fstat(file.fileno()).st_size)
        try:
            while chunk := file.read(_CHUNK):
                writer.write(chunk)
            return writer.finish().digest
        except BaseException:
            writer.abort()
            raise


def _temporary_name(target: Path) -> Path:
    name = f".{target.name}.ckptstore"
    if len(os.fsencode(name)) > _MAX_NAME:
        name = f".{xxhash.xxh3_64_hexdigest(os.fsencode(target.name))}.ckptstore"
    return target.with_name(name)
