"""Makes disk and manifest agree again when a store is opened for writing, whatever the last writer died of.

Runs under the store's lock; every step may be repeated, so that a crash here is mended by the next opening. It compares
names; the bytes of a payload are read only when it has no row, which a crash leaves at most one of for each writer,
or when it lies in its place though its row says that it is damaged.
"""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path

from ckptstore.commit.orphans import take_in
from ckptstore.commit.quarantine import quarantine_stray
from ckptstore.commit.retention.deletion import finish_marked
from ckptstore.errors import CorruptManifestError, InvalidArgumentError, StorageError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import SUFFIXES, Published, State
from ckptstore.storage.integrity import digest_matches
from ckptstore.storage.layout import (
    Layout,
    is_payload_name,
    leading_version,
    parse_payload_name,
    published_path,
    require_outside,
)
from ckptstore.storage.leases import remove_stale_files
from ckptstore.storage.publish import publish, remove_leftover

_FOLDER = "checkpoints/"


def reconcile(layout: Layout, manifest: Manifest) -> None:
    """Finish or undo what a dead writer left; the caller holds the store's lock.

    Raises:
        StorageError: The disk cannot be read (which is not taken for absence), or a step failed.
    """
    remove_stale_files(layout.tmp)
    finish_marked(manifest, nullcontext)
    present = _listed(layout)
    complete, missing, damaged = (_names(manifest, state) for state in ("complete", "missing", "damaged"))
    _mark_missing(manifest, complete - present)
    if not present.isdisjoint(missing) or not present.isdisjoint(damaged):
        _look_again(layout, manifest)
    unlisted = present - complete
    for name in sorted(unlisted - missing - damaged):
        if is_payload_name(name):
            _take_in(layout, manifest, name)
    _never_give_out_again(layout, manifest)
    finish_publishing(layout, manifest)


def _never_give_out_again(layout: Layout, manifest: Manifest) -> None:
    """Count on behind the versions in quarantine: an older manifest that was put back does not know of them."""
    highest = max(map(leading_version, os.listdir(layout.quarantine)), default=0)
    if highest >= manifest.next_version:
        manifest.raise_next_version(highest + 1)


def _take_in(layout: Layout, manifest: Manifest, name: str) -> None:
    """Take in an orphan; one that cannot be read stays where it is, for nobody was told of it."""
    try:
        take_in(layout, manifest, name)
    except StorageError as error:
        if error.operation != "read" or error.path.name != name:
            raise
        warnings.warn(f"a payload that has no row cannot be read, and is left alone: {error}", stacklevel=2)


def _listed(layout: Layout) -> set[str]:
    try:
        return set(os.listdir(layout.checkpoints))
    except OSError as error:
        raise StorageError(operation="list", path=layout.checkpoints, error=error) from error


def _names(manifest: Manifest, state: State) -> set[str]:
    return {file.removeprefix(_FOLDER) for file in manifest.checkpoints.files(state)}


def _mark_missing(manifest: Manifest, gone: set[str]) -> None:
    """Mark rows whose file is gone; the rows stay."""
    if gone:
        versions = sorted(_version(manifest, name) for name in gone)
        manifest.checkpoints.set_state(versions, "missing", event="missing")


def _version(manifest: Manifest, name: str) -> int:
    try:
        return parse_payload_name(name)[0]
    except ValueError as error:
        raise CorruptManifestError(
            path=manifest.path, reason=f"it lists {name!r}, which no payload is called"
        ) from error


def _look_again(layout: Layout, manifest: Manifest) -> None:
    """Unmark what is back and whole; put aside what lies, still damaged, in the place of a damaged one."""
    back: list[int] = []
    for checkpoint in (*manifest.checkpoints.in_state("missing"), *manifest.checkpoints.in_state("damaged")):
        if digest_matches(checkpoint):
            back.append(checkpoint.version)
        elif checkpoint.state == "damaged" and os.path.lexists(checkpoint.path):
            # A crash came between the mark and the move; or somebody put a wrong file there.
            quarantine_stray(layout, manifest, checkpoint.path, "its row says that it is damaged")
    if back:
        manifest.checkpoints.set_state(back, "complete", event="found")


def finish_publishing(layout: Layout, manifest: Manifest) -> None:
    """Switch published paths that a crash left pending; a path that was confirmed is the user's to remove.

    The path is the user's, not the store's: where it cannot be switched now, that is said, and the next opening tries
    again; the store opens all the same.
    """
    for published in manifest.published.pending():
        target = _showable(layout, published)
        checkpoint = manifest.checkpoints.get(published.version)
        if target is None or checkpoint is None:
            manifest.published.forget(published.path)
            continue
        try:
            remove_leftover(target)
            if checkpoint.state != "complete":
                manifest.published.forget(published.path)
                continue
            publish(checkpoint.path, target)
        except StorageError as error:
            warnings.warn(f"{target} does not show version {published.version} yet: {error}", stacklevel=2)
        else:
            manifest.published.confirm(published.path)


def _showable(layout: Layout, published: Published) -> Path | None:
    """Return where a path leads, or None where no writer of ours would have shown a checkpoint.

    A manifest from elsewhere must not make us replace the store's own files, or what is no model.
    """
    if "\0" in published.path or not published.path.endswith(tuple(SUFFIXES.values())):
        return None
    try:
        return require_outside(layout.root, published_path(layout.root, published.path))
    except InvalidArgumentError:
        return None
