"""Takes a run back to its newest resume point of a time when its losses were sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.commit.quarantine import withdraw
from ckptstore.errors import CorruptPayloadError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.system import messages

ROLLED_BACK, BAD_LOSS = "rolled_back", "bad_loss"

# Brings a checkpoint into the model; False if its weights are not finite.
Load = Callable[[Checkpoint], bool]


def roll_back(
    layout: Layout,
    manifest: Manifest,
    run: str,
    load: Load | None,
    *,
    sound_step: int,
    detail: Mapping[str, Any],
) -> Checkpoint | None:
    """Load the newest resume point at which a run was sound, and record what was done; None if there is none.

    Later resume points of the run stay in the store, but are none any more, and the best by no metric; those without a
    step are passed over, and stay as they are. A crash meanwhile leaves them as they were, or all of this recorded.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        run: The run.
        load: Loads a checkpoint; None to load nothing, where the training stops.
        sound_step: Finished batches when the losses were last sound.
        detail: What the event says: ``rolled_back`` with the version that was loaded, or else ``bad_loss``.
    """
    unsound: list[int] = []
    found: Checkpoint | None = None
    for checkpoint in manifest.checkpoints.resume_points(run):
        if checkpoint.step is None:
            continue  # saved by hand, and from when in the run is not known
        if checkpoint.step > sound_step:
            unsound.append(checkpoint.version)
            continue
        try:
            is_sound = load is None or load(checkpoint)
        except CorruptPayloadError as error:
            with store_lock(layout.locks):
                withdraw(layout, manifest, checkpoint, error.reason)
            place = payloads_at(layout).quarantine_place
            messages.warn(f"version {checkpoint.version} is put aside in {place}: {error.reason}")
            continue
        if is_sound:
            found = checkpoint
            break
        unsound.append(checkpoint.version)
    known = dict(detail) | {"unsound": unsound}
    if found is not None and load is not None and found.step is not None:
        known |= {"to_step": found.step, "skipped": detail["from_step"] - found.step}
    is_done = load is not None and found is not None
    with store_lock(layout.locks):
        manifest.checkpoints.mark_unsound(
            unsound,
            run=run,
            event=ROLLED_BACK if is_done else BAD_LOSS,
            version=found.version if is_done and found is not None else None,
            detail=known,
        )
    return found
