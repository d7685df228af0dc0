"""What commands take: STORE in front, --json, --run; the exit codes in their help; and how they open a store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.errors import RunNotFoundError
from ckptstore.storage.layout import find_store

if TYPE_CHECKING:
    from ckptstore.store.store import CheckpointStore

# How many versions a shell is offered.
_REFS_MOST = 50

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 locked by another process, 5 problems found, "
    "6 schema version."
)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command with a STORE in front, and the exit codes in its help."""
    with_store = click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))(function)
    return click.command(name=function.__name__.rstrip("_").replace("_", "-"), epilog=EPILOG)(with_store)


with_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
of_one_run = click.option("--run", metavar="RUN", help="Look at this run only.")


def open_store(path: Path, run: str | None = None) -> CheckpointStore:
    """Open a store for reading; `run` must be one that it has."""
    from ckptstore.store.store import CheckpointStore

    store = CheckpointStore(find_store(path), read_only=True)
    if run is not None and run not in store.runs():
        known = store.runs()
        store.close()
        raise RunNotFoundError(run=run, store=store.path, known=known)
    return store


def _refs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return refs of the store that stands before, for a shell's completion; never fails."""
    with suppress(Exception), open_store(ctx.params["store_path"]) as store:
        named = [*store.tags(), "latest", "resume-point", *(f"best:{name}" for name in store.metric_names())]
        newest = [str(one.version) for one in store.iterate(order_by="-version", limit=_REFS_MOST)]
        return [ref for ref in (*named, *newest) if ref.startswith(incomplete)]
    return []


def ref_argument(name: str = "ref", metavar: str = "REF", **options: Any) -> Callable[..., Any]:
    """Let a command take a ref, which a shell can complete."""
    return click.argument(name, metavar=metavar, shell_complete=_refs, **options)
