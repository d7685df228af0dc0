"""The commands that bring checkpoints out of a store, over to another, and in."""

from __future__ import annotations

from pathlib import Path

import click

from ckptstore.cli.options import command, open_store, ref_argument, with_json
from ckptstore.cli.output import print_json, progress_bar, say, tell
from ckptstore.records import Checkpoint
from ckptstore.report import text


@command
@ref_argument()
@click.argument("target", metavar="FILE")
@with_json
def export(store_path: Path, ref: str, target: str, as_json: bool) -> None:
    """Write one checkpoint to a new file or folder.

    FILE ends in .keras, .weights.h5, .h5 or .safetensors (weights alone), or names a folder, which gets the
    checkpoint's file and a model card. The digest is checked on the way; what is there already is not overwritten.
    """
    with open_store(store_path) as store:
        checkpoint = store.get(ref)
        with progress_bar("export", checkpoint.nbytes) as progress:
            made = store.export(checkpoint, target, progress=progress)
    if as_json:
        print_json(made.to_json())
    else:
        size = text.size_text(made.nbytes)
        tell(f"version {made.version} is in {text.printable(str(made.path))} ({made.format}, {size})")


@command
@ref_argument("refs", "REF...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="The run that they belong to there; else the same.")
@with_json
def copy(store_path: Path, refs: tuple[str, ...], target: Path, run: str | None, as_json: bool) -> None:
    """Copy checkpoints to another store.

    TARGET is made if there is none. Digests are checked; what was copied before is found and not copied again. A tag
    that another checkpoint has there stays with that one.
    """
    from ckptstore.store.store import CheckpointStore

    with open_store(store_path) as store:
        chosen = [store.get(ref) for ref in refs]
        total = 2 * sum(checkpoint.nbytes for checkpoint in chosen)
        with CheckpointStore(target) as other, progress_bar("copy", total) as progress:
            made = [store.copy(checkpoint, other, run=run, progress=progress) for checkpoint in chosen]
    if as_json:
        print_json([one.to_json() for one in made])
        return
    for one in made:
        done = "was there already as" if one.existing else "is"
        version = f"version {one.checkpoint.version} of {text.printable(str(other.path))}"
        tell(f"version {one.source.version} {done} {version}")
        for tag in one.tags_left:
            say(f"the tag {text.printable(tag)} stays with another checkpoint there")


@command
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="The run that they belong to.")
@click.option("--pattern", metavar="NAME", help="Such as '{epoch:02d}-{val_loss:.2f}.keras'.")
@click.option("--epoch", metavar="N", type=click.IntRange(min=0), help="From 0; of one file.")
@click.option(
    "--metric", "metrics", metavar="NAME VALUE", type=(str, float), multiple=True, help="Of one file."
)
@with_json
def import_(
    store_path: Path,
    paths: tuple[Path, ...],
    *,
    run: str | None,
    pattern: str | None,
    epoch: int | None,
    metrics: tuple[tuple[str, float], ...],
    as_json: bool,
) -> None:
    """Take in files that Keras saved.

    FILE is a .keras, .weights.h5 or .h5, or a folder of Keras' BackupAndRestore; it stays as it is. STORE is made if
    there is none. All are looked through first, and nothing is taken in when one is damaged. With --pattern epoch,
    batch and metrics are read from the names, where epoch and batch count from 1.
    """
    from ckptstore.store.store import CheckpointStore
    from ckptstore.transfer.import_files import look_through, take

    with progress_bar("import", 3 * sum(map(_nbytes, paths))) as progress:
        # Before the store is opened, which may make it.
        found = look_through(
            paths, run=run, pattern=pattern, epoch=epoch, metrics=dict(metrics), progress=progress
        )
        with CheckpointStore(store_path) as store:
            made = [take(store, candidate, progress) for candidate in found]
    if as_json:
        print_json([one.to_json() for one in made])
        return
    for one in made:
        if one.said:
            say(f"{text.printable(str(one.path.parent))}: {text.printable(one.said)}")
        done = "was imported before as" if one.existing else "is"
        tell(f"{text.printable(one.path.name)} {done} {_became(one.checkpoint)}")


def _became(checkpoint: Checkpoint) -> str:
    metrics = (
        f"{text.printable(name)} {text.metric_text(value)}" for name, value in checkpoint.metrics.items()
    )
    what = f"version {checkpoint.version}, {text.position_text(checkpoint)}"
    return ", ".join([what, *metrics])


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
