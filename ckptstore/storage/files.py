"""The steps that change the file system: one function for each, with a hook for tests, and errors translated.

The layers above decide on the order of the steps. A function here that returns has done its step; one that raises
names the operation and the path (`StorageError`). Durable on return is only what says so: a new name becomes durable
when `fsync_directory` is called on its directory.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import xxhash

from ckptstore.errors import CorruptPayloadError, DiskFullError, StorageError
from ckptstore.system import messages

if sys.platform == "darwin":  # pragma: no cover
    import fcntl

DIGEST = "xxh3_128"
_CHUNK = 4 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF})

Phase = Literal["before", "after"]
Hook = Callable[[str, Path, Phase], None]
_hooks: list[Hook] = []
# Devices for which a warning was issued that their directories cannot be synced.
_unsynced: set[int] = set()


@contextmanager
def io_hook(hook: Hook) -> Iterator[None]:
    """Call `hook(operation, path, phase)` before and after every I/O step within the block.

    With it, tests stop or fail a save at its n-th step. The hook may raise, or end the process.

    Example:
        >>> import tempfile
        >>> seen = []
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with io_hook(lambda operation, path, phase: seen.append((operation, phase))):
        ...         fsync_directory(Path(folder))
        >>> seen
        [('fsync', 'before'), ('fsync', 'after')]
    """
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


@contextmanager
def io_step(operation: str, path: Path) -> Iterator[None]:
    """Mark one I/O step: calls the hooks, and turns an `OSError` into a `StorageError` with operation and path."""
    try:
        for hook in _hooks:
            hook(operation, path, "before")
        yield
        for hook in _hooks:
            hook(operation, path, "after")
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFullError(
                path=path,
                free=free_bytes(path.parent),
                disk=mount_point(path),
                code=error.errno or 0,
            ) from error
        raise StorageError(operation=operation, path=path, error=error) from error


def free_bytes(directory: Path) -> int | None:
    """Return the bytes that an ordinary user may still write in a directory, or None if that is unknown.

    A hint only: some file systems refuse a write with blocks to spare, and compressing ones accept more than this.
    """
    try:
        usage = os.statvfs(directory)
    except OSError:
        return None
    return usage.f_bavail * usage.f_frsize


def mount_point(path: Path) -> Path | None:
    """Return the directory at which the file system of `path` is mounted, or None if that is unknown.

    Example:
        >>> mount_point(Path("/"))
        PosixPath('/')
    """
    directory = Path(os.path.realpath(path.parent))
    try:
        while not directory.is_mount():
            directory = directory.parent
    except OSError:
        return None
    return directory


def make_directory(path: Path, *, durable: bool = True) -> None:
    """Make a directory and its missing parents, each of them durable.

    A crash leaves some of the parents, empty.

    Args:
        path: The directory.
        durable: False if its own name need not be durable; its parents are durable anyway.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    with io_step("mkdir", path):
        path.mkdir(exist_ok=True)
    if durable:
        fsync_directory(path.parent)


def make_directories_below(directory: Path, path: Path) -> None:
    """Make the missing directories from `directory` down to `path`, but never `directory` itself; not durable.

    Raises:
        StorageError: There is no such directory any more.
    """
    if path == directory or path.is_dir():
        return
    make_directories_below(directory, path.parent)
    with io_step("mkdir", path):
        path.mkdir(exist_ok=True)


def make_shown_directory(path: Path) -> None:
    """Make a directory for files that are only shown: it is no step of a save, and not made durable."""
    path.mkdir(exist_ok=True)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    If the file system cannot sync a directory, its names are not provably durable; a warning says so, once for each
    file system.
    """
    with io_step("fsync", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
            _warn_unsynced(path, os.fstat(descriptor).st_dev)
        finally:
            os.close(descriptor)


def _warn_unsynced(path: Path, device: int) -> None:
    if device not in _unsynced:
        _unsynced.add(device)
        messages.warn(
            f"{path}: this file system cannot sync a directory; a power cut may undo the last renames"
        )


def rename_to_new(source: Path, target: Path) -> None:
    """Rename a file to a name that does not exist yet; durable after `fsync_directory` on both directories.

    A crash leaves it under one name or the other.
    """
    with io_step("rename", target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def move_durably(source: Path, target: Path) -> None:
    """Rename a file to a new name, durably; a crash leaves it under one name or the other."""
    rename_to_new(source, target)
    fsync_directory(target.parent)
    fsync_directory(source.parent)


def link(source: Path, target: Path) -> None:
    """Give a file a second, new name; durable after `fsync_directory`."""
    with io_step("link", target):
        os.link(source, target)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another, atomically; durable after `fsync_directory`.

    A crash leaves the complete old file at `target`, or the complete new one.
    """
    with io_step("rename", target):
        source.replace(target)


def unlink(path: Path) -> None:
    """Remove a file; nothing happens where there is none. Durable after `fsync_directory`."""
    with io_step("unlink", path):
        path.unlink(missing_ok=True)


def remove_directory(path: Path) -> bool:
    """Remove an empty directory; returns False, and removes nothing, where something lies in it."""
    with io_step("rmdir", path):
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                return False
            raise
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory and everything below it, a step for each; follows no link. Durable after `fsync_directory`.

    A crash leaves a part of it.
    """
    try:
        below = sorted(path.iterdir())
    except OSError as error:
        raise StorageError(operation="list", path=path, error=error) from error
    for one in below:
        if one.is_dir() and not one.is_symlink():
            remove_tree(one)
        else:
            unlink(one)
    remove_directory(path)


def create_filled(path: Path, nbytes: int) -> None:
    """Create a file of zeros that owns its blocks; not durable. A failure leaves nothing behind.

    The zeros are written and not only reserved, since some file systems allocate blocks in no other way.
    """
    with io_step("create", path):
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    try:
        with io_step("write", path):
            written = 0
            while written < nbytes:
                written += os.write(descriptor, bytes(nbytes - written))
    except BaseException:
        unlink(path)
        raise
    finally:
        os.close(descriptor)


def truncate(descriptor: int, path: Path, nbytes: int) -> None:
    """Cut an open file to a length, and free what is reserved behind it; not durable."""
    with io_step("truncate", path):
        os.ftruncate(descriptor, nbytes)


def is_same_file(first: Path, second: Path) -> bool:
    """Return True if both names lead to the same file."""
    try:
        return first.samefile(second)
    except OSError:
        return False


def digest_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Return ``"xxh3_128:<32 hex digits>"`` of a file's bytes.

    Args:
        path: The file.
        progress: Called with the number of bytes after each part of at most 4 MiB.

    Raises:
        CorruptPayloadError: There is no such file.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                if progress is not None:
                    progress(count)
    except FileNotFoundError as error:
        raise CorruptPayloadError(path=path, reason="the file is missing") from error
    except OSError as error:
        raise StorageError(operation="read", path=path, error=error) from error
    return f"{DIGEST}:{digest.hexdigest()}"


def sync_path(path: Path) -> None:
    """Make the bytes of a file that somebody else wrote durable; a failure is final, as for `sync_file`."""
    with io_step("open", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file(descriptor, path)
    finally:
        os.close(descriptor)


def sync_file(descriptor: int, path: Path) -> None:
    """Make a file's bytes durable. A failure is final: never sync this file again, but write a new one."""
    with io_step("fsync", path):
        if sys.platform == "darwin":  # pragma: no cover  (its fsync leaves the bytes in the drive's cache)
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
