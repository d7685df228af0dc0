"""Copies a checkpoint into another store, which saves it as any other, by the same commit protocol.

The payload is written again, since it names the store that it belongs to; its variables are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.payload import decoded
from ckptstore.records import Checkpoint, FinishedEpoch, Mode
from ckptstore.storage.payloads.at import payload_of
from ckptstore.transfer.existing import find_existing
from ckptstore.transfer.target import TransferTarget
from ckptstore.validation import check_run

COPIED = "copied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A checkpoint that was copied.

    Attributes:
        source: The checkpoint in its own store.
        checkpoint: The copy in the other store.
        existing: True if an earlier copy was there already; nothing was written then.
        tags_left: Tags of the source that another checkpoint has in the other store, and keeps.
    """

    source: Checkpoint
    checkpoint: Checkpoint
    existing: bool
    tags_left: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "from": self.source.to_json(),
            "to": self.checkpoint.to_json(),
            "existing": self.existing,
            "tags_left": list(self.tags_left),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySource:
    """The store that a checkpoint is copied from, as far as the copy needs it.

    Attributes:
        uuid: The id of the store.
        monitors: The metrics that the checkpoint's run watches, each with its better direction.
        earlier_epochs: Epochs that ended before the checkpoint, and whose metrics come along.
    """

    uuid: str
    monitors: Mapping[str, Mode]
    earlier_epochs: Sequence[FinishedEpoch] = ()


def copy(
    checkpoint: Checkpoint,
    source: CopySource,
    target: TransferTarget,
    *,
    run: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Copied:
    """Copy a checkpoint; see `ckptstore.CheckpointStore.copy`.

    Args:
        checkpoint: The checkpoint.
        source: Its store.
        target: The store to copy it to.
        run: The run of the copy; None for the same.
        progress: Called with numbers of bytes as they are read.
    """
    if source.uuid == target.uuid:
        raise InvalidArgumentError(
            argument="target", value=str(target.path), reason="is the same store, or a copy of it"
        )
    run = checkpoint.run if run is None else check_run(run)
    origin = {"store": source.uuid, "version": checkpoint.version, "digest": checkpoint.digest}
    tags = {tag: target.tags().get(tag) for tag in checkpoint.tags}
    # Claimed before the search, so that nobody else copies it meanwhile.
    target.claim(run)
    target.watch(run, source.monitors)
    request = replace(_request(checkpoint, run, origin, tags), earlier_epochs=tuple(source.earlier_epochs))
    existing = find_existing(target, COPIED, origin, request, payload_of(checkpoint))
    made = existing or _write(checkpoint, target, request, progress)
    if checkpoint.pinned and not made.pinned:
        target.pin(made)
        made = target.get(made.version)
    return Copied(
        source=checkpoint,
        checkpoint=made,
        existing=existing is not None,
        tags_left=tuple(tag for tag, version in tags.items() if version not in (None, made.version)),
    )


def _request(
    checkpoint: Checkpoint, run: str, origin: dict[str, Any], tags: dict[str, int | None]
) -> SaveRequest:
    return SaveRequest(
        run=run,
        epoch=checkpoint.epoch,
        batch=checkpoint.batch,
        step=checkpoint.step,
        metrics=checkpoint.metrics,
        tags=tuple(tag for tag, version in tags.items() if version is None),
        extra=checkpoint.extra,
        created_at=checkpoint.created_at,
        blocked_s=checkpoint.blocked_s,
        total_s=checkpoint.total_s,
        notes={COPIED: origin},
    )


def _write(
    checkpoint: Checkpoint,
    target: TransferTarget,
    request: SaveRequest,
    progress: Callable[[int], object] | None,
) -> Checkpoint:
    with decoded(
        payload_of(checkpoint),
        nbytes=checkpoint.nbytes,
        digest=checkpoint.digest,
        progress=progress,
    ) as found:
        # One that a rollback found unsound has the state of a resume point, and is none there either.
        snapshot = found.snapshot if checkpoint.resumable else replace(found.snapshot, state=None)
        return target.commit(snapshot, request)
