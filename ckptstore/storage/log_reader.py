"""Reads a log as one text, compressed parts and live file together, also while it is written and rotated."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ckptstore.storage.files import io_step
from ckptstore.storage.log_files import CHUNK, GZIP, LEFT_IN_PLACE, LogPart, live_offset, parts_of, path_of


class LogReader:
    """Reads a log from its beginning as one text, parts and live file, also while it is written and rotated.

    Args:
        log: The live file.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        with io_step("open", log):
            self._descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        # The number of the last part that was read; where the text behind it begins; where reading goes on.
        self._part, self._begin, self._position = 0, 0, 0
        self.lost_front = False

    def __enter__(self) -> LogReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the log."""
        os.close(self._descriptor)

    @property
    def path(self) -> Path:
        """Where the log lies now."""
        self._log = path_of(self._descriptor, self._log)
        return self._log

    def read(self) -> Iterator[bytes]:
        """Yield what was not read yet, in pieces of at most a mebibyte.

        Raises:
            StorageError: A file cannot be read.
        """
        while True:
            for part in self._new_parts():
                yield from self._text_of(part)
            piece = self._read_live()
            if self._new_parts():
                continue  # it may have become a hole since
            if not piece:
                return
            self._position += len(piece)
            yield piece

    def skip_to_last(self, nbytes: int) -> None:
        """Go on at most that many bytes before the end of the live file, and read no part that is there now."""
        parts = parts_of(self.path)
        self._part = parts[-1].number if parts else 0
        self._begin = live_offset(self._log, self._descriptor)
        self._position = max(self._begin, os.fstat(self._descriptor).st_size - nbytes)

    def _new_parts(self) -> list[LogPart]:
        return [part for part in parts_of(self.path) if part.number > self._part]

    def _text_of(self, part: LogPart) -> Iterator[bytes]:
        if part.number > self._part + 1:
            self.lost_front = True
        is_read = 0 < part.offset <= self._position
        skipped = self._position - self._begin
        for piece in () if is_read else _decompressed(part.path):
            yield piece[skipped:] if skipped < len(piece) else b""
            skipped = max(0, skipped - len(piece))
        # A log that has ended is written again without its hole: then it is shorter than the hole was.
        begin = part.offset if part.offset <= os.fstat(self._descriptor).st_size else 0
        self._part, self._begin, self._position = part.number, begin, self._position if is_read else begin

    def _read_live(self) -> bytes:
        with io_step("read", self._log):
            return os.pread(self._descriptor, CHUNK, self._position)


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last lines of a log's live file, as a terminal would show them at the end.

    Of a line that was written over, as those of a progress bar are, the last state is taken; colours are left out.
    """
    with LogReader(log) as reader:
        reader.skip_to_last(LEFT_IN_PLACE)
        text = b"".join(reader.read()).decode(errors="replace")
    lines = [_shown(line) for line in text.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line][-count:]


_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|\x08+|[\x00\x07]")
_LONGEST_LINE = 500


def _shown(line: str) -> str:
    written = [state for state in line.split("\r") if state.strip()]
    return _CONTROL_SEQUENCE.sub("", written[-1] if written else "").rstrip()[:_LONGEST_LINE]


def _decompressed(part: Path) -> Iterator[bytes]:
    """Yield a part's text, in pieces; a part that was removed while it was read, or is damaged, ends early."""
    decompressor = zlib.decompressobj(GZIP)
    with suppress(FileNotFoundError, zlib.error), part.open("rb") as file:
        while compressed := file.read(CHUNK):
            while compressed:
                yield decompressor.decompress(compressed, CHUNK)
                compressed = decompressor.unconsumed_tail
        yield decompressor.flush()
