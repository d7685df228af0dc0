"""What no rule removes: the best, the newest two, what a run goes or went on from, the pinned, the shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

from ckptstore.records import Mode
from ckptstore.retention.best import best_of
from ckptstore.retention.rule import RetentionFacts

# So many of the newest always stay, and so many of the newest that can be resumed from.
NEWEST = 2


def always_kept(
    checkpoints: Sequence[RetentionFacts],
    *,
    monitors: Mapping[str, Mode],
    shown: Collection[int] = (),
    resumed: Collection[int] = (),
    is_whole: Callable[[RetentionFacts], bool],
) -> dict[int, tuple[str, ...]]:
    """Return the versions that no policy removes, each with the reasons.

    These are the best by each monitored metric, the newest two whose payloads are whole, the newest two of those that
    can be resumed from, the one that the run was resumed from, the pinned, and those shown at a published path.

    Args:
        checkpoints: One run's complete checkpoints, oldest first.
        monitors: The metrics that writers watch, each with its better direction.
        shown: Versions that a published path shows.
        resumed: Versions that the run was resumed from last.
        is_whole: Whether a checkpoint's payload is there, as far as can be told without reading it.
    """
    found: dict[int, tuple[str, ...]] = {}
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def keep(version: int, reason: str) -> None:
        reasons = (*found.get(version, ()), reason)
        # Thousands may be pinned.
        found[version] = shared.setdefault(reasons, reasons)

    for metric, mode in monitors.items():
        best = best_of(checkpoints, metric, mode)
        whole = (
            best if best is None or is_whole(best) else best_of(filter(is_whole, checkpoints), metric, mode)
        )
        for version in {one.version for one in (best, whole) if one is not None}:
            keep(version, f"best {metric}")
    for version in _newest_whole(reversed(checkpoints), is_whole):
        keep(version, "newest two")
    for version in _newest_whole((one for one in reversed(checkpoints) if one.resumable), is_whole):
        keep(version, "to resume from")
    for checkpoint in checkpoints:
        if checkpoint.version in resumed:
            keep(checkpoint.version, "resumed from")
        if checkpoint.pinned:
            keep(checkpoint.version, "pinned")
        if checkpoint.version in shown:
            keep(checkpoint.version, "shown")
    return found


def _newest_whole(newest: Iterable[RetentionFacts], is_whole: Callable[[RetentionFacts], bool]) -> list[int]:
    whole = (checkpoint.version for checkpoint in newest if is_whole(checkpoint))
    return list(islice(whole, NEWEST))


def best_and_resume_point(
    checkpoints: Sequence[RetentionFacts], monitors: Mapping[str, Mode]
) -> list[RetentionFacts]:
    """Return the best by each monitored metric and the newest that can be resumed from, oldest first."""
    found = [best_of(checkpoints, metric, mode) for metric, mode in monitors.items()]
    found.append(next((one for one in reversed(checkpoints) if one.resumable), None))
    by_version = {one.version: one for one in found if one is not None}
    return [by_version[version] for version in sorted(by_version)]
