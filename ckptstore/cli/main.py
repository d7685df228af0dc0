"""The `ckptstore` command, and what it asks: a command parses, makes one call of the store, prints what came back."""

from __future__ import annotations

import gc
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import EPILOG, command, of_one_run, open_store, ref_argument, with_json
from ckptstore.cli.output import (
    ReaderLeftError,
    abandon_stdout,
    payload_bytes,
    prepare_streams,
    print_json,
    print_many,
    print_one,
    print_table,
    progress_bar,
    say,
    tell,
)
from ckptstore.errors import (
    CheckpointStoreError,
    CorruptError,
    CorruptPayloadError,
    InvalidArgumentError,
    LockedError,
    NotFoundError,
    SchemaError,
    StorageError,
)
from ckptstore.records import Checkpoint, Mode, Problem
from ckptstore.report import text
from ckptstore.version import __version__

if TYPE_CHECKING:
    from ckptstore.report.variables import Layout

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
_INTERRUPTED = 130
# Where each command lies.
_HOMES = {
    **dict.fromkeys(("ls", "show", "best", "latest", "resume-point"), "main"),
    **dict.fromkeys(("history", "compare", "diff"), "runs"),
    "verify": "main",
    **dict.fromkeys(("prune", "tag", "untag", "pin", "unpin"), "keep"),
    **dict.fromkeys(("export", "copy", "import"), "transfer"),
    "plot": "plot",
    "report": "report",
    **dict.fromkeys(("repair", "upgrade"), "maintain"),
    "run": "run",
    "guide": "guide",
}


def exit_code(error: Exception) -> int:
    """Return the exit code that stands for an error.

    Example:
        >>> exit_code(LockedError("busy")), exit_code(OSError())
        (4, 1)
    """
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        arguments: What stands behind the program's name; None for the process' own.
    """
    prepare_streams()
    if arguments is None:
        # Most of what a command makes lives to its end: looking for garbage among it took an eighth of the start.
        gc.set_threshold(50_000)
    try:
        code: object = commands.main(
            args=None if arguments is None else list(arguments), prog_name="ckptstore", standalone_mode=False
        )
        sys.stdout.flush()
    except click.UsageError as error:
        error.show()
        return exit_code(error)
    except CheckpointStoreError as error:
        say(f"ckptstore: {text.printable(str(error))}")
        return exit_code(error)
    except (BrokenPipeError, ReaderLeftError):
        abandon_stdout()
        return 0
    except OSError as error:
        say(f"ckptstore: {error}")
        abandon_stdout()
        return exit_code(error)
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


# --- the commands ------------------------------------------------------------------------------


class _Commands(click.Group):
    """Commands, of which those of other modules are imported when one is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names, in the order of the help."""
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        home = _HOMES.get(cmd_name, "main")
        if home != "main" and cmd_name not in self.commands:
            found = getattr(
                import_module(f"ckptstore.cli.{home}"), f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
            )
            self.add_command(found)
        return super().get_command(ctx, cmd_name)


@click.group(
    cls=_Commands,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ckptstore", message="%(prog)s %(version)s")
def commands() -> None:
    """Ask a store of checkpoints, also while training writes to it.

    STORE is a store's directory, or the folder that ckptstore.ModelCheckpoint writes to. Positions count
    from 0: epoch 0 is the first, and batch "end" is an epoch's end, after validation.
    """


@command
@of_one_run
@click.option("--where", metavar="CONDITION", help="Such as: 'val_loss < 0.3 and epoch >= 5'.")
@click.option("--order-by", metavar="NAME", help="A field or metric; -NAME for the greatest first.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="The newest N; the first, if ordered.")
@with_json
def ls(
    store_path: Path,
    *,
    run: str | None,
    where: str | None,
    order_by: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the checkpoints, oldest first.

    A terminal that is too narrow gets fewer columns; --json has all. A CONDITION compares fields (epoch, step,
    created_at, tags ...) and metrics; metric["a name"] is a metric of any name.
    """
    with open_store(store_path, run) as store:
        newest = limit is not None and order_by is None
        order = "-version" if newest else order_by
        checkpoints = store.checkpoints(run, states=None, where=where, order_by=order, limit=limit)
    if newest:
        checkpoints.reverse()
    if not checkpoints and as_json:
        print_json([])
    elif not checkpoints:
        say(f"{store.path}: no checkpoints {'yet' if where is None else 'that meet the condition'}")
    else:
        print_many(checkpoints, "ls", store, as_json)


