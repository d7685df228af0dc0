"""Compares disk and manifest in both directions, and every payload with its digest; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.formats.registry import by_name
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, Problem
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payload_of, payloads_at, payloads_of
from ckptstore.storage.payloads.names import file_of_payload, payload_of_file
from ckptstore.storage.payloads.stored import StoredPayload

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
    on_disk = set(payloads_at(layout).names())
    acknowledged = manifest.events.acknowledged_losses()
    for checkpoint in manifest.checkpoints.iterate(states=None):
        on_disk.discard(checkpoint.payload)
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

    size = payloads_of(checkpoint).nbytes(checkpoint.payload)
    if size is None:
        now = manifest.checkpoints.get(checkpoint.version)
        is_removed = now is None or now.state == "deleting"  # by a writer's retention, since it was listed
        if is_removed or (checkpoint.state != "complete" and checkpoint.version in acknowledged):
            return skipped()
        if checkpoint.state == "damaged":
            return problem("damaged", "the payload was found damaged and put aside")
        return problem("missing", "the payload is not there")
    if size != checkpoint.nbytes:
        return problem("size", f"the payload has {size:,} bytes instead of {checkpoint.nbytes:,}")
    if not deep:
        marked = f"marked as {checkpoint.state}; only reading it would show whether it is whole"
        return skipped() if checkpoint.state == "complete" else problem("found", marked)
    kind, detail = _check_bytes(checkpoint, progress)
    if not kind:
        return []
    return [Problem(kind=kind, detail=detail, version=checkpoint.version, path=checkpoint.path)]


def _check_bytes(checkpoint: Checkpoint, progress: Progress | None) -> tuple[str, str]:
    """Return kind and detail of the problem that reading a payload shows; kind "" where there is none."""
    try:
        with payload_of(checkpoint).open() as stored:
            found = stored.digest(progress)
            if found != checkpoint.digest:
                kind, where = _locate(checkpoint, stored)
                return kind, f"the payload's digest is {found} instead of {checkpoint.digest}{where}"
    except StorageError as error:
        return (
            "unreadable",
            f"the payload cannot be read, which does not mean that it is damaged: {error.__cause__}",
        )
    if checkpoint.state == "complete":
        return "", ""
    return "found", f"marked as {checkpoint.state}, and whole; the next opening for writing marks it complete"


def _locate(checkpoint: Checkpoint, stored: StoredPayload) -> tuple[str, str]:
    """Return which part of a damaged payload differs, by the digests inside it, as far as it can still be read."""
    try:
        with by_name(checkpoint.format).open(stored) as payload:
            description = payload.description()
            if (description.get("version"), description.get("run")) != (checkpoint.version, checkpoint.run):
                return (
                    "identity",
                    f"; it is version {description.get('version')} of run {description.get('run')!r}",
                )
            differing = payload.format.verify(payload)
    except CorruptPayloadError as error:
        return "digest", f"; {error.reason}"
    except StorageError as error:
        return "digest", f"; then it could not be read again: {error.__cause__}"
    return "digest", f"; {differing[0]}" if differing else "; no variable differs"


def _orphans(layout: Layout, manifest: Manifest, names: set[str]) -> list[Problem]:
    # A writer may have committed the row after the directory was listed and before the rows were read.
    for _ in range(_TRIES):
        known = (
            set(map(payload_of_file, manifest.checkpoints.files_by_version().values())) if names else set()
        )
        names = set(filter(payloads_at(layout).exists, names - known))
        if not names:
            return []
        # The rename and the row of a living writer are milliseconds apart.
        time.sleep(_BETWEEN_TRIES_S)
    return [
        Problem(
            kind="orphan",
            detail="a payload without a manifest row; the next opening for writing adopts it",
            path=layout.root / file_of_payload(name),
        )
        for name in sorted(names)
    ]
