"""Commands that move checkpoints between stores and files: export, copy, import."""

from __future__ import annotations

from pathlib import Path

import click

from ckptstore.cli.options import command, open_store, ref_argument, with_json
from ckptstore.cli.output import echo, log, print_json, progress_bar
from ckptstore.printable import printable
from ckptstore.records import Checkpoint
from ckptstore.report import text


@command
@ref_argument()
@click.argument("target", metavar="FILE")
@with_json
def export(store_path: Path, ref: str, target: str, as_json: bool) -> None:
    """Write one checkpoint to a new file or folder.

    FILE ends in .keras, .weights.h5, .h5 or .safetensors (weights only), or names a folder, which gets the
    checkpoint's file and a model card. The digest is checked; an existing file is not overwritten.
    """
    with open_store(store_path) as store:
        checkpoint = store.get(ref)
        with progress_bar("export", checkpoint.nbytes) as progress:
            exported = store.export(checkpoint, target, progress=progress)
    if as_json:
        print_json(exported.to_json())
    else:
        path, size = printable(str(exported.path)), text.size_text(exported.nbytes)
        echo(f"version {exported.version} is in {path} ({exported.format}, {size})")


@command
@ref_argument("refs", "REF...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="Their run in TARGET; the same by default.")
@with_json
def copy(store_path: Path, refs: tuple[str, ...], target: Path, run: str | None, as_json: bool) -> None:
    """Copy checkpoints to another store.

    TARGET is created if there is no store. Digests are checked. A checkpoint that TARGET already has is not
    copied again. A tag that another checkpoint has there stays with that one.
    """
    from ckptstore.store.store import CheckpointStore

    with open_store(store_path) as store:
        chosen = [store.get(ref) for ref in refs]
        total = 2 * sum(checkpoint.nbytes for checkpoint in chosen)
        with CheckpointStore(target) as other, progress_bar("copy", total) as progress:
            copies = [store.copy(checkpoint, other, run=run, progress=progress) for checkpoint in chosen]
    if as_json:
        print_json([copied.to_json() for copied in copies])
        return
    for copied in copies:
        verb = "was there already as" if copied.existing else "is"
        version = f"version {copied.checkpoint.version} of {printable(str(other.path))}"
        echo(f"version {copied.source.version} {verb} {version}")
        for tag in copied.tags_left:
            log(f"the tag {printable(tag)} stays with another checkpoint there")


@command
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--run", metavar="RUN", help="Their run.")
@click.option("--pattern", metavar="NAME", help="Such as '{epoch:02d}-{val_loss:.2f}.keras'.")
@click.option("--epoch", metavar="N", type=click.IntRange(min=0), help="Counts from 0; for one file.")
@click.option(
    "--metric", "metrics", metavar="NAME VALUE", type=(str, float), multiple=True, help="For one file."
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
    """Import files that Keras saved.

    FILE is a .keras, .weights.h5 or .h5 file, or a folder of Keras' BackupAndRestore; it is not changed. STORE
    is created if there is none. All files are checked first, and none is imported if one is damaged. With
    --pattern, epoch, batch and metrics are read from the file names, where epoch and batch count from 1.
    """
    from ckptstore.store.store import CheckpointStore
    from ckptstore.transfer.import_files import check_files, import_file

    with progress_bar("import", 3 * sum(map(_nbytes, paths))) as progress:
        # Before the store is opened, which creates it if there is none.
        found = check_files(
            paths, run=run, pattern=pattern, epoch=epoch, metrics=dict(metrics), progress=progress
        )
        with CheckpointStore(store_path) as store:
            imports = [import_file(store, candidate, progress) for candidate in found]
    if as_json:
        print_json([imported.to_json() for imported in imports])
        return
    for imported in imports:
        if imported.said:
            log(f"{printable(str(imported.path.parent))}: {printable(imported.said)}")
        verb = "was imported before as" if imported.existing else "is"
        echo(f"{printable(imported.path.name)} {verb} {_description(imported.checkpoint)}")


def _description(checkpoint: Checkpoint) -> str:
    metrics = (f"{printable(name)} {text.metric_text(value)}" for name, value in checkpoint.metrics.items())
    return ", ".join([f"version {checkpoint.version}", text.position_text(checkpoint), *metrics])


def _nbytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
