"""The commands that bring checkpoints out of a store, over to another, and in."""

from __future__ import annotations

from pathlib import Path

import click

from ckptstore import report
from ckptstore.cli_output import print_json, progress_bar, tell
from ckptstore.cli_parsing import command, open_store, with_json


@command
@click.argument("ref")
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
        size = report.size_text(made.nbytes)
        tell(f"version {made.version} is in {report.printable(str(made.path))} ({made.format}, {size})")
