"""The output of a command: a log file that it writes itself, which this module shows, rotates and bounds.

The command writes to the file and not through a pipe, so that a supervisor that is killed or stopped neither ends nor
blocks it.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ckptstore.errors import DiskFullError, StorageError
from ckptstore.storage import log_files
from ckptstore.storage.log_reader import LogReader, last_lines

_T = TypeVar("_T")
_MIB = 1 << 20
_LARGEST_PART, _PARTS_WITHIN_LIMIT = 16 * _MIB, 8
# Text that waits to be compressed may take so many times the limit.
_MOST_WAITING = 8
# Blocks that the command may write to while the disk is full, and until when they are reserved again.
_RESERVED = 1 * _MIB
# A pipe or terminal that is ready takes this many bytes without a wait.
_AT_ONCE = select.PIPE_BUF
# A reader of this process's output that takes nothing for so long at the end of the command is not waited for.
_LONGEST_DRAIN_S = 5.0


class OutputLog:
    """The log of one start of a command.

    Args:
        path: The log, which is there; the command may rename it.
        shown_on: A descriptor that its text is copied to, or None.
        limit: Bytes that the logs of its directory may take.
        log: Called with each message.
        from_end: True to show only what is written from now on.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        shown_on: int | None,
        limit: int,
        log: Callable[[str], object],
        from_end: bool = False,
    ) -> None:
        self._path, self._limit, self._log = path, limit, log
        self.descriptor = log_files.open_log(path)
        self._part_bytes = max(min(_LARGEST_PART, limit // _PARTS_WITHIN_LIMIT), 64 << 10)
        self._reserved_to, self._size = 0, -1
        self._is_behind = False
        self._complaints: set[str] = set()
        self._shown_on = shown_on
        self._waits = shown_on is not None and not stat.S_ISREG(os.fstat(shown_on).st_mode)
        self._unshown = memoryview(b"")
        self._reader = LogReader(path)
        if from_end:
            self._reader.skip_to_last(0)
        self._text = self._reader.read()
        self.wrote = 0

    @property
    def is_on_terminal(self) -> bool:
        """True if its text is shown on a terminal."""
        return self._shown_on is not None and os.isatty(self._shown_on)

    @property
    def path(self) -> Path:
        """Where the log lies now."""
        found = log_files.path_of(self.descriptor, self._path)
        if found != self._path:
            # An attempt has given it its own name.
            self._quietly(lambda: log_files.move_parts(self._path, found))
            self._path = found
        return found

    def tick(self) -> bool:
        """Show, rotate and bound what was written; returns True if there is more to do at once."""
        size = os.fstat(self.descriptor).st_size
        if size == self._size and not (self._unshown or self._is_behind):
            return False
        self._size = size
        more = self.show()
        path = self.path
        rotated = bool(self._quietly(lambda: log_files.rotate(path, self.descriptor, self._part_bytes)))
        if rotated or self._is_behind:
            # A command may write faster than its text is compressed: what waits for that is not removed for its size.
            waiting = size - log_files.live_offset(path, self.descriptor)
            if not rotated or waiting > _MOST_WAITING * self._limit:
                self._bound()
        self._is_behind = rotated
        self._reserve()
        return more or rotated

    def show(self) -> bool:
        """Copy new text to the descriptor, as far as that takes it; returns True if it takes more at once."""
        if self._shown_on is None:
            return False
        for _ in range(64):
            if not self._unshown:
                self._unshown = memoryview(self._next_text())
            if not self._unshown:
                return False
            if not self._write():
                return False
        return True

    def _next_text(self) -> bytes:
        try:
            for piece in self._text:
                if piece:
                    return piece
            self._text = self._reader.read()
            return b""
        except StorageError as error:
            self._complain(str(error))
            return b""

    def _write(self) -> bool:
        """Write some text; returns False if the reader takes nothing now, or is gone."""
        descriptor = self._shown_on
        if descriptor is None:
            return False
        piece = self._unshown
        if self._waits:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            if not poll.poll(0):
                return False
            piece = piece[:_AT_ONCE]
        try:
            written = os.write(descriptor, piece)
        except BlockingIOError:
            return False
        except OSError:
            self._shown_on = None  # its reader is gone, or its disk is full: the log has everything
            return False
        self._unshown = self._unshown[written:]
        self.wrote += written
        return True

    def close(self) -> list[str]:
        """Show the rest, finish the log after the command's end, and return its last lines."""
        until = time.monotonic() + _LONGEST_DRAIN_S
        while self.show() or (self._unshown and self._shown_on is not None):
            if self._unshown and not self._drain(until):
                break
        path = self.path
        while self._quietly(lambda: log_files.rotate(path, self.descriptor, self._part_bytes)):
            pass
        self._bound()
        self._quietly(lambda: log_files.finish(path, self.descriptor))
        os.close(self.descriptor)
        self._reader.close()
        return self._quietly(lambda: last_lines(path, 20)) or []

    def _drain(self, until: float) -> bool:
        if self._shown_on is None or not self._waits:
            return True
        poll = select.poll()
        poll.register(self._shown_on, select.POLLOUT)
        return bool(poll.poll(max(0.0, 1000 * (until - time.monotonic()))))

    def append(self, text: str) -> None:
        """Append a line of the supervisor's own; nothing happens where that cannot be."""
        with suppress(OSError):
            os.write(self.descriptor, text.encode(errors="replace"))

    def _reserve(self) -> None:
        size = os.fstat(self.descriptor).st_size
        if size + _RESERVED // 2 < self._reserved_to:
            return
        try:
            log_files.reserve_ahead(self.descriptor, _RESERVED)
            self._reserved_to = size + _RESERVED
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return
            # An old log is worth less than a training that ends since it cannot print.
            taken = sum(part.path.stat().st_size for part in log_files.parts_of(self._path))
            self._quietly(lambda: log_files.keep_within(self._path.parent, taken // 2, newest=self._path))

    def _bound(self) -> None:
        self._quietly(lambda: log_files.keep_within(self._path.parent, self._limit, newest=self._path))

    def _quietly(self, step: Callable[[], _T]) -> _T | None:
        """Do a step on the log's files; a failure is a message, once."""
        try:
            return step()
        except DiskFullError:
            return None  # the training itself says so, and the log goes on in what is reserved
        except (StorageError, OSError) as error:
            self._complain(str(error))
            return None

    def _complain(self, text: str) -> None:
        if text not in self._complaints and len(self._complaints) < 10:
            self._complaints.add(text)
            self._log(f"the log: {text}")
