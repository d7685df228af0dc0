"""How commands print: results as text or JSON on stdout, messages and progress on stderr; closed or full streams."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.printable import printable, printable_json, printable_lines
from ckptstore.records import Checkpoint
from ckptstore.report import text as report
from ckptstore.report.table import TextTable
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.system import messages

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from ckptstore.store.store import CheckpointStore

_UNLIMITED_WIDTH = 100_000
# A longer list is printed with one item on each line.
_LONG_LIST = 100
# Work that ends sooner shows no progress bar.
PROGRESS_DELAY_S = 1.0


class OutputClosedError(Exception):
    """The reader of stdout has closed it, as `| head` does."""


def prepare_streams() -> None:
    """Make sure that printing fails neither on characters that the terminal cannot show nor on closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Discard what is still buffered for stdout; the interpreter would report it as an error at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def descriptor_to_show_on(*, as_json: bool) -> int | None:
    """Return the descriptor for another program's output: that of stdout, or of stderr beside a JSON document.

    None where there is no file behind the stream.
    """
    stream = sys.stderr if as_json else sys.stdout
    with suppress(OSError, ValueError):
        stream.flush()
        return stream.fileno()
    return None


def echo(text: str) -> None:
    """Print a command's result on stdout; what could act on a terminal is escaped, but for line breaks.

    Raises:
        OutputClosedError: Its reader has closed it.
    """
    _write(f"{printable_lines(text)}\n")


def _write(text: str) -> None:
    """Write text to stdout as it is, with the colours of our own."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError as error:
        # Click would turn it into exit code 1, but a reader that has read enough is no failure.
        raise OutputClosedError from error


def log(message: str) -> None:
    """Print a message on stderr, with what could act on a terminal escaped; where that cannot be, nothing happens."""
    messages.log(message)


def print_lines(lines: Iterable[str]) -> None:
    """Print any number of lines, in batches."""
    for batch in _batches(iter(lines)):
        echo("\n".join(batch))


def _batches(pieces: Iterator[str], size: int = 1000) -> Iterator[list[str]]:
    """Yield the pieces in lists of at most `size`."""
    while batch := list(islice(pieces, size)):
        yield batch


def print_json(document: object) -> None:
    """Print one JSON document; a long list or an iterator is printed one item a line, in batches.

    What could act on a terminal is escaped, as JSON can: the document means the same.
    """
    for batch in _batches(_json_pieces(document)):
        _write(printable_json("".join(batch)))
    _write("\n")


def _json_pieces(document: object) -> Iterator[str]:
    """Yield the text of a document in pieces."""
    if isinstance(document, dict) and any(isinstance(value, list | Iterator) for value in document.values()):
        yield "{"
        for number, (name, value) in enumerate(document.items()):
            yield f"{',' if number else ''}\n  {json.dumps(name, ensure_ascii=False)}: "
            yield from _value_pieces(value, inside=True)
        yield "\n}"
    else:
        yield from _value_pieces(document)


def _value_pieces(value: object, *, inside: bool = False) -> Iterator[str]:
    """Yield the text of a value in pieces: a long list or iterator one item a line, anything else at once."""
    rest: Iterable[object] = ()
    if isinstance(value, Iterator):
        value, rest = list(islice(value, _LONG_LIST + 1)), value
    if isinstance(value, list) and len(value) > _LONG_LIST:
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        yield "["
        for number, item in enumerate(chain(value, rest)):
            yield f"{',' if number else ''}\n{encode(item)}"
        yield "\n]"
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        yield text.replace("\n", "\n  ") if inside else text


def console_on(stream: IO[str]) -> Console:
    """Return a console as wide as the terminal; for a pipe or file, as wide as its content.

    COLUMNS counts on a terminal only: shells also export it to programs that print into a pipe.
    """
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _UNLIMITED_WIDTH, highlight=False)


def terminal_width(stream: IO[str]) -> int | None:
    """Return the width of the terminal, or None for a pipe or file; COLUMNS counts on a terminal only."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def print_table(table: TextTable | RenderableType) -> None:
    """Print a table on stdout; cells are folded where the terminal is too narrow."""
    width = terminal_width(sys.stdout)
    if isinstance(table, TextTable):
        if width is None or table.width <= width:
            bold = width is not None and os.environ.get("TERM") not in ("dumb", "unknown")
            _write("".join(f"{line}\n" for line in table.lines(bold=bold)))
            return
        table = table.folded()
    print_rendered(table)


def print_rendered(content: RenderableType, *, max_width: int | None = None) -> None:
    """Print on stdout what rich renders, colours included; the content has nothing else that acts on a terminal.

    Args:
        content: The content.
        max_width: Columns to use at most, on a wider terminal.
    """
    console = console_on(sys.stdout)
    if max_width is not None:
        console.width = min(console.width, max_width)
    with console.capture() as capture:
        console.print(content)
    # Rich pads lines to the width; their ends need no padding.
    _write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def print_one(checkpoint: Checkpoint | None, ref: str, store: CheckpointStore, as_json: bool) -> None:
    """Print one checkpoint: its file, then a summary.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    if checkpoint is None:
        raise CheckpointNotFoundError(ref=ref, store=store.path)
    if as_json:
        print_json(checkpoint.to_json())
    else:
        echo(printable(str(checkpoint.path)))
        echo(report.summary(checkpoint))


def print_many(checkpoints: list[Checkpoint], ref: str, store: CheckpointStore, as_json: bool) -> None:
    """Print checkpoints as a table, in their order.

    Raises:
        CheckpointNotFoundError: There are none.
    """
    if not checkpoints:
        raise CheckpointNotFoundError(ref=ref, store=store.path)
    if as_json:
        print_json([checkpoint.to_json() for checkpoint in checkpoints])
        return
    print_fitted(*report.checkpoint_table(checkpoints, stdout_width()))


def stdout_width() -> int | None:
    """Return the width of the terminal that results are printed on, or None for a pipe or file."""
    return terminal_width(sys.stdout)


def print_fitted(table: TextTable, left_out: Sequence[str]) -> None:
    """Print a table that was made to fit the terminal; logs which columns there was no room for."""
    print_table(table)
    if left_out:
        log(f"no room for: {', '.join(left_out)} (--json has all)")


@contextmanager
def progress_bar(title: str, nbytes: int) -> Iterator[Callable[[int], object] | None]:
    """Yield a function that takes numbers of bytes for a progress bar on stderr; None where that is no terminal.

    The bar, with rate and time left, appears once the work has lasted for a second.

    Args:
        title: The name of the work.
        nbytes: The sum of all numbers.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _DelayedBar(title, nbytes)
    try:
        yield bar.advance
    finally:
        bar.close()


class _DelayedBar:
    """A progress bar that appears only when the work takes longer than `PROGRESS_DELAY_S`."""

    def __init__(self, title: str, nbytes: int) -> None:
        self._title, self._nbytes = title, nbytes
        self._done = 0
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def advance(self, nbytes: int) -> None:
        """Count bytes as done, and show it."""
        self._done += nbytes
        if self._progress is None and time.monotonic() - self._began >= PROGRESS_DELAY_S:
            self._progress = _new_progress()
            self._task = self._progress.add_task(self._title, total=self._nbytes)
            self._progress.start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._progress is not None:
            self._progress.stop()


def _new_progress() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console_on(sys.stderr), transient=True)


def payload_bytes(root: Path) -> int:
    """Return the size of all payloads of a store in bytes, for a progress bar; 0 where none will be shown."""
    if not sys.stderr.isatty():
        return 0
    payloads = payloads_at(Layout(root))
    return sum(payloads.nbytes(name) or 0 for name in payloads.names())
