"""The command that writes a page about runs."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.cli.options import command, open_store, with_json
from ckptstore.cli.output import print_json, say, tell
from ckptstore.cli.plot import made_line, of_some_runs, pictures_of, title_of
from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.report import text as texts
from ckptstore.storage.layout import absolute, require_outside

if TYPE_CHECKING:
    from ckptstore.report.html import RunReport
    from ckptstore.report.plot import RunPicture
    from ckptstore.store.store import CheckpointStore

_EVENTS = 201
_DOCUMENTS = ("config.json", "metadata.json")


@command
@click.argument("file", type=click.Path(path_type=Path))
@of_some_runs
@with_json
def report(store_path: Path, file: Path, *, runs: tuple[str, ...], overwrite: bool, as_json: bool) -> None:
    """Write a page about runs, one HTML file.

    Picture, best, checkpoints, layers and configuration, what saving cost, and what happened; it needs nothing else,
    and loads nothing. Needs matplotlib: pip install 'ckptstore[plot]'.
    """
    from ckptstore.report.html import page
    from ckptstore.report.plot import draw
    from ckptstore.storage.output_files import write_file

    if file.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"{texts.printable(str(file))}: does not end in .html")
    with open_store(store_path) as store:
        target = require_outside(store.path, absolute(file), "FILE")
        pictures = pictures_of(store, runs)
        image, _ = draw(pictures, title_of(store, pictures), "png")
        told = [_told(store, picture) for picture in pictures]
        text = page(title_of(store, pictures), datetime.now(UTC), told, image)
    written = write_file(target, text.encode(errors="backslashreplace"), overwrite=overwrite)
    if as_json:
        names = [picture.history.run for picture in pictures]
        print_json({"path": str(target), "nbytes": written.nbytes, "runs": names})
    else:
        tell(made_line(target, len(pictures), written.nbytes))


def _told(store: CheckpointStore, picture: RunPicture) -> RunReport:
    from ckptstore.formats.payload import read_documents, read_layout
    from ckptstore.report.html import RunReport

    layout, configuration = {}, {}
    newest = next(reversed(picture.checkpoints), None)
    if newest is not None:
        try:
            layout = read_layout(newest.path)
            configuration = _parsed(read_documents(newest.path))
        except (CorruptPayloadError, StorageError) as error:
            say(f"no configuration of run {picture.history.run}: {texts.printable(error.message)}")
    events = store.events(run=picture.history.run, limit=_EVENTS)
    return RunReport(picture=picture, events=events, layout=layout, configuration=configuration)


def _parsed(documents: dict[str, bytes]) -> dict[str, Any]:
    found = {}
    for name in _DOCUMENTS:
        with suppress(KeyError, ValueError, RecursionError):
            found[name] = json.loads(documents[name])
    return found
