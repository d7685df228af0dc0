"""Checkpoints that no policy removes: the best, the newest two, resume points in use, pinned and shown ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

from ckptstore.records import Mode
from ckptstore.retention.best import best_of
from ckptstore.retention.rule import RetentionFacts

# The newest ones that always stay, and the newest that can be resumed from.
NEWEST = 2


def always_kept(
    checkpoints: Sequence[RetentionFacts],
    *,
    monitors: Mapping[str, Mode],
    shown: Collection[int] = (),
    resumed: Collection[int] = (),
    is_intact: Callable[[RetentionFacts], bool],
) -> dict[int, tuple[str, ...]]:
    """Return the versions that no policy removes, each with the reasons.

    These are the best by each monitored metric, the newest two whose payloads are intact, the newest two of those that
    can be resumed from, the one that the run was resumed from, pinned ones, and those that a published path shows.

    Args:
        checkpoints: One run's complete checkpoints, oldest first.
        monitors: The metrics that writers watch, each with its better direction.
        shown: Versions that a published path shows.
        resumed: Versions that the run was resumed from last.
        is_intact: Returns True if a checkpoint's payload is there with its size.
    """
    kept: dict[int, tuple[str, ...]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def keep(version: int, reason: str) -> None:
        reasons = (*kept.get(version, ()), reason)
        # Thousands may be pinned.
        kept[version] = shared.setdefault(reasons, reasons)

    for metric, mode in monitors.items():
        best = best_of(checkpoints, metric, mode)
        intact = (
            best if best is None or is_intact(best) else best_of(filter(is_intact, checkpoints), metric, mode)
        )
        for version in {found.version for found in (best, intact) if found is not None}:
            keep(version, f"best {metric}")
    for version in _newest_intact(reversed(checkpoints), is_intact):
        keep(version, "newest two")
    resumable = (checkpoint for checkpoint in reversed(checkpoints) if checkpoint.resumable)
    for version in _newest_intact(resumable, is_intact):
        keep(version, "to resume from")
    for checkpoint in checkpoints:
        if checkpoint.version in resumed:
            keep(checkpoint.version, "resumed from")
        if checkpoint.pinned:
            keep(checkpoint.version, "pinned")
        if checkpoint.version in shown:
            keep(checkpoint.version, "shown")
    return kept


def _newest_intact(
    newest: Iterable[RetentionFacts], is_intact: Callable[[RetentionFacts], bool]
) -> list[int]:
    intact = (checkpoint.version for checkpoint in newest if is_intact(checkpoint))
    return list(islice(intact, NEWEST))


def best_and_resume_point(
    checkpoints: Sequence[RetentionFacts], monitors: Mapping[str, Mode]
) -> list[RetentionFacts]:
    """Return the best by each monitored metric and the newest that can be resumed from, oldest first."""
    found = [best_of(checkpoints, metric, mode) for metric, mode in monitors.items()]
    found.append(next((checkpoint for checkpoint in reversed(checkpoints) if checkpoint.resumable), None))
    by_version = {checkpoint.version: checkpoint for checkpoint in found if checkpoint is not None}
    return [by_version[version] for version in sorted(by_version)]
