"""Arguments and options that commands share: STORE, REF, --json, --run; and how a command opens its store."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.cli.exit_codes import EPILOG
from ckptstore.errors import RunNotFoundError
from ckptstore.storage.layout import find_store

if TYPE_CHECKING:
    from ckptstore.store.store import CheckpointStore

# Versions offered by shell completion.
_MAX_COMPLETED_VERSIONS = 50


def command(function: Callable[..., Any]) -> click.Command:
    """Make a function a command whose first argument is STORE, with the exit codes in its help."""
    with_store = click.argument("store_path", metavar="STORE", type=click.Path(path_type=Path))(function)
    return click.command(name=function.__name__.rstrip("_").replace("_", "-"), epilog=EPILOG)(with_store)


class FiniteRange(click.FloatRange):
    """A number within limits; refuses nan and infinity, which are floats too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail as a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


with_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
with_overwrite = click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
one_run = click.option("--run", metavar="RUN", help="Only this run.")
several_runs = click.option(
    "--run", "runs", metavar="RUN", multiple=True, help="May be repeated; all runs by default."
)


def open_store(path: Path, run: str | None = None) -> CheckpointStore:
    """Open a store for reading.

    Raises:
        RunNotFoundError: It has no run of this name.
    """
    from ckptstore.store.store import CheckpointStore

    store = CheckpointStore(find_store(path), read_only=True)
    if run is not None and run not in store.run_names():
        known = store.run_names()
        store.close()
        raise RunNotFoundError(run=run, store=store.path, known=known)
    return store


def _complete_ref(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the refs of the store on the command line that begin with a text; none where anything fails."""
    with suppress(Exception), open_store(ctx.params["store_path"]) as store:
        named = [*store.tags(), "latest", "resume-point", *(f"best:{name}" for name in store.metric_names())]
        newest = store.iterate(order_by="-version", limit=_MAX_COMPLETED_VERSIONS)
        versions = [str(checkpoint.version) for checkpoint in newest]
        return [ref for ref in (*named, *versions) if ref.startswith(incomplete)]
    return []


def ref_argument(name: str = "ref", metavar: str = "REF", **options: Any) -> Callable[..., Any]:
    """Return a decorator that adds a ref as an argument, which a shell can complete."""
    return click.argument(name, metavar=metavar, shell_complete=_complete_ref, **options)
