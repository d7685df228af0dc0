"""Invariants of a store after a crash, checked by opening it again.

What the dead process reported (`Saved`) is kept outside the store, by the test that ran it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import CheckpointStoreError
from ckptstore.records import Checkpoint
from ckptstore.storage.files import digest_file
from ckptstore.storage.layout import Layout
from ckptstore.store.store import CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that a process reported as saved: it must exist afterwards, with these bytes."""

    version: int
    digest: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A published path, and the digests of complete files that may have been there before any save."""

    path: Path
    before: frozenset[str] = frozenset()


def violations(
    root: Path,
    saved: Iterable[Saved] = (),
    *,
    published: PublishedFile | None = None,
    is_intact: Callable[[Checkpoint], bool] = lambda checkpoint: True,
    save_again: Callable[[CheckpointStore], Checkpoint] | None = None,
    metric: str = "loss",
) -> list[str]:
    """Open the store at `root` for writing, as the next start of a run does, and return what is wrong with it.

    Args:
        root: The store's directory; it need not exist when nothing was saved.
        saved: Checkpoints that were reported as saved and that no retention may have removed.
        published: The published path, if there is one.
        is_intact: Returns True if a listed checkpoint has the values that it must have.
        save_again: Saves one more checkpoint, to check that the store still works.
        metric: A metric for which lower is better, whose best is computed independently.

    Returns:
        One line for each violation; an empty list when every invariant holds.
    """
    saved = list(saved)
    try:
        with CheckpointStore(root) as store:
            found = [*_wrong_in_store(store, saved, is_intact, metric), *_wrong_in_folder(store, published)]
            before = _state_of(store)
        with CheckpointStore(root) as store:
            if _state_of(store) != before:
                found.append("a second opening changed what the first had left")
            if save_again is not None:
                newest = max((claim.version for claim in saved), default=0)
                again = save_again(store)
                if again.version <= newest or store.get(again.version).digest != again.digest:
                    found.append(f"a save after recovery got version {again.version}, after {newest}")
    except (CheckpointStoreError, OSError) as error:
        return [f"the store does not open and work by itself: {type(error).__name__}: {error}"]
    return found


def _wrong_in_store(
    store: CheckpointStore, saved: list[Saved], is_intact: Callable[[Checkpoint], bool], metric: str
) -> list[str]:
    found = [f"verify: {problem.kind}: {problem.detail}" for problem in store.verify()]
    listed = {checkpoint.version: checkpoint for checkpoint in store.checkpoints(states=None)}
    for claim in saved:
        checkpoint = listed.get(claim.version)
        if checkpoint is None:
            found.append(f"version {claim.version} was reported as saved and is not listed")
            continue
        if (checkpoint.state, checkpoint.digest, checkpoint.epoch) != ("complete", claim.digest, claim.epoch):
            found.append(
                f"version {claim.version} was reported as {claim}, and is {checkpoint.state}, {checkpoint}"
            )
    found += [
        f"version {checkpoint.version} is listed and not intact"
        for checkpoint in listed.values()
        if checkpoint.state == "complete" and not is_intact(checkpoint)
    ]
    complete = [checkpoint for checkpoint in listed.values() if checkpoint.state == "complete"]
    newest = max((checkpoint.version for checkpoint in complete if checkpoint.resumable), default=None)
    point = store.resume_point()
    if (point and point.version) != newest:
        found.append(f"the resume point is {point and point.version} instead of {newest}")
    if saved and (newest is None or newest < max(claim.version for claim in saved)):
        found.append(f"the resume point went back to {newest}")
    return found + _wrong_best(store, complete, metric)


def _wrong_best(store: CheckpointStore, complete: list[Checkpoint], metric: str) -> list[str]:
    values = [
        (checkpoint.metrics[metric], checkpoint.version)
        for checkpoint in complete
        if not math.isnan(checkpoint.metrics.get(metric, math.nan))
    ]
    if not values:
        return []
    best = store.best(metric, mode="min")
    expected = min(values)[1]
    if best is None or best.version != expected:
        return [f"the best is {best and best.version} instead of {expected}"]
    return []


def _wrong_in_folder(store: CheckpointStore, published: PublishedFile | None) -> list[str]:
    layout = Layout(store.path)
    found = [f"{path} is left over" for path in layout.tmp.iterdir()]
    rows = {checkpoint.path.name for checkpoint in store.checkpoints(states=None)}
    found += [f"{name} has no row after recovery" for name in layout.payload_names() if name not in rows]
    if published is None:
        return found
    if published.path.exists():
        known = published.before | {checkpoint.digest for checkpoint in store.checkpoints()}
        if digest_file(published.path) not in known:
            found.append(f"{published.path} is neither a complete old file nor a complete new one")
    elif published.before:
        found.append(f"{published.path} is gone")
    leftovers = published.path.parent.glob(f".{published.path.name}.ckptstore*")
    return found + [f"{path} is left over" for path in leftovers]


def _state_of(store: CheckpointStore) -> tuple[object, ...]:
    """Return everything that opening the store could change: its rows and file names."""
    files = sorted(os.listdir(store.path / "checkpoints")), sorted(os.listdir(store.path / "quarantine"))
    return (store.checkpoints(states=None), files)
