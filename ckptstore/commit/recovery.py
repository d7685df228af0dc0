"""Makes disk and manifest agree when a store is opened for writing, whatever ended the last writer.

Runs under the store's lock; every step may be repeated, so that the next opening repairs a crash here. It compares
names; the bytes of a payload are read only if it has no row, of which a crash leaves at most one for each writer, or if
it is in its place though its row is marked as damaged.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from ckptstore.commit.orphans import adopt
from ckptstore.commit.quarantine import quarantine_stray
from ckptstore.commit.retention.deletion import finish_marked
from ckptstore.errors import CorruptManifestError, InvalidArgumentError, StorageError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Published, State
from ckptstore.storage.integrity import digest_matches
from ckptstore.storage.layout import Layout, published_path, require_outside
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import PayloadStore
from ckptstore.storage.payloads.names import (
    leading_version,
    parse_payload_name,
    payload_of_file,
    payload_suffix,
)
from ckptstore.storage.publish import remove_leftover
from ckptstore.system import messages


def reconcile(layout: Layout, manifest: Manifest) -> None:
    """Finish or undo what a dead writer left; the caller holds the store's lock.

    Raises:
        StorageError: The disk cannot be read, which does not mean that files are missing; or a step failed.
    """
    payloads = payloads_at(layout)
    payloads.sweep()
    finish_marked(payloads, manifest, nullcontext)
    present = set(payloads.names())
    complete, missing, damaged = (_names(manifest, state) for state in ("complete", "missing", "damaged"))
    _mark_missing(payloads, manifest, complete - present)
    if not present.isdisjoint(missing) or not present.isdisjoint(damaged):
        _recheck_lost(layout, manifest)
    # A list may be older than a removal.
    for name in sorted(filter(payloads.exists, present - complete - missing - damaged)):
        _adopt(layout, manifest, name)
    _skip_quarantined_versions(layout, manifest)
    finish_publishing(layout, manifest)


def _skip_quarantined_versions(layout: Layout, manifest: Manifest) -> None:
    """Number new versions after those in quarantine, which an older manifest that was put back does not know."""
    highest = max(map(leading_version, payloads_at(layout).quarantined()), default=0)
    if highest >= manifest.next_version:
        manifest.raise_next_version(highest + 1)


def _adopt(layout: Layout, manifest: Manifest, name: str) -> None:
    """Adopt an orphan; one that cannot be read stays where it is, since it was never reported as saved."""
    try:
        adopt(layout, manifest, name)
    except StorageError as error:
        if error.operation != "read" or error.path.name != name:
            raise
        messages.warn(f"a payload that has no row cannot be read, and is left alone: {error}")


def _names(manifest: Manifest, state: State) -> set[str]:
    return set(map(payload_of_file, manifest.checkpoints.files(state)))


def mark_missing(layout: Layout, manifest: Manifest) -> int:
    """Mark the rows whose payload is not in its place, and return how many; the caller holds the store's lock."""
    payloads = payloads_at(layout)
    return _mark_missing(payloads, manifest, _names(manifest, "complete").difference(payloads.names()))


def _mark_missing(payloads: PayloadStore, manifest: Manifest, names: set[str]) -> int:
    """Mark rows whose payload is missing, and return how many; the rows stay."""
    # A list may be older than a payload.
    versions = sorted(_version(manifest, name) for name in names if not payloads.exists(name))
    if versions:
        manifest.checkpoints.set_state(versions, "missing", event="missing")
    return len(versions)


def _version(manifest: Manifest, name: str) -> int:
    try:
        return parse_payload_name(name)[0]
    except ValueError as error:
        raise CorruptManifestError(
            path=manifest.path, reason=f"it lists {name!r}, which is not the name of a payload"
        ) from error


def _recheck_lost(layout: Layout, manifest: Manifest) -> None:
    """Unmark payloads that are back and intact; quarantine those that are still damaged and in their place."""
    back: list[int] = []
    for checkpoint in (*manifest.checkpoints.in_state("missing"), *manifest.checkpoints.in_state("damaged")):
        if digest_matches(checkpoint):
            back.append(checkpoint.version)
        elif checkpoint.state == "damaged" and payloads_at(layout).exists(checkpoint.payload):
            # A crash came between the mark and the move, or a wrong file was put there.
            quarantine_stray(layout, manifest, checkpoint.payload, "its row says that it is damaged")
    if back:
        manifest.checkpoints.set_state(back, "complete", event="found")


def finish_publishing(layout: Layout, manifest: Manifest) -> None:
    """Switch published paths that a crash left pending; the user may have removed one that was confirmed.

    The path is the user's, not the store's: if it cannot be switched now, a warning says so, the store opens all the
    same, and the next opening tries again.
    """
    for published in manifest.published.pending():
        target = _publishable(layout, published)
        checkpoint = manifest.checkpoints.get(published.version)
        if target is None or checkpoint is None:
            manifest.published.forget(published.path)
            continue
        try:
            remove_leftover(target)
            if checkpoint.state != "complete":
                manifest.published.forget(published.path)
                continue
            payloads_at(layout).publish(checkpoint.payload, target)
        except StorageError as error:
            messages.warn(f"{target} does not show version {published.version} yet: {error}")
        else:
            manifest.published.confirm(published.path)


def _publishable(layout: Layout, published: Published) -> Path | None:
    """Return the target of a published path, or None if ckptstore would not have published a checkpoint there.

    A manifest from elsewhere must not cause the store's own files, or files that are no models, to be replaced.
    """
    if "\0" in published.path or not payload_suffix(published.path):
        return None
    try:
        return require_outside(layout.root, published_path(layout.root, published.path))
    except InvalidArgumentError:
        return None
