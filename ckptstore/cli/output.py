"""How commands print: text and JSON on stdout, messages and progress on stderr; streams that are closed or full."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.records import Checkpoint
from ckptstore.report import text as report
from ckptstore.report.table import TextTable
from ckptstore.storage.layout import Layout

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from ckptstore.store.store import CheckpointStore

_ANY_WIDTH = 100_000
# A list of more is printed as one line for each.
_MANY = 100
# What is over sooner shows no progress.
PATIENCE_S = 1.0


class ReaderLeftError(Exception):
    """Nobody reads what is printed any more, as behind `| head`."""


def prepare_streams() -> None:
    """Let printing fail neither on characters that the terminal cannot show nor on closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def abandon_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter would complain of it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def print_json(document: object) -> None:
    """Print one JSON document; of a list, or iterator, of very many each on a line of its own, some at a time."""
    for pieces in _batched(_json_of(document)):
        tell("".join(pieces), end="")
    tell("")


def print_lines(lines: Iterable[str]) -> None:
    """Print very many lines, some at a time."""
    for some in _batched(iter(lines)):
        tell("\n".join(some))


def _batched(pieces: Iterator[str], most: int = 1000) -> Iterator[list[str]]:
    """Yield lists of some pieces each."""
    while some := list(islice(pieces, most)):
        yield some


def _json_of(document: object) -> Iterator[str]:
    """Yield the text of a document, in pieces."""
    if isinstance(document, dict) and any(isinstance(one, list | Iterator) for one in document.values()):
        yield "{"
        for number, (name, value) in enumerate(document.items()):
            yield f"{',' if number else ''}\n  {json.dumps(name, ensure_ascii=False)}: "
            yield from _value_of(value, inside=True)
        yield "\n}"
    else:
        yield from _value_of(document)


def _value_of(value: object, *, inside: bool = False) -> Iterator[str]:
    """Yield the text of a list or iterator of very many, each on a line of its own, or of anything else."""
    rest: Iterable[object] = ()
    if isinstance(value, Iterator):
        value, rest = list(islice(value, _MANY + 1)), value
    if isinstance(value, list) and len(value) > _MANY:
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
        yield "["
        for number, one in enumerate(chain(value, rest)):
            yield f"{',' if number else ''}\n{encode(one)}"
        yield "\n]"
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        yield text.replace("\n", "\n  ") if inside else text


def tell(text: str, end: str = "\n") -> None:
    """Print what was asked for.

    Raises:
        ReaderLeftError: Nobody reads it.
    """
    try:
        print(text, end=end)
    except BrokenPipeError as error:
        # Click would turn it into exit code 1; that somebody has read enough is no failure.
        raise ReaderLeftError from error


def say(message: str) -> None:
    """Print a message, on stderr."""
    print(message, file=sys.stderr)


def console_on(stream: IO[str]) -> Console:
    """Return a console as wide as the terminal, or, into a pipe or file, as wide as it takes.

    COLUMNS counts on a terminal only: shells export it to programs that print into a pipe, too.
    """
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _ANY_WIDTH, highlight=False)


def width_of(stream: IO[str]) -> int | None:
    """Return the width of the terminal, or None into a pipe or file; COLUMNS counts on a terminal only."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def print_table(what: TextTable | RenderableType) -> None:
    """Print a table on stdout."""
    width = width_of(sys.stdout)
    if isinstance(what, TextTable):
        if width is None or what.width <= width:
            bold = width is not None and os.environ.get("TERM") not in ("dumb", "unknown")
            tell("\n".join(what.lines(bold=bold)))
            return
        what = what.folded()
    console = console_on(sys.stdout)
    with console.capture() as capture:
        console.print(what)
    # Cells are padded to their column; the end of a line needs none.
    tell("\n".join(line.rstrip() for line in capture.get().splitlines()))


def print_one(checkpoint: Checkpoint | None, ref: str, store: CheckpointStore, as_json: bool) -> None:
    """Print one checkpoint: its file, and what it is.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    if checkpoint is None:
        raise CheckpointNotFoundError(ref=ref, store=store.path)
    if as_json:
        print_json(checkpoint.to_json())
    else:
        tell(report.printable(str(checkpoint.path)))
        tell(report.summary(checkpoint))


def print_many(checkpoints: list[Checkpoint], ref: str, store: CheckpointStore, as_json: bool) -> None:
    """Print some checkpoints as a table, in their order.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    if not checkpoints:
        raise CheckpointNotFoundError(ref=ref, store=store.path)
    if as_json:
        print_json([checkpoint.to_json() for checkpoint in checkpoints])
        return
    table, left_out = report.checkpoint_table(checkpoints, width_of(sys.stdout))
    print_table(table)
    if left_out:
        say(f"no room for: {', '.join(left_out)} (--json has all)")


@contextmanager
def progress_bar(what: str, nbytes: int) -> Iterator[Callable[[int], object] | None]:
    """Give what takes numbers of bytes for a progress bar on stderr; None where that is no terminal.

    The bar, with rate and time left, comes once the work has lasted for a second.

    Args:
        what: What is done.
        nbytes: The sum of all numbers.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _Bar(what, nbytes)
    try:
        yield bar.advance
    finally:
        bar.close()


class _Bar:
    """A progress bar that begins when something lasts."""

    def __init__(self, what: str, nbytes: int) -> None:
        self._what, self._nbytes = what, nbytes
        self._done = 0
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def advance(self, nbytes: int) -> None:
        """Count what is done, and show it."""
        self._done += nbytes
        if self._progress is None and time.monotonic() - self._began >= PATIENCE_S:
            self._progress = _shown()
            self._task = self._progress.add_task(self._what, total=self._nbytes)
            self._progress.start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


def _shown() -> Progress:
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
    """Return the size of all payloads in a store, in bytes, for a bar; 0 where there will be none."""
    if not sys.stderr.isatty():
        return 0
    layout = Layout(root)
    return sum((layout.checkpoints / name).stat().st_size for name in layout.payload_names())
