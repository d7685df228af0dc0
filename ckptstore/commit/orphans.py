"""Adopts payloads that have no manifest row: those that a crash left, and all of a lost manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ckptstore.commit.earlier_epochs import read_earlier_epochs
from ckptstore.commit.quarantine import quarantine_stray
from ckptstore.commit.rollbacks import read_rollbacks
from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.registry import by_name
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import NewCheckpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import PayloadRef
from ckptstore.storage.payloads.names import file_of_payload, parse_payload_name, payload_name
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.validation import check_extra, check_metrics, check_position, check_run, check_tag


@dataclass(frozen=True, slots=True)
class Described:
    """The description inside a payload, every part of it checked.

    Attributes:
        new: The manifest row of the payload.
        store: The id of the store that it was written for.
        published: The path that was to show it, relative to its store, or None.
        beginning: Number of the run's beginning that it belongs to; 1 in payloads that do not have it.
        rollbacks: Rollbacks of the run before it was saved.
    """

    new: NewCheckpoint
    store: str
    published: str | None
    beginning: int
    rollbacks: tuple[tuple[int, int], ...] = ()


def adopt(layout: Layout, manifest: Manifest, name: str) -> str | None:
    """Insert the row of a payload that has none, or quarantine the payload; the caller holds the store's lock.

    The payload is verified byte by byte. A crash leaves it as it was, or with its row.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        name: The payload's name.

    Returns:
        None if it was adopted, else the reason for its quarantine.
    """
    if is_listed(manifest, name):
        return None
    found = _adoptable(manifest, PayloadRef(payloads_at(layout), name))
    if isinstance(found, str):
        quarantine_stray(layout, manifest, name, found)
        return found
    tags = tuple(tag for tag in found.new.tags if _is_free(manifest, tag, found.new.version))
    new = replace(found.new, tags=tags)
    manifest.beginnings.record(new.run, found.beginning, new.version)
    manifest.add_checkpoint(new, published_path=_published_path(manifest, found), event="adopted")
    return None


def _adoptable(manifest: Manifest, ref: PayloadRef) -> Described | str:
    """Return the description of a payload that may get a row, or the reason why it may not."""
    try:
        found = describe(ref)
    except CorruptPayloadError as error:
        return error.reason
    if found.store != manifest.uuid:
        return "it is another store's"
    if manifest.checkpoints.get(found.new.version) is not None:
        return f"version {found.new.version} is another's here"
    return found


def _is_free(manifest: Manifest, tag: str, version: int) -> bool:
    """Return True if a tag may go to a version adopted late: a newer one may have been given it meanwhile."""
    other = manifest.tags.checkpoint(tag)
    return other is None or other.version < version


def is_listed(manifest: Manifest, name: str) -> bool:
    """Return True if a payload has a row: its writer may have committed it just before the caller took the lock."""
    row = manifest.checkpoints.get(parse_payload_name(name)[0])
    return row is not None and row.payload == name


def _published_path(manifest: Manifest, found: Described) -> str | None:
    """Return the path that was to show an orphan, or None.

    A path that this manifest does not know is not trusted, and one that shows a newer version stays.
    """
    shown = None if found.published is None else manifest.published.at(found.published)
    return shown.path if shown is not None and shown.version < found.new.version else None


def describe(ref: PayloadRef, *, name: str | None = None) -> Described:
    """Return the description inside a payload, after verifying the payload byte by byte.

    Args:
        ref: The payload.
        name: The name that it should have; None for the one that it has.

    Raises:
        CorruptPayloadError: It is damaged, describes another checkpoint than its name does, or holds values that
            ckptstore does not write.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    version, run, format = parse_payload_name(name or ref.name)
    with ref.open() as stored:
        with by_name(format).open(stored) as found:
            description = found.description()
            problems = found.format.verify(found)
        if problems:
            raise stored.corrupt(problems[0])
        try:
            new = _row_of(description, stored)
            described = Described(
                new,
                store=_text(description["store"]),
                published=_path(description.get("published")),
                beginning=_beginning(description),
                rollbacks=read_rollbacks(description),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise stored.corrupt(f"its description cannot be read: {error!r}") from error
        if (new.version, new.run, new.format) != (version, run, format):
            raise stored.corrupt(f"it says that it is version {new.version} of run {new.run!r} ({format})")
        return described


def _row_of(description: dict[str, Any], stored: StoredPayload) -> NewCheckpoint:
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
        file=file_of_payload(payload_name(version, run, format)),
        nbytes=stored.nbytes,
        digest=stored.digest(),
        created_at=created_at.astimezone(UTC),
        format=format,
        resumable=bool(description["resumable"]),
        tags=tuple(check_tag(tag) for tag in description["tags"]),
        extra=check_extra(description["extra"]),
        earlier_epochs=read_earlier_epochs(description),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _path(value: object) -> str | None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError("published holds a NUL")
    return None if value is None else _text(value)


def _beginning(description: dict[str, Any]) -> int:
    value = description.get("beginning", description.get("attempt", 1))  # earlier payloads call it attempt
    if type(value) is not int or value < 1:
        raise ValueError(f"beginning is {value!r}")
    return value
