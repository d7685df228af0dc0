"""Exports one checkpoint: as a Keras file, as safetensors, or as a folder with a model card.

The new file is written in a hidden folder beside its final path, checked against the digest on the way, synced, and
only then given its name, which must be unused: a crash leaves nothing there, or the complete file, and may leave the
hidden folder, which the next export to that path removes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal

from ckptstore.errors import InvalidArgumentError, MissingPackageError
from ckptstore.formats import payload
from ckptstore.formats.registry import all_formats, by_file_name, by_name
from ckptstore.formats.safetensors import bytes_of, header_of
from ckptstore.printable import printable_json
from ckptstore.records import Checkpoint, Format
from ckptstore.storage.durable_writer import DurableWriter, Written
from ckptstore.storage.files import fsync_directory, make_directory, rename_to_new
from ckptstore.storage.layout import absolute, require_outside
from ckptstore.storage.output_files import already_exists, move_into_place, workspace, write_new
from ckptstore.storage.payloads.at import payload_of
from ckptstore.transfer.model_card import card_of

Progress = Callable[[int], object]
ExportFormat = Format | Literal["safetensors", "folder"]
_SAFETENSORS = ".safetensors"

_OPTIMIZER = ("optimizer/", "optimizer_weights/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """Result of an export.

    Attributes:
        version: The checkpoint's version.
        path: The new file or folder, absolute.
        format: The name of a payload format, ``"safetensors"`` or ``"folder"``.
        nbytes: Size of the file in bytes; of a folder, of the payload in it.
        digest: ``"xxh3_128:<32 hex digits>"`` of the same file.
    """

    version: int
    path: Path
    format: ExportFormat
    nbytes: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "version": self.version,
            "path": str(self.path),
            "format": self.format,
            "nbytes": self.nbytes,
            "digest": self.digest,
        }


def export(
    root: Path, checkpoint: Checkpoint, path: str | os.PathLike[str], progress: Progress | None = None
) -> Exported:
    """Export a checkpoint; see `ckptstore.CheckpointStore.export`.

    Args:
        root: The store's directory.
        checkpoint: The checkpoint.
        path: The file or folder to make.
        progress: Called with numbers of bytes as the payload is read; their sum is its size.
    """
    format = format_of(path, checkpoint)
    target = require_outside(root, absolute(path), "path")
    if os.path.lexists(target):
        raise already_exists(target)
    with workspace(target) as room:
        beside = room / target.name
        if format == "folder":
            written = _write_folder(checkpoint, beside, progress)
            rename_to_new(beside, target)
            fsync_directory(target.parent)
        else:
            written = _write(checkpoint, beside, format, progress)
            move_into_place(beside, target)
    return Exported(
        version=checkpoint.version, path=target, format=format, nbytes=written.nbytes, digest=written.digest
    )


def format_of(path: str | os.PathLike[str], checkpoint: Checkpoint) -> ExportFormat:
    """Return the format that a path asks for.

    Raises:
        InvalidArgumentError: This checkpoint cannot become that.
    """
    name = os.fspath(path)
    suffixes = _suffixes()
    suffix = next(filter(name.endswith, suffixes), None)
    found = None if suffix is None else suffixes[suffix]
    if found is None and (name.endswith(os.sep) or not Path(name).suffix):
        return "folder"
    possible: tuple[ExportFormat, ...] = (*by_name(checkpoint.format).exports_as, "safetensors")
    if found in possible:
        return found
    offered = ", ".join(suffix for suffix, format in suffixes.items() if format in possible)
    what = f"extension {Path(name).suffix!r} is none" if suffix is None else f"{_noun(suffix)} is nothing"
    raise InvalidArgumentError(
        argument="path",
        value=name,
        reason=f"{what} that version {checkpoint.version} (format {checkpoint.format}) can become",
        hint=f"it can become: {offered}, or a folder, with / at its end",
    )


def _suffixes() -> dict[str, ExportFormat]:
    """Return the format of each suffix, a longer one first."""
    known: dict[str, ExportFormat] = {format.suffix: format.name for format in all_formats()}
    known[_SAFETENSORS] = "safetensors"
    return dict(sorted(known.items(), key=lambda entry: -entry[0].count(".")))


def _noun(suffix: str) -> str:
    """Return the name of a file with a suffix, for messages."""
    found = by_file_name(suffix)
    return f"a {suffix} file" if found is None else found.noun


def _write(checkpoint: Checkpoint, target: Path, format: ExportFormat, progress: Progress | None) -> Written:
    if format == "safetensors":
        return _write_safetensors(checkpoint, target, progress)
    if format == "folder":
        raise ValueError(format)
    writes = by_name(checkpoint.format)
    with payload_of(checkpoint).open() as stored:

        def copy(writer: DurableWriter) -> None:
            writes.export(
                stored,
                format,
                writer,
                nbytes=checkpoint.nbytes,
                digest=checkpoint.digest,
                progress=progress,
            )

        return write_new(target, writes.export_nbytes(stored, format), copy)


def _write_safetensors(checkpoint: Checkpoint, target: Path, progress: Progress | None) -> Written:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingPackageError(
            package="safetensors", needed_for="export to .safetensors", extra="safetensors"
        ) from error
    with payload.open_checkpoint(checkpoint, progress) as found:
        layout = {name: at for name, at in found.layout().items() if not name.startswith(_OPTIMIZER)}
        head, order, nbytes = header_of(layout, _metadata(checkpoint))
        variables = found.variables()

        def fill(writer: DurableWriter) -> None:
            writer.write(head)
            for name in order:
                writer.write(bytes_of(variables[name]))

        written = write_new(target, nbytes, fill)
    with safe_open(str(target), framework="numpy") as opened:
        if set(opened.keys()) != set(order):
            raise InvalidArgumentError(
                argument="path", value=str(target), reason="holds other tensors than were written"
            )
    return written


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    document = checkpoint.to_json()
    kept = ("version", "run", "epoch", "batch", "step", "metrics", "digest", "created_at", "tags")
    return {"format": "keras", **{name: _text(document[name]) for name in kept}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- a folder with a card ------------------------------------------------------------------------


def _write_folder(checkpoint: Checkpoint, folder: Path, progress: Progress | None) -> Written:
    make_directory(folder, durable=False)
    with payload_of(checkpoint).open() as stored:
        format = payload.file_format_of(stored, by_name(checkpoint.format))
    file = f"model{by_name(format).suffix}"
    written = _write(checkpoint, folder / file, format, progress)
    texts = {
        "checkpoint.json": printable_json(
            json.dumps(checkpoint.to_json(), indent=2, ensure_ascii=False) + "\n"
        ),
        "README.md": card_of(checkpoint, file, format, written, _versions(folder / file)),
    }
    for name, text in texts.items():
        data = text.encode(errors="backslashreplace")
        write_new(folder / name, len(data), methodcaller("write", data))
    fsync_directory(folder)
    return written


def _versions(path: Path) -> dict[str, str]:
    documents = payload.read_documents(path)
    with suppress(ValueError, KeyError, TypeError):
        return {"Keras": str(json.loads(documents["metadata.json"])["keras_version"])}
    return {}
