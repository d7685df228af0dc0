"""Shows a payload at a path of the user's: complete old file or complete new file, never anything between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import xxhash

from ckptstore.errors import StorageError
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.files import fsync_directory, is_same_file, link, make_directory, replace, unlink

_CHUNK = 4 << 20
# Bytes that a name may have on the usual file systems.
_NAME_MOST = 255
NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def publish(payload: Path, target: Path) -> None:
    """Show `payload` at `target`: a hard link under a temporary name beside it, then an atomic rename.

    Where hard links are not available, a copy is made the same way. Durable when it returns. A crash leaves at
    `target` the complete old file or the complete new one. It may leave the temporary name, which
    `remove_leftover` removes.

    Raises:
        StorageError: The file system refused; `target` is as it was.
    """
    if is_same_file(payload, target):
        return
    make_directory(target.parent)
    beside = _beside(target)
    unlink(beside)
    try:
        link(payload, beside)
    except StorageError as error:
        if error.errno not in NO_LINKS:
            raise
        copy(payload, beside)
    try:
        replace(beside, target)
    except StorageError:
        unlink(beside)
        raise
    fsync_directory(target.parent)


def remove_leftover(target: Path) -> None:
    """Remove the temporary name that a crash in `publish` may have left beside `target`."""
    beside = _beside(target)
    if os.path.lexists(beside):
        unlink(beside)


def copy(source: Path, target: Path) -> str:
    """Copy a file to a new name, synced, and return its digest; the name is durable after `fsync_directory`.

    A crash leaves a part of it, under that name.
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


def _beside(target: Path) -> Path:
    name = f".{target.name}.ckptstore"
    if len(os.fsencode(name)) > _NAME_MOST:
        name = f".{xxhash.xxh3_64_hexdigest(os.fsencode(target.name))}.ckptstore"
    return target.with_name(name)
