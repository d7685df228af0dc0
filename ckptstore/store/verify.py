"""Compares disk and manifest in both directions, and every payload with its digest; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.formats import payload
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, Problem
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import Layout

Progress = Callable[[int], object]
# Tries, and seconds between them, before a payload without a row counts as an orphan.
_TRIES = 4
_BETWEEN_TRIES_S = 0.05


def verify(
    layout: Layout, manifest: Manifest, *, deep: bool = True, progress: Progress | None = None
) -> list[Problem]:
    """Return all problems of a store; an empty list if it is intact.

    A checkpoint that was found missing or damaged before stays a problem until a repair has recorded the loss.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        deep: Read and digest every payload; False compares names and sizes only.
        progress: Called with the number of bytes that were read, or skipped, since the last call.

    Raises:
        StorageError: A directory cannot be read, which does not mean that anything is missing.
    """
    problems = [
        Problem(kind="manifest", detail=detail, path=layout.manifest)
        for detail in manifest.integrity_problems()
    ]
    if problems:
        # Its rows cannot be trusted, and reading them may fail.
        return problems
    on_disk = set(layout.payload_names())
    acknowledged = manifest.events.acknowledged_losses()
    for checkpoint in manifest.checkpoints.iterate(states=None):
        on_disk.discard(checkpoint.path.name)
        if checkpoint.state != "deleting":
            problems += _check(manifest, checkpoint, acknowledged, deep=deep, progress=progress)
    problems += _orphans(layout, manifest, on_disk)
    return problems


def unacknowledged(manifest: Manifest) -> list[Checkpoint]:
    """Return the checkpoints marked as missing or damaged whose loss no repair has recorded yet."""
    lost = (*manifest.checkpoints.in_state("missing"), *manifest.checkpoints.in_state("damaged"))
    acknowledged = manifest.events.acknowledged_losses() if lost else set()
    return [checkpoint for checkpoint in lost if checkpoint.version not in acknowledged]


def _check(
    manifest: Manifest,
    checkpoint: Checkpoint,
    acknowledged: set[int],
    *,
    deep: bool,
    progress: Progress | None,
) -> list[Problem]:
    def skipped() -> list[Problem]:
        if progress is not None:
            progress(checkpoint.nbytes)
        return []

    def problem(kind: str, detail: str) -> list[Problem]:
        skipped()
        return [Problem(kind=kind, detail=detail, version=checkpoint.version, path=checkpoint.path)]

    try:
        size = checkpoint.path.stat().st_size
    except FileNotFoundError:
        now = manifest.checkpoints.get(checkpoint.version)
        is_removed = now is None or now.state == "deleting"  # by a writer's retention, since it was listed
        if is_removed or (checkpoint.state != "complete" and checkpoint.version in acknowledged):
            return skipped()
        if checkpoint.state == "damaged":
            return problem("damaged", "the payload was found damaged and put aside")
        return problem("missing", "the payload is not there")
    except OSError as error:
        raise StorageError(operation="stat", path=checkpoint.path, error=error) from error
    if size != checkpoint.nbytes:
        return problem("size", f"the payload has {size:,} bytes instead of {checkpoint.nbytes:,}")
    if not deep:
        marked = f"marked as {checkpoint.state}; only reading it would show whether it is whole"
        return skipped() if checkpoint.state == "complete" else problem("found", marked)
    try:
        found = digest_file(checkpoint.path, progress)
    except StorageError as error:
        detail = f"the payload cannot be read, which does not mean that it is damaged: {error.__cause__}"
        return [Problem(kind="unreadable", detail=detail, version=checkpoint.version, path=checkpoint.path)]
    if found == checkpoint.digest:
        if checkpoint.state == "complete":
            return []
        detail = f"marked as {checkpoint.state}, and whole; the next opening for writing marks it complete"
        return [Problem(kind="found", detail=detail, version=checkpoint.version, path=checkpoint.path)]
    detail = f"the payload's digest is {found} instead of {checkpoint.digest}"
    kind, where = _locate(checkpoint)
    return [Problem(kind=kind, detail=detail + where, version=checkpoint.version, path=checkpoint.path)]


def _locate(checkpoint: Checkpoint) -> tuple[str, str]:
    """Return which part of a damaged payload differs, by the digests inside it, as far as it can still be read."""
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
    except StorageError as error:
        return "digest", f"; then it could not be read again: {error.__cause__}"
    return "digest", f"; {differing[0]}" if differing else "; no variable differs"


def _orphans(layout: Layout, manifest: Manifest, names: set[str]) -> list[Problem]:
    # A writer may have committed the row after the directory was listed and before the rows were read.
    for _ in range(_TRIES):
        known = (
            {file.partition("/")[2] for file in manifest.checkpoints.files_by_version().values()}
            if names
            else set()
        )
        names = {name for name in names - known if (layout.checkpoints / name).exists()}
        if not names:
            return []
        # The rename and the row of a living writer are milliseconds apart.
        time.sleep(_BETWEEN_TRIES_S)
    return [
        Problem(
            kind="orphan",
            detail="a payload without a manifest row; the next opening for writing adopts it",
            path=layout.checkpoints / name,
        )
        for name in sorted(names)
    ]
