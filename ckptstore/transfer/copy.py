"""Copies a checkpoint into another store, where it is saved as any other, by the same commit.

The payload is written anew, since it says which store's it is; the variables in it are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.decode import decoded
from ckptstore.records import Checkpoint
from ckptstore.transfer.existing import earlier
from ckptstore.validation import check_run

if TYPE_CHECKING:
    from ckptstore.store.moving import StoreMoving

COPIED = "copied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A checkpoint that was copied.

    Attributes:
        source: The checkpoint, in its own store.
        checkpoint: The same in the other store.
        existing: True when an earlier copy was there already; nothing was written then.
        tags_left: Its tags that another checkpoint has there, and keeps.
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


def copy(
    store: StoreMoving,
    checkpoint: Checkpoint,
    target: StoreMoving,
    *,
    run: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Copied:
    """Copy a checkpoint; `ckptstore.CheckpointStore.copy` says how."""
    if store.uuid == target.uuid:
        raise InvalidArgumentError(
            argument="target", value=str(target.path), reason="is the same store, or a copy of it"
        )
    run = checkpoint.run if run is None else check_run(run)
    origin = {"store": store.uuid, "version": checkpoint.version, "digest": checkpoint.digest}
    tags = {tag: target.tags().get(tag) for tag in checkpoint.tags}
    # Claimed before it is looked for: nobody else copies it meanwhile.
    target.claim(run)
    target.watch(run, store.monitors(checkpoint.run))
    request = _request(checkpoint, run, origin, tags)
    found = earlier(target, COPIED, origin, request, checkpoint.path)
    made = found or _write(checkpoint, target, request, progress)
    if checkpoint.pinned and not made.pinned:
        target.pin(made)
        made = target.get(made.version)
    return Copied(
        source=checkpoint,
        checkpoint=made,
        existing=found is not None,
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
    target: StoreMoving,
    request: SaveRequest,
    progress: Callable[[int], object] | None,
) -> Checkpoint:
    with decoded(
        checkpoint.path,
        checkpoint.format,
        nbytes=checkpoint.nbytes,
        digest=checkpoint.digest,
        progress=progress,
    ) as found:
        return target.commit(found.snapshot, request)
