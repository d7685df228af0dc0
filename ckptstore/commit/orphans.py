"""Takes in payloads that have no row: complete files that a crash left unlisted, or the whole of a lost manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.commit.quarantine import quarantine_stray
from ckptstore.errors import CorruptPayloadError
from ckptstore.formats import payload
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import NewCheckpoint
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import Layout, parse_payload_name, payload_file
from ckptstore.validation import check_extra, check_metrics, check_position, check_run, check_tag


@dataclass(frozen=True, slots=True)
class Described:
    """A payload as it describes itself, every part of it checked.

    Attributes:
        new: Its row.
        store: The id of the store that it was written for.
        published: Where it was to be shown, relative to its store, or None.
        attempt: At its run; 1 in payloads that do not say it.
    """

    new: NewCheckpoint
    store: str
    published: str | None
    attempt: int


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
    if is_listed(manifest, name):
        return None
    try:
        found = describe(path)
        if found.store != manifest.uuid:
            raise CorruptPayloadError(path=path, reason="it is another store's")
        if manifest.checkpoints.get(found.new.version) is not None:
            raise CorruptPayloadError(path=path, reason=f"version {found.new.version} is another's here")
    except CorruptPayloadError as error:
        quarantine_stray(layout, manifest, path, error.reason)
        return error.reason
    tags = tuple(tag for tag in found.new.tags if _is_free(manifest, tag, found.new.version))
    new = replace(found.new, tags=tags)
    manifest.attempts.record(new.run, found.attempt, new.version)
    manifest.add_checkpoint(new, published_path=_published_path(manifest, found), event="adopted")
    return None


def _is_free(manifest: Manifest, tag: str, version: int) -> bool:
    """Whether a tag may go to a version that comes late: a later one may have been given it meanwhile."""
    other = manifest.tags.checkpoint(tag)
    return other is None or other.version < version


def is_listed(manifest: Manifest, name: str) -> bool:
    """Look again, now under the lock: its writer may have committed the row since it was seen without one."""
    row = manifest.checkpoints.get(parse_payload_name(name)[0])
    return row is not None and row.path.name == name


def _published_path(manifest: Manifest, found: Described) -> str | None:
    """Where the orphan was to be shown.

    A path that this manifest never heard of is not believed, and one that shows a later version by now stays.
    """
    shown = None if found.published is None else manifest.published.at(found.published)
    return shown.path if shown is not None and shown.version < found.new.version else None


def describe(path: Path, *, name: str | None = None) -> Described:
    """Return what a payload says of itself, after verifying it byte by byte.

    Args:
        path: Where it lies.
        name: The name that it ought to have; None for the one that it has.

    Raises:
        CorruptPayloadError: It is damaged, says that it is another checkpoint than its name does, or says what
            ckptstore would not have written.
        StorageError: It cannot be read, which does not say that it is damaged.
    """
    description = payload.read_description(path)
    version, run, format = parse_payload_name(name or path.name)
    problems = payload.verify_payload(path)
    if problems:
        raise CorruptPayloadError(path=path, reason=problems[0])
    try:
        new = _row_of(description, path)
        found = Described(
            new,
            store=_text(description["store"]),
            published=_path(description.get("published")),
            attempt=_attempt(description.get("attempt", 1)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptPayloadError(path=path, reason=f"its description cannot be read: {error!r}") from error
    if (new.version, new.run, new.format) != (version, run, format):
        raise CorruptPayloadError(
            path=path, reason=f"it says that it is version {new.version} of run {new.run!r} ({format})"
        )
    return found


def _row_of(description: dict[str, Any], path: Path) -> NewCheckpoint:
    check_position(description["epoch"], description["batch"], description["step"])
    run, format = check_run(description["run"]), description["format"]
    version = description["version"]
    if type(version) is not int:
        raise TypeError(f"version is {version!r}")
    created_at = datetime.fromisoformat(_text(description["created_at"]))
    if created_at.tzinfo is None:
        raise ValueError("created_at has no time zone")
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
        created_at=created_at.astimezone(UTC),
        format=format,
        resumable=bool(description["resumable"]),
        tags=tuple(check_tag(tag) for tag in description["tags"]),
        extra=check_extra(description["extra"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _path(value: object) -> str | None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("published holds a NUL")
    return None if value is None else _text(value)


def _attempt(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"attempt is {value!r}")
    return value
