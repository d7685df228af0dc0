"""The `ckptstore` command: each command parses, makes one call of the store, and prints what came back."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from ckptstore import __version__, report
from ckptstore.errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    CorruptError,
    CorruptManifestError,
    InvalidArgumentError,
    LockedError,
    NotFoundError,
    RunNotFoundError,
    SchemaError,
    SchemaTooOldError,
)
from ckptstore.layout import Layout, find_store
from ckptstore.records import Checkpoint, Mode, Problem

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ckptstore.store import CheckpointStore

PROBLEMS_FOUND = 5
# The first class that an error belongs to gives the exit code.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (NotFoundError, 3),
    (LockedError, 4),
    (CorruptError, PROBLEMS_FOUND),
    (SchemaError, 6),
    (InvalidArgumentError, 2),
    (click.UsageError, 2),
    (Exception, 1),
)
_EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 locked by another process, 5 problems found, "
    "6 schema version."
)
_INTERRUPTED = 130
_ANY_WIDTH = 100_000


class _ReaderLeftError(Exception):
    """Nobody reads what is printed any more, as behind `| head`."""


def exit_code(error: Exception) -> int:
    """Return the exit code that stands for an error.

    Example:
        >>> exit_code(RunNotFoundError(run="night", store=Path("models"))), exit_code(OSError())
        (3, 1)
    """
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        arguments: What stands behind the program's name; None for the process' own.
    """
    _prepare_streams()
    try:
        code: object = commands.main(
            args=None if arguments is None else list(arguments), prog_name="ckptstore", standalone_mode=False
        )
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return exit_code(error)
    except CheckpointStoreError as error:
        _say(f"ckptstore: {report.printable(str(error))}")
        return exit_code(error)
    except (BrokenPipeError, _ReaderLeftError):
        _abandon_stdout()
        return 0
    except OSError as error:
        _say(f"ckptstore: {error}")
        _abandon_stdout()
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Let printing fail neither on characters that the terminal cannot show nor on closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter would complain of it at its end."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


# --- what the commands share -------------------------------------------------------------------


def _command(function: Callable[..., Any]) -> click.Command:
    """Make a command with a STORE in front, and the exit codes in its help."""
    with_store = click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))(function)
    return commands.command(name=function.__name__.replace("_", "-"), epilog=_EPILOG)(with_store)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_run = click.option("--run", metavar="RUN", help="Look at this run only.")


def _open(path: Path, run: str | None = None) -> CheckpointStore:
    """Open a store for reading; `run` must be one that it has."""
    from ckptstore.store import CheckpointStore

    store = CheckpointStore(find_store(path), read_only=True)
    if run is not None and run not in store.runs():
        known = store.runs()
        store.close()
        raise RunNotFoundError(run=run, store=store.path, known=known)
    return store


def _print_json(document: object) -> None:
    _tell(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _tell(text: str) -> None:
    try:
        print(text)
    except BrokenPipeError as error:
        # Click would turn it into exit code 1; that somebody has read enough is no failure.
        raise _ReaderLeftError from error


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _console(stream: IO[str]) -> Console:
    """Return a console as wide as the terminal, or, into a pipe or file, as wide as it takes.

    COLUMNS counts on a terminal only: shells export it to programs that print into a pipe, too.
    """
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else _ANY_WIDTH, highlight=False)


