"""Compares disk and manifest both ways, and every payload with its digest; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ckptstore.errors import CorruptPayloadError
from ckptstore.files import digest_file
from ckptstore.formats import payload
from ckptstore.layout import Layout
from ckptstore.manifest import Manifest
from ckptstore.records import Checkpoint, Problem

Progress = Callable[[int], object]


def verify(
    layout: Layout, manifest: Manifest, *, deep: bool = True, progress: Progress | None = None
) -> list[Problem]:
    """Return all that is wrong with a store; an empty list when it is whole.

    Args:
        layout: Where the store lies.
        manifest: Its manifest.
        deep: Read and digest every payload; False compares names and sizes only.
        progress: Called with the number of bytes that have been read, or passed over, since the last call.
    """
    problems = [
        Problem(kind="manifest", detail=detail, path=layout.manifest)
        for detail in manifest.integrity_problems()
    ]
    on_disk = set(layout.payload_names())
    for checkpoint in manifest.checkpoints(states=None):
        on_disk.discard(checkpoint.path.name)
        if checkpoint.state != "deleting":
            problems += _check(checkpoint, deep=deep, progress=progress)
    problems += _orphans(layout, manifest, on_disk)
    return problems


def _check(checkpoint: Checkpoint, *, deep: bool, progress: Progress | None) -> list[Problem]:
    def problem(kind: str, detail: str) -> list[Problem]:
        if progress is not None:
            progress(checkpoint.nbytes)
        return [Problem(kind=kind, detail=detail, version=checkpoint.version, path=checkpoint.path)]

    try:
        size = checkpoint.path.stat().st_size
    except FileNotFoundError:
        return problem("missing", "the payload is not there")
    if size != checkpoint.nbytes:
        return problem("size", f"the payload has {size:,} bytes instead of {checkpoint.nbytes:,}")
    if not deep:
        return problem("damaged", "marked as damaged") if checkpoint.state == "damaged" else []
    found = digest_file(checkpoint.path, progress)
    if found == checkpoint.digest:
        return []
    detail = f"the payload's digest is {found} instead of {checkpoint.digest}"
    kind, where = _locate(checkpoint)
    return [
        Problem(kind=kind, detail=detail + where, version=checkpoint.version, path=checkpoint.path),
    ]


def _locate(checkpoint: Checkpoint) -> tuple[str, str]:
    """Say which part of a damaged payload differs, from the digests inside it, as far as it can still be read."""
    try:
        description = payload.read_description(checkpoint.path)
        if (description.get("version"), description.get("run")) != (checkpoint.version, checkpoint.run):
            return (
                "identity",
                f"; it is version {description.get('version')} of run {description.get('run')!r}",
            )
        differing = payload.verify_payload(checkpoint.path)
    except CorruptPayloadError as error:
        return "digest", f"; {error.reason}"
    return "digest", f"; {differing[0]}" if differing else "; no variable differs"


def _orphans(layout: Layout, manifest: Manifest, names: set[str]) -> list[Problem]:
    # A writer may have committed the row between our look at the directory and at the rows.
    known = {Path(file).name for file in manifest.versions_and_files().values()} if names else set()
    return [
        Problem(
            kind="orphan",
            detail="a payload without a manifest row; the next opening for writing takes it in",
            path=layout.checkpoints / name,
        )
        for name in sorted(names - known)
        if (layout.checkpoints / name).exists()
    ]
