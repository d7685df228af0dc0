"""Log files that a process appends to while their front is compressed into parts, so that they never fill the disk.

The live file ``3.log`` is only ever appended to. Its front is copied to ``3.1.<offset>.log.gz``, and its blocks are
then freed: a hole is punched, and the text goes on at that offset of the file. Where a file system has no holes, the
file is truncated instead, and the offset is 0. The part is complete and durable before the front goes, so that a crash
at any instant loses nothing, and shows nothing twice.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import StorageError
from ckptstore.storage import files
from ckptstore.storage.files import io_step, unlink

LIVE_SUFFIX = ".log"
_PART = re.compile(r"(?P<stem>.+)\.(?P<number>\d+)\.(?P<offset>\d+)\.log\.gz")
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_BLOCK = 4096
CHUNK = 1 << 20
# What stays of an old log when there is no room for more: its last words.
KEPT_OF_OLD_LOGS = 64 << 10
# Rotating leaves this much in the live file, for whoever looks at it, and for the last lines of output.
LEFT_IN_PLACE = 64 << 10
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM, errno.EFBIG})
GZIP = 16 + zlib.MAX_WBITS
_FASTEST = 1


@dataclass(frozen=True, slots=True, order=True)
class LogPart:
    """A compressed part of a log.

    Attributes:
        number: Its place among the parts of the log; the first is 1.
        offset: Where the text behind it begins in the live file, in bytes.
        path: The file.
    """

    number: int
    offset: int
    path: Path


def create_log(path: Path) -> int:
    """Create a log file and return a descriptor of it that appends.

    Raises:
        StorageError: It cannot be created.
    """
    with io_step("create", path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o666)


def open_log(path: Path) -> int:
    """Open a log file that is there already, to append to it; see `create_log`."""
    with io_step("open", path):
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)


def path_of(descriptor: int, last_known: Path) -> Path:
    """Return where an open log lies now: the process that writes it may have renamed it."""
    with suppress(OSError):
        found = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115 - may be no path
        if found.is_absolute() and os.path.samestat(found.stat(), os.fstat(descriptor)):
            return found
    return last_known


def parts_of(log: Path) -> list[LogPart]:
    """Return the compressed parts of a log, oldest first.

    Raises:
        StorageError: The directory cannot be listed.
    """
    found = []
    for name in _names(log.parent):
        match = _PART.fullmatch(name)
        if match is not None and match["stem"] == log.stem:
            found.append(LogPart(int(match["number"]), int(match["offset"]), log.parent / name))
    return sorted(found)


def live_offset(log: Path, descriptor: int) -> int:
    """Return where the text that is in no part begins in the live file, in bytes."""
    parts = parts_of(log)
    offset = parts[-1].offset if parts else 0
    # A log that has ended is written again without its hole: then it is shorter than the hole was.
    return offset if offset <= os.fstat(descriptor).st_size else 0


def rotate(log: Path, descriptor: int, part_bytes: int) -> bool:
    """Move the front of a live log into a compressed part if it has grown long enough; returns True if it has.

    A crash leaves the front where it was, or the part; while both are there, readers take the part.

    Args:
        log: The live file.
        descriptor: A descriptor of it.
        part_bytes: Bytes of text that make a part.

    Raises:
        StorageError: The part cannot be written; the live file is as it was.
    """
    begin = live_offset(log, descriptor)
    end = (begin + part_bytes) // _BLOCK * _BLOCK
    if os.fstat(descriptor).st_size < end + LEFT_IN_PLACE or end <= begin:
        return False
    number = (parts_of(log)[-1:] or [LogPart(0, 0, log)])[0].number + 1
    if can_punch(descriptor):
        _write_part(descriptor, begin, end, log.with_name(f"{log.stem}.{number}.{end}.log.gz"))
        with io_step("punch", log):
            _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, end)
    else:
        # Only a process that stands still could be cut without a gap: what is written between the two calls is lost.
        end = os.fstat(descriptor).st_size
        _write_part(descriptor, begin, end, log.with_name(f"{log.stem}.{number}.0.log.gz"))
        files.truncate(descriptor, log, 0)
    return True


def can_punch(descriptor: int) -> bool:
    """Return True if the blocks of an open file can be freed while it is in use."""
    try:
        # Far behind the end, where there is nothing.
        _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 1 << 40, _BLOCK)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return False
        raise
    return True


def reserve_ahead(descriptor: int, nbytes: int) -> None:
    """Reserve blocks behind the end of a live log, so that a full disk does not end the process that writes it.

    Nothing happens where that cannot be.

    Raises:
        OSError: There is no room, `errno` ENOSPC or EDQUOT.
    """
    try:
        _fallocate(descriptor, _KEEP_SIZE, os.fstat(descriptor).st_size, nbytes)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise


def finish(log: Path, descriptor: int) -> None:
    """Write a log whose process has ended again, without hole and reserved blocks; a crash leaves the one or the other.

    Raises:
        StorageError: It cannot be written; the log is as it was.
    """
    offset, size = live_offset(log, descriptor), os.fstat(descriptor).st_size
    if offset == 0:
        files.truncate(descriptor, log, size)  # frees what is reserved behind the end
        return
    _rewrite(log, descriptor, offset, size)


def move_parts(old: Path, new: Path) -> None:
    """Give the parts of a log that was renamed its new name.

    Raises:
        StorageError: One cannot be renamed.
    """
    for part in parts_of(old):
        files.replace(part.path, new.with_name(f"{new.stem}.{part.number}.{part.offset}.log.gz"))


def remove_log(log: Path) -> None:
    """Remove a log and its parts."""
    for part in parts_of(log):
        unlink(part.path)
    unlink(log)


def logs_in(directory: Path) -> list[Path]:
    """Return the live files of a directory of logs, by the time at which they were begun; none where there is none."""
    names = [name for name in _names(directory) if name.endswith(LIVE_SUFFIX)]
    return sorted((directory / name for name in names), key=_age)


def _age(log: Path) -> tuple[bool, int, str]:
    """Return what logs are sorted by: attempts by their number, starts by their name, which begins with the time."""
    return not log.stem.isdecimal(), int(log.stem) if log.stem.isdecimal() else 0, log.stem


def keep_within(directory: Path, limit: int, *, newest: Path | None = None) -> None:
    """Remove the oldest text of a directory's logs until they take at most `limit` bytes.

    First go the parts of the oldest log, then all of it but its last words, then the next; at last, old logs as a
    whole. The newest loses parts only.

    Args:
        directory: The directory.
        limit: Bytes.
        newest: The log that is being written, if it lies there.

    Raises:
        StorageError: A file cannot be removed.
    """
    logs = logs_in(directory)
    excess = (
        sum(map(_allocated, logs))
        + sum(_allocated(part.path) for log in logs for part in parts_of(log))
        - limit
    )
    for remove in (_remove_parts, _trim, _remove):
        for log in logs:
            if excess <= 0:
                return
            if log != newest or remove is _remove_parts:
                excess -= remove(log, excess)


def _remove_parts(log: Path, excess: int) -> int:
    freed = 0
    for part in parts_of(log):
        if freed < excess:
            freed += _allocated(part.path)
            unlink(part.path)
    return freed


def _trim(log: Path, excess: int) -> int:
    before = _allocated(log)
    if before > KEPT_OF_OLD_LOGS:
        descriptor = open_log(log)
        try:
            size = os.fstat(descriptor).st_size
            _rewrite(log, descriptor, max(live_offset(log, descriptor), size - KEPT_OF_OLD_LOGS), size)
        finally:
            os.close(descriptor)
    return before - _allocated(log)


def _remove(log: Path, excess: int) -> int:
    freed = _allocated(log)
    unlink(log)
    return freed


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StorageError(operation="list", path=directory, error=error) from error


def _write_part(descriptor: int, begin: int, end: int, part: Path) -> None:
    compressor = zlib.compressobj(_FASTEST, zlib.DEFLATED, GZIP)

    def write(target: int) -> None:
        for piece in _pieces(descriptor, begin, end):
            _write_all(target, compressor.compress(piece))
        _write_all(target, compressor.flush())

    _write_file(part, write)


def _rewrite(log: Path, descriptor: int, begin: int, end: int) -> None:
    def write(target: int) -> None:
        for piece in _pieces(descriptor, begin, end):
            _write_all(target, piece)

    _write_file(log, write, mode=stat.S_IMODE(os.fstat(descriptor).st_mode))


def _write_file(path: Path, write: Callable[[int], None], mode: int = 0o666) -> None:
    """Write a file under another name, make it durable, and put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    unlink(temporary)
    with io_step("create", temporary):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode)
    try:
        with io_step("write", temporary):
            write(descriptor)
        files.sync_file(descriptor, temporary)
        files.replace(temporary, path)
        files.fsync_directory(path.parent)
    except BaseException:
        unlink(temporary)
        raise
    finally:
        os.close(descriptor)


def _pieces(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end and (piece := os.pread(descriptor, min(CHUNK, end - begin), begin)):
        begin += len(piece)
        yield piece


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _fallocate(descriptor: int, mode: int, offset: int, nbytes: int) -> None:
    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError) as error:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if function(descriptor, mode, offset, nbytes) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
