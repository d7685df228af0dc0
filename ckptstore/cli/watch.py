"""The command watch: shows the runs of a store as they go on, on a screen, line by line, or as JSON."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from io import UnsupportedOperation
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import FiniteRange, command, one_run, with_json
from ckptstore.cli.output import (
    OutputClosedError,
    echo,
    print_json,
    print_rendered,
    stdout_width,
)
from ckptstore.printable import printable_json

if TYPE_CHECKING:
    from ckptstore.records import Observation
    from ckptstore.store.observer import StoreObserver

_INTERVAL_S = 1.0
_WIDTH_OF_A_FILE = 100


@command
@one_run
@click.option("--once", is_flag=True, help="Show the store as it is now, and end.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=FiniteRange(min=1),
    help="Between two looks; 1 by default. With --json, print a line for each change.",
)
@with_json
def watch(
    store_path: Path, *, run: str | None, once: bool, interval: float | None, as_json: bool
) -> int | None:
    """Watch the runs of a store as they train.

    For each run: its state, progress, time left, metrics with their curves, best and resume point, age of the
    newest checkpoint, cost of saving, and restarts; and the space left on the disk. Begins with the newest run,
    and follows it until another one is chosen. Keys: n and p choose a run, s sorts, ? explains, q quits.

    Without a terminal, prints a line for each change. --json prints one JSON document and ends; with --interval
    a document on a line of its own for each change. A store that does not exist yet is waited for, except with
    --once and --json, which end with 3.

    Reads only, and never holds anything that a training waits for, but for the milliseconds of a query.
    """
    from ckptstore.cli.watch_screen import can_show, show
    from ckptstore.store.observer import StoreObserver

    interval_s = _INTERVAL_S if interval is None else interval
    if not as_json and not once and can_show(sys.stdout):
        return show(StoreObserver(store_path, run=run), interval_s)
    with closing(StoreObserver(store_path, run=run)) as observer:
        if once or (as_json and interval is None):
            _print_once(observer, as_json=as_json)
        elif as_json:
            _print_documents(observer, interval_s)
        else:
            _print_changes(observer, interval_s)
    return None


def _print_once(observer: StoreObserver, *, as_json: bool) -> None:
    from ckptstore.report.glyphs import glyphs_for
    from ckptstore.report.watch_lines import watch_document
    from ckptstore.report.watch_view import Choice, watch_view

    observation = observer.read(completely=True)
    if as_json:
        print_json(watch_document(observation))
        return
    width = stdout_width() or _WIDTH_OF_A_FILE
    glyphs = glyphs_for(sys.stdout.encoding)
    print_rendered(watch_view(observation, Choice(), width=width, height=None, glyphs=glyphs))


def _print_documents(observer: StoreObserver, interval_s: float) -> None:
    """Print a JSON document, on one line, whenever something has changed."""
    from ckptstore.report.watch_lines import watch_document, without_clocks

    before = None
    for observation in _looks(observer, interval_s):
        document = watch_document(observation)
        if without_clocks(document) != before:
            before = without_clocks(document)
            echo(printable_json(json.dumps(document, ensure_ascii=False, allow_nan=False)))
            sys.stdout.flush()


def _print_changes(observer: StoreObserver, interval_s: float) -> None:
    """Print a line for each run whose state, epoch, newest checkpoint or attempt has changed."""
    from ckptstore.report.watch_lines import ChangeLines

    changes = ChangeLines()
    for observation in _looks(observer, interval_s):
        for line in changes.lines(observation):
            echo(line)
        sys.stdout.flush()


def _looks(observer: StoreObserver, interval_s: float) -> Iterator[Observation]:
    """Look again and again; ends by a signal, or with the reader of stdout.

    Raises:
        OutputClosedError: Nobody reads stdout any more.
    """
    output = select.poll()
    with suppress(UnsupportedOperation):  # there is no file behind it
        output.register(sys.stdout.fileno(), 0)  # an error is reported whatever is asked for
    while True:
        yield observer.look()
        if output.poll(interval_s * 1000):
            raise OutputClosedError