@command
@ref_argument()
@with_json
def show(store_path: Path, ref: str, as_json: bool) -> None:
    """Show all that is known of one checkpoint, its layers too.

    REF is a version, "latest", "best:METRIC", "resume-point", or a tag.
    """
    with open_store(store_path) as store:
        checkpoint = store.get(ref)
    from ckptstore.report.variables import layer_table

    layout = _layout(checkpoint)
    if as_json:
        variables = [
            {"path": path, "shape": shape, "dtype": dtype} for path, (shape, dtype) in layout.items()
        ]
        print_json({**checkpoint.to_json(), "variables": variables})
        return
    print_table(text.details_table(checkpoint))
    if layout:
        tell("")
        print_table(layer_table(layout))


def _layout(checkpoint: Checkpoint) -> Layout:
    """Return what a checkpoint's payload holds; nothing, and why, where it cannot be told."""
    from ckptstore.formats.payload import read_layout

    try:
        return read_layout(checkpoint.path)
    except (CorruptPayloadError, StorageError) as error:
        say(f"no table of layers: {text.printable(error.message)}")
        return {}


@command
@click.option("--metric", metavar="NAME", required=True, help="As in Keras' logs: val_loss, accuracy ...")
@click.option("--mode", type=click.Choice(["min", "max"]), help="Which is better; known for usual names.")
@click.option("-k", "count", metavar="K", type=click.IntRange(min=1), help="List the K best, best first.")
@of_one_run
@with_json
def best(
    store_path: Path, *, metric: str, mode: Mode | None, count: int | None, run: str | None, as_json: bool
) -> None:
    """Print the checkpoint with the best value of a metric.

    Its file on the first line, what it is on the second; with -k a list. A value that is NaN is never best; of
    equals the earlier checkpoint is.
    """
    with open_store(store_path, run) as store:
        if count is not None:
            print_many(store.best(metric, mode=mode, run=run, k=count), f"best:{metric}", store, as_json)
            return
        print_one(store.best(metric, mode=mode, run=run), f"best:{metric}", store, as_json)


@command
@of_one_run
@with_json
def latest(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint.

    Its file on the first line, what it is on the second.
    """
    with open_store(store_path, run) as store:
        print_one(store.latest(run), "latest", store, as_json)


@command
@of_one_run
@with_json
def resume_point(store_path: Path, run: str | None, as_json: bool) -> None:
    """Print the newest checkpoint that a run can go on from.

    Its file on the first line, what it is on the second.
    """
    with open_store(store_path, run) as store:
        print_one(store.resume_point(run), "resume-point", store, as_json)


@command
@click.option("--shallow", is_flag=True, help="Compare names and sizes only; read no payload.")
@with_json
def verify(store_path: Path, shallow: bool, as_json: bool) -> int:
    """Compare manifest, files and digests; changes nothing.

    Reads every payload in full, unless --shallow is given. Exits with 5 when there is a problem; then
    `ckptstore repair` acts on it.
    """
    with open_store(store_path) as store, progress_bar("verify", payload_bytes(store.path)) as progress:
        problems = store.verify(deep=not shallow, progress=progress)
        counted = text.counted(store.iterate(states=None)) if _is_readable(problems) else Counter()
    if as_json:
        print_json(text.findings(problems, counted, ok=not problems))
    elif problems:
        print_table(text.problem_table(problems))
        say(f"to mend it, run: ckptstore repair {shlex.quote(str(store_path))}")
    else:
        tell(text.all_whole(counted))
    return PROBLEMS_FOUND if problems else 0


def _is_readable(problems: list[Problem]) -> bool:
    return not any(problem.kind == "manifest" for problem in problems)


for _one in (ls, show, best, latest, resume_point, verify):
    commands.add_command(_one)