def _print(what: RenderableType, console: Console) -> None:
    with console.capture() as capture:
        console.print(what)
    # Cells are padded to their column; the end of a line needs none.
    _tell("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _print_one(checkpoint: Checkpoint | None, ref: str, store: CheckpointStore, as_json: bool) -> None:
    if checkpoint is None:
        raise CheckpointNotFoundError(ref=ref, store=store.path)
    if as_json:
        _print_json(checkpoint.to_json())
    else:
        _tell(report.printable(str(checkpoint.path)))
        _tell(report.summary(checkpoint))


# --- the commands ------------------------------------------------------------------------------


@click.group(
    epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="ckptstore", message="%(prog)s %(version)s")
def commands() -> None:
    """Ask a store of checkpoints, also while training writes to it.

    STORE is a store's directory, or the folder that ckptstore.ModelCheckpoint writes to. Positions count
    from 0: epoch 0 is the first, and batch "end" is an epoch's end, after validation.
    """


@_command
@_run
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Show the newest N only.")
@_as_json
def ls(store_path: Path, run: str | None, limit: int | None, as_json: bool) -> None:
    """List the checkpoints, oldest first.

    A terminal that is too narrow gets fewer columns; --json has all.
    """
    with _open(store_path, run) as store:
        checkpoints = store.checkpoints(run, states=None)[-(limit or 0) :]
    if as_json:
        _print_json([checkpoint.to_json() for checkpoint in checkpoints])
        return
    if not checkpoints:
        _say(f"{store.path}: no checkpoints yet")
        return
    console = _console(sys.stdout)
    table, left_out = report.checkpoint_table(checkpoints, console.width)
    _print(table, console)
    if left_out:
        _say(f"no room for: {', '.join(left_out)} (--json has all)")


@_command
@click.argument("ref")
@_as_json
def show(store_path: Path, ref: str, as_json: bool) -> None:
    """Show everything that is known of one checkpoint.

    REF is a version, "latest", "best:METRIC", "resume-point", or a tag.
    """
    with _open(store_path) as store:
        checkpoint = store.get(ref)
    if as_json:
        _print_json(checkpoint.to_json())
    else:
        _print(report.details_table(checkpoint), _console(sys.stdout))


@_command
@click.option("--metric", metavar="NAME", required=True, help="As in Keras' logs: val_loss, accuracy ...")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which is better; known for usual names.")
@_run
@_as_json
def best(store_path: Path, metric: str, mode: Mode | None, run: str | None, as_json: bool) -> None:
    """Print the checkpoint with the best value of a metric.

    Its file on the first line, what it is on the second. A value that is NaN is never best; of equals the
    earlier checkpoint is.
    """
    with _open(store_path, run) as store:
        _print_one(store.best(metric, mode=mode, run=run), f"best:{metric}", store, as_json)


@_command
@_run
@_as_json
def latest(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint.

    Its file on the first line, what it is on the second.
    """
    with _open(store_path, run) as store:
        _print_one(store.latest(run), "latest", store, as_json)


@_command
@_run
@_as_json
def resume_point(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint that a run can go on from.

    Its file on the first line, what it is on the second.
    """
    with _open(store_path, run) as store:
        _print_one(store.resume_point(run), "resume-point", store, as_json)


@_command
@click.option("--shallow", is_flag=True, help="Compare names and sizes only; read no payload.")
@_as_json
def verify(store_path: Path, shallow: bool, as_json: bool) -> int:
    """Compare manifest, files and digests; changes nothing.

    Reads every payload in full, unless --shallow is given. Exits with 5 when there is a problem; then
    `ckptstore repair` acts on it.
    """
    with _open(store_path) as store, _progress("verify", store.path) as progress:
        problems = store.verify(deep=not shallow, progress=progress)
        counted = report.counted(store.checkpoints(states=None)) if _is_readable(problems) else Counter()
    if as_json:
        _print_json(report.findings(problems, counted, ok=not problems))
    elif problems:
        _print(report.problem_table(problems), _console(sys.stdout))
        _say(f"to mend it, run: ckptstore repair {shlex.quote(str(store_path))}")
    else:
        _tell(report.all_whole(counted))
    return PROBLEMS_FOUND if problems else 0


def _is_readable(problems: list[Problem]) -> bool:
    return not any(problem.kind == "manifest" for problem in problems)


@_command
@_as_json
def repair(store_path: Path, as_json: bool) -> None:
    """Verify everything, and mend what can be; deletes nothing.

    Payloads without a row are taken in; damaged ones are moved to the store's quarantine and marked, missing ones
    marked; one that lies in quarantine and is whole is put back. A manifest that was lost or cannot be read is made
    again from the payloads, and the old one kept. Losses are listed and noted; they end it with 0, too.
    """
    from ckptstore.store import CheckpointStore

    root = find_store(store_path)
    with _progress("repair", root) as progress:
        try:
            unlisted = _orphans(root)
            with CheckpointStore(root) as store:
                problems = [*_taken_in(unlisted), *store.repair(progress=progress)]
        except CorruptManifestError:
            problems = CheckpointStore.rebuild(root, progress=progress)
    with _open(root) as store:
        counted = report.counted(store.checkpoints(states=None))
    if as_json:
        _print_json(report.findings(problems, counted, ok=True))
    elif problems:
        _print(report.problem_table(problems), _console(sys.stdout))
    else:
        _tell(f"{report.all_whole(counted)}; nothing to repair")


def _orphans(root: Path) -> list[Problem]:
    """Return the payloads without a row, which opening the store for writing is about to deal with."""
    try:
        with _open(root) as store:
            return [problem for problem in store.verify(deep=False) if problem.kind == "orphan"]
    except SchemaTooOldError:
        return []  # the opening brings it up to date first


def _taken_in(orphans: list[Problem]) -> list[Problem]:
    return [
        replace(problem, action="adopted" if problem.path.exists() else "put aside in quarantine")
        for problem in orphans
        if problem.path is not None
    ]


@contextmanager
def _progress(what: str, root: Path) -> Iterator[Callable[[int], object] | None]:
    """Give what takes numbers of bytes for a progress bar on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    layout = Layout(root)
    total = sum((layout.checkpoints / name).stat().st_size for name in layout.payload_names())
    with Progress(*columns, console=_console(sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@_command
@_as_json
def upgrade(store_path: Path, as_json: bool) -> None:
    """Bring a store to the schema that this ckptstore writes.

    A backup of the manifest is made before. Opening a store for writing does the same by itself.
    """
    from ckptstore.schema import schema_of
    from ckptstore.store import CheckpointStore

    root = find_store(store_path)
    before = schema_of(Layout(root).manifest)
    with CheckpointStore(root) as store:
        after = store.schema_version
    if as_json:
        _print_json({"from": before, "to": after, "upgraded": before != after})
    elif before == after:
        _tell(f"{root}: already has schema {after}")
    else:
        _tell(f"{root}: upgraded from schema {before or 'none'} to {after}")


if __name__ == "__main__":
    sys.exit(main())
