"""Writes files for people outside a store: in a hidden folder first, synced, and only then under their own names.

A crash leaves nothing under the name, or the complete file. It may also leave the hidden folder, whose name ends in
``.ckptstore``; the next file that is written beside it removes that.
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
_MAX_NAME = 200
_WORKSPACE = re.compile(r"\..+\.[0-9a-f]{12}\.ckptstore", re.DOTALL)


def write_file(target: Path, data: bytes, *, overwrite: bool = False) -> Written:
    """Write a whole file; durable when it returns.

    Args:
        target: The file, absolute; missing parents are made.
        data: Its bytes.
        overwrite: True to replace a file that exists.

    Raises:
        InvalidArgumentError: The path exists already.
        StorageError: The disk failed, or is full; an old file is unchanged.
    """
    if not overwrite and os.path.lexists(target):
        raise already_exists(target)
    with workspace(target) as folder:
        temporary = folder / target.name
        written = write_new(temporary, len(data), methodcaller("write", data))
        if overwrite:
            replace(temporary, target)
            fsync_directory(target.parent)
        else:
            move_into_place(temporary, target)
    return written


def replace_file(target: Path, data: bytes) -> None:
    """Replace a small file that is written again and again, or make it; a reader sees the old bytes or the new.

    Nothing is synced, so that no other write of the disk waits: after a power cut the file may be empty. A kill may
    leave a hidden file beside it, which the next call replaces.

    Raises:
        StorageError: It cannot be written; the old file is unchanged.
    """
    temporary = target.with_name(f".{target.name}.ckptstore")
    try:
        with temporary.open("wb") as file:
            file.write(data)
    except OSError as error:
        raise StorageError(operation="writing", path=target, error=error) from error
    replace(temporary, target)


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside a target for the block, and remove those that dead processes left there.

    A living process holds a kernel lock on its own.

    Raises:
        StorageError: It cannot be made.
    """
    make_directory(target.parent)
    _remove_stale_workspaces(target.parent)
    while True:
        folder = _hidden_beside(target)
        make_directory(folder, durable=False)
        with directory_lock(folder) as held:
            # Before it was locked, another process may have removed it as a dead one's.
            if held is not False:
                try:
                    yield folder
                finally:
                    _remove(folder)
                return


def _remove_stale_workspaces(folder: Path) -> None:
    """Remove the workspaces of dead processes in a folder; those that cannot be removed stay."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _WORKSPACE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                with directory_lock(path) as held:
                    if held:
                        _remove(path)


def _remove(folder: Path) -> None:
    """Remove a folder and its contents. Raises nothing, since it may run while another error is being handled."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                _remove(path)
            else:
                unlink(path)
        remove_directory(folder)


def already_exists(target: Path) -> InvalidArgumentError:
    """Return the error for a path that exists already."""
    return InvalidArgumentError(
        argument="path",
        value=str(target),
        reason="is there already, and is not overwritten",
        hint="choose another name, or remove it first",
    )


def _hidden_beside(target: Path) -> Path:
    """Return a hidden, unique name beside a target."""
    name = target.name if len(os.fsencode(target.name)) <= _MAX_NAME else "export"
    return target.with_name(f".{name}.{uuid.uuid4().hex[:12]}.ckptstore")


def move_into_place(source: Path, target: Path) -> None:
    """Move a complete file to its final name, durably, unless that name exists.

    A crash leaves it under its old name, the new one, or both.

    Raises:
        InvalidArgumentError: The name exists already.
        StorageError: The file system refused.
    """
    try:
        link(source, target)
    except StorageError as error:
        if error.errno == errno.EEXIST:
            raise already_exists(target) from error
        if error.errno not in NO_LINKS:
            raise
        rename_to_new(source, target)
    else:
        unlink(source)
    fsync_directory(target.parent)


def write_new(target: Path, nbytes: int, fill: Callable[[DurableWriter], object]) -> Written:
    """Write a new file by calling `fill` with its writer; a failure leaves nothing behind."""
    writer = DurableWriter(target, reserve=nbytes, mode=_MODE)
    try:
        fill(writer)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise
