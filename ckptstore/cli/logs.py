"""The command logs: prints the output of a training that `ckptstore run` has started, and follows it."""

from __future__ import annotations

import codecs
import re
import sys
import time
from pathlib import Path

import click

from ckptstore.cli.options import command, one_run, with_json
from ckptstore.cli.output import OutputClosedError, log, print_json, print_table
from ckptstore.errors import InvalidArgumentError, LogNotFoundError
from ckptstore.printable import printable, printable_lines
from ckptstore.report import text
from ckptstore.report.table import TextTable, column
from ckptstore.storage.files import is_same_file
from ckptstore.storage.layout import absolute, find_store
from ckptstore.storage.log_reader import LogReader
from ckptstore.supervisor.log_index import KeptLog, kept_logs
from ckptstore.supervisor.supervisor_lock import has_supervisor

_LOOK_EVERY_S, _LOOKS_FOR_NEWER = 0.5, 4
# Of what acts on a terminal, a progress bar may go back in its line, clear it, and change colours.
_HARMLESS = re.compile(r"(\x1b\[[0-9;]*[mK]|[\r\b\t])")
_BEGUN_SEQUENCE = re.compile(r"\x1b(\[[0-9;]*)?$")


@command
@one_run
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Default: the newest.")
@click.option("--follow", "-f", is_flag=True, help="Print what is written from now on, restarts included.")
@click.option("--list", "listed", is_flag=True, help="List the logs that there are.")
@with_json
def logs(  # noqa: PLR0917
    store_path: Path, run: str | None, attempt: int | None, follow: bool, listed: bool, as_json: bool
) -> None:
    """Print the output of a training under `run`.

    Without options, the log that was written last: of the newest attempt, or of a start that reached no fit.
    Compressed parts and the file that is being written are read as one text. --follow ends when no command of
    a supervisor runs any more. --json lists the logs, as --list does.
    """
    found = kept_logs(store_path, run)
    if not found:
        find_store(store_path)  # no store is another error than no log
    if as_json:
        print_json([kept.to_json() for kept in found])
        return
    if listed:
        print_table(_table(found))
        return
    chosen = _choose(found, store_path, run, attempt)
    try:
        _print(chosen, store_path, run, follow=follow, moves_on=attempt is None)
    except BrokenPipeError as error:
        raise OutputClosedError from error


def _choose(found: list[KeptLog], path: Path, run: str | None, attempt: int | None) -> KeptLog:
    if attempt is not None:
        found = [kept for kept in found if kept.attempt == attempt]
        runs = sorted({str(kept.run) for kept in found})
        if len(runs) > 1:
            reason = f"must be given; runs with an attempt {attempt}: {', '.join(runs)}"
            raise InvalidArgumentError(argument="--run", value=None, reason=reason)
    if not found:
        raise LogNotFoundError(store=absolute(path), run=run, attempt=attempt)
    return found[-1]


def _table(found: list[KeptLog]) -> TextTable:
    return TextTable(
        [
            column("run", [printable(kept.run or "-") for kept in found], left=True),
            column("attempt", ["-" if kept.attempt is None else str(kept.attempt) for kept in found]),
            column("size", [text.size_text(kept.nbytes) for kept in found]),
            column("last written", [text.time_text(kept.written_at) for kept in found]),
            column("file", [printable(str(kept.path)) for kept in found], left=True),
        ]
    )


def _print(chosen: KeptLog, path: Path, run: str | None, *, follow: bool, moves_on: bool) -> None:
    write = _Writer()
    while True:
        with LogReader(chosen.path) as reader:
            for piece in reader.read():
                write.pass_on(piece)
            if reader.lost_front:
                log("the beginning of this log was removed, to keep within the limit of ckptstore run")
            newer = _follow(reader, write, path, run if moves_on else chosen.run, chosen) if follow else None
        if newer is None or not moves_on:
            return
        chosen = newer
        log(f"==> {chosen.title}")


def _follow(
    reader: LogReader, write: _Writer, path: Path, run: str | None, chosen: KeptLog
) -> KeptLog | None:
    """Pass on what is written to a log; returns the log that is written after it, or None when no command runs."""
    looks = 0
    while True:
        is_over = not has_supervisor(path)
        silent = True
        for piece in reader.read():
            write.pass_on(piece)
            silent = False
        looks = looks + 1 if silent else 0
        if is_over or looks == _LOOKS_FOR_NEWER:
            looks = 0
            newest = kept_logs(path, run)[-1:]
            is_other = newest and not is_same_file(newest[0].path, reader.path)
            if is_other and newest[0].written_at > chosen.written_at:
                return newest[0]
        if is_over:
            return None
        time.sleep(_LOOK_EVERY_S)


class _Writer:
    """Writes a log to stdout: to a pipe or file as it is, to a terminal without what could act on it in other ways."""

    def __init__(self) -> None:
        self._decode = (
            codecs.getincrementaldecoder("utf-8")("replace").decode if sys.stdout.isatty() else None
        )
        self._begun = ""

    def pass_on(self, piece: bytes) -> None:
        """Write a piece."""
        if self._decode is None:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        shown = self._begun + self._decode(piece)
        begun = _BEGUN_SEQUENCE.search(shown)
        self._begun = "" if begun is None else shown[begun.start() :]
        shown = shown if begun is None else shown[: begun.start()]
        parts = _HARMLESS.split(shown)
        parts[::2] = map(printable_lines, parts[::2])
        sys.stdout.write("".join(parts))
        sys.stdout.flush()
