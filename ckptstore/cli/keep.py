"""Commands that decide which checkpoints stay: prune, tag, untag, pin, unpin."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.options import command, one_run, open_store, ref_argument, with_json
from ckptstore.cli.output import echo, log, print_json, print_lines
from ckptstore.printable import printable
from ckptstore.report import text
from ckptstore.storage.layout import find_store

if TYPE_CHECKING:
    from ckptstore.records import Mode
    from ckptstore.retention import Policy
    from ckptstore.store.store import CheckpointStore

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Parse a duration, such as ``"12h"``."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r} is not a duration such as 90m, 12h, 7d or 2w", ctx, param)
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])


@command
@one_run
@click.option("--keep-last", metavar="N", type=click.IntRange(min=1), help="The newest N.")
@click.option(
    "--keep-best", metavar="METRIC N", type=(str, click.IntRange(min=1)), multiple=True,
    help="The N best by a metric; may be repeated.",
)  # fmt: skip
@click.option(
    "--mode", "modes", metavar="METRIC min|max", type=(str, click.Choice(["min", "max"])), multiple=True,
    help="Which is better; not needed for common metrics.",
)  # fmt: skip
@click.option("--keep-every-epochs", metavar="N", type=click.IntRange(min=1), help="One in every N epochs.")
@click.option(
    "--keep-every-steps", metavar="N", type=click.IntRange(min=1), help="One in every N train batches."
)
@click.option("--keep-every-hours", metavar="H", type=float, help="One in every H hours.")
@click.option(
    "--keep-within",
    metavar="TIME",
    callback=_duration,
    help="Those saved within 12h, 7d ... before the newest.",
)
@click.option("--keep-tagged", is_flag=True, help="Those with a tag.")
@click.option(
    "--max-bytes",
    metavar="SIZE",
    help="Of these, as many as fit into 20GB, say; the oldest are removed first.",
)
@click.option(
    "--dry-run", is_flag=True, help="Remove nothing; show what would be removed, what stays and why."
)
@with_json
def prune(
    store_path: Path,
    *,
    run: str | None,
    keep_last: int | None,
    keep_best: tuple[tuple[str, int], ...],
    modes: tuple[tuple[str, Mode], ...],
    keep_every_epochs: int | None,
    keep_every_steps: int | None,
    keep_every_hours: float | None,
    keep_within: timedelta | None,
    keep_tagged: bool,
    max_bytes: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the checkpoints that no --keep option keeps.

    Each run is pruned by itself. These always stay: the best of each metric that a callback monitors, the
    newest two, the newest two that can be resumed from, the one that the run was last resumed from, the
    pinned, and those that a path shows.
    """
    from ckptstore import retention

    mode_of = dict(modes)
    rules = [
        keep_last and retention.keep_last(keep_last),
        *(retention.keep_best(metric, n, mode_of.get(metric)) for metric, n in keep_best),
        keep_every_epochs and retention.keep_every(epochs=keep_every_epochs),
        keep_every_steps and retention.keep_every(steps=keep_every_steps),
        None if keep_every_hours is None else retention.keep_every(hours=keep_every_hours),
        keep_within and retention.keep_within(keep_within),
        retention.keep_tagged() if keep_tagged else None,
    ]
    policy = _combined([rule for rule in rules if isinstance(rule, retention.Policy)], max_bytes)
    with open_store(store_path, run) if dry_run else _writable(store_path) as store:
        pruned = store.prune(policy, run=run, dry_run=dry_run)
    if as_json:
        print_json(pruned.documents())
        return
    if dry_run and (pruned.removed or pruned.kept):
        print_lines(text.pruned_lines(pruned))
    removed = "would remove" if dry_run else "removed"
    size = text.size_text(pruned.nbytes)
    echo(f"{removed} {len(pruned.removed)} checkpoints, {size}; {len(pruned.kept)} stay")


def _combined(rules: list[Policy], size: str | None) -> Policy:
    """Return the policy of the options: keep what any of the rules keeps, as far as it fits into the size.

    Raises:
        click.UsageError: There are no options.
    """
    from ckptstore.retention import max_bytes

    if not rules and size is None:
        raise click.UsageError(
            "name what to keep: --keep-last, --keep-best, --keep-every-epochs, --max-bytes ..."
        )
    if not rules:
        assert size is not None
        return max_bytes(size)
    policy = rules[0]
    for rule in rules[1:]:
        policy = policy | rule
    return policy if size is None else policy & max_bytes(size)


def _writable(path: Path) -> CheckpointStore:
    from ckptstore.store.store import CheckpointStore

    return CheckpointStore(find_store(path))


@command
@ref_argument()
@click.argument("name")
@with_json
def tag(store_path: Path, ref: str, name: str, as_json: bool) -> None:
    """Give a checkpoint a name, which moves if another one has it.

    The name can then be used as a REF. The checkpoint that had it before is reported on stderr, and recorded
    in the store.
    """
    with _writable(store_path) as store:
        before = store.tags().get(name)
        store.tag(ref, name)
        checkpoint = store.get(name)
    if before is not None and before != checkpoint.version:
        log(f"{printable(name)} was version {before} before")
    _print(checkpoint.to_json(), f"version {checkpoint.version} is {printable(name)}", as_json)


@command
@click.argument("name")
@with_json
def untag(store_path: Path, name: str, as_json: bool) -> None:
    """Remove a name; the checkpoint stays."""
    with _writable(store_path) as store:
        version = store.untag(name)
        checkpoint = store.get(version)
    _print(checkpoint.to_json(), f"version {version} is no longer {printable(name)}", as_json)


@command
@ref_argument()
@with_json
def pin(store_path: Path, ref: str, as_json: bool) -> None:
    """Keep a checkpoint, whatever the retention policy."""
    _set_pinned(store_path, ref, True, as_json)


@command
@ref_argument()
@with_json
def unpin(store_path: Path, ref: str, as_json: bool) -> None:
    """Let the retention policy decide about a checkpoint again."""
    _set_pinned(store_path, ref, False, as_json)


def _set_pinned(store_path: Path, ref: str, pinned: bool, as_json: bool) -> None:
    with _writable(store_path) as store:
        version = store.get(ref).version
        store.pin(version, pinned)
        checkpoint = store.get(version)
    _print(checkpoint.to_json(), f"version {version} is {'pinned' if pinned else 'not pinned'}", as_json)


def _print(document: object, line: str, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        echo(line)
