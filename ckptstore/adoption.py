"""Takes in payloads that have no row: complete files that a crash left unlisted, or the whole of a lost manifest."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.files import digest_file
from ckptstore.formats import payload
from ckptstore.layout import Layout, parse_payload_name, payload_file
from ckptstore.manifest import Manifest
from ckptstore.names import check_extra, check_metrics, check_position, check_run, check_tag
from ckptstore.quarantine import quarantine_stray
from ckptstore.records import NewCheckpoint


def take_in(layout: Layout, manifest: Manifest, name: str) -> str | None:
    """Give a payload without a row its row, or put it aside; the caller holds the store's lock.

    It is verified byte by byte. A crash leaves it as it was, or listed.

    Args:
        layout: Where the store lies.
        manifest: Its manifest.
        name: The payload's name in `checkpoints`.

    Returns:
        None when it was adopted, else why it was put aside.
    """
    path = layout.checkpoints / name
    try:
        new, description = describe(layout, path)
        if description["store"] != manifest.uuid:
            raise CorruptPayloadError(path=path, reason="it is another store's")
        if manifest.get(new.version) is not None:
            raise CorruptPayloadError(path=path, reason=f"version {new.version} is another's here")
    except CorruptPayloadError as error:
        quarantine_stray(layout, manifest, path, error.reason)
        return error.reason
    manifest.add_checkpoint(new, published_path=_published_path(manifest, description), event="adopted")
    return None


def _published_path(manifest: Manifest, description: dict[str, Any]) -> str | None:
    """Where the orphan was to be shown.

    A path that this manifest never heard of is not believed, and one that shows a later version by now stays.
    """
    path = description.get("published")
    shown = manifest.published_at(path) if isinstance(path, str) else None
    return shown.path if shown is not None and shown.version < description["version"] else None


def describe(layout: Layout, path: Path) -> tuple[NewCheckpoint, dict[str, Any]]:
    """Return the row of a payload from what it says of itself, verified byte by byte, and all that it says.

    Raises:
        CorruptPayloadError: It is damaged, or says that it is another checkpoint than its name does.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    description = payload.read_description(path)
    version, run, format = parse_payload_name(path.name)
    problems = payload.verify_payload(path)
    if problems:
        raise CorruptPayloadError(path=path, reason=problems[0])
    try:
        new = _row_of(description, path)
    except (KeyError, TypeError, ValueError, InvalidArgumentError) as error:
        raise CorruptPayloadError(path=path, reason=f"its description cannot be read: {error!r}") from error
    if (new.version, new.run, new.format) != (version, run, format):
        raise CorruptPayloadError(
            path=path, reason=f"it says that it is version {new.version} of run {new.run!r} ({format})"
        )
    return new, description


def _row_of(description: dict[str, Any], path: Path) -> NewCheckpoint:
    check_position(description["epoch"], description["batch"], description["step"])
    version, run, format = int(description["version"]), check_run(description["run"]), description["format"]
    return NewCheckpoint(
        version=version,
        run=run,
        epoch=description["epoch"],
        batch=description["batch"],
        step=description["step"],
        metrics=check_metrics({name: float(value) for name, value in description["metrics"].items()}),
        file=payload_file(version, run, format),
        nbytes=path.stat().st_size,
        digest=digest_file(path),
        created_at=datetime.fromisoformat(description["created_at"]),
        format=format,
        resumable=bool(description["resumable"]),
        tags=tuple(check_tag(tag) for tag in description["tags"]),
        extra=check_extra(description["extra"]),
    )
