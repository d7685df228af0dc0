"""Which checkpoints stay: pure functions from a run's checkpoints to the versions that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode

_NEWEST = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for what stays; joined by ``|``, a checkpoint stays when any of the rules keeps it.

    Attributes:
        name: How it reads, such as ``"keep_last(3)"``.
        kept: Maps one run's complete checkpoints, oldest first, to the versions that it keeps.
        is_ours: True where every part of it is of this module, so that another process can apply it.
    """

    name: str
    kept: Callable[[Sequence[Checkpoint]], Collection[int]]
    is_ours: bool = False

    def __call__(self, checkpoints: Sequence[Checkpoint]) -> set[int]:
        """Return the versions that stay."""
        return set(self.kept(checkpoints))

    def __or__(self, other: Policy) -> Policy:
        return Policy(
            f"{self.name} | {other.name}", partial(_either, self, other), self.is_ours and other.is_ours
        )

    def __repr__(self) -> str:
        return self.name


def keep_last(n: int) -> Policy:
    """Keep the newest `n` checkpoints of a run.

    Raises:
        InvalidArgumentError: `n` is not a positive integer.

    Example:
        >>> keep_last(3)
        keep_last(3)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidArgumentError(argument="n", value=n, reason="must be a positive integer")
    return Policy(f"keep_last({n})", partial(_newest, n), is_ours=True)


# Functions with a name, not lambdas: a callback that holds a policy can be pickled.
def _newest(n: int, checkpoints: Sequence[Checkpoint]) -> list[int]:
    return [checkpoint.version for checkpoint in checkpoints[-n:]]


def _either(one: Policy, other: Policy, checkpoints: Sequence[Checkpoint]) -> set[int]:
    return one(checkpoints) | other(checkpoints)


def always_kept(
    checkpoints: Sequence[Checkpoint],
    *,
    monitors: Mapping[str, Mode],
    shown: Collection[int],
    is_whole: Callable[[Checkpoint], bool],
) -> set[int]:
    """Return the versions that no policy removes.

    These are the best by each monitored metric, the newest two whose payloads are whole, the newest two of those that
    can be resumed from, the pinned, and those shown at a published path.

    Args:
        checkpoints: One run's complete checkpoints, oldest first.
        monitors: The metrics that writers watch, each with its better direction.
        shown: Versions that a published path shows.
        is_whole: Whether a checkpoint's payload is there, as far as can be told without reading it.
    """
    kept = {
        checkpoint.version for checkpoint in checkpoints if checkpoint.pinned or checkpoint.version in shown
    }
    for metric, mode in monitors.items():
        best = best_of(checkpoints, metric, mode)
        if best is not None:
            kept.add(best.version)
    resumable = [checkpoint for checkpoint in checkpoints if checkpoint.resumable]
    return kept | _newest_whole(checkpoints, is_whole) | _newest_whole(resumable, is_whole)


def _newest_whole(checkpoints: Sequence[Checkpoint], is_whole: Callable[[Checkpoint], bool]) -> set[int]:
    whole = (checkpoint.version for checkpoint in reversed(checkpoints) if is_whole(checkpoint))
    return set(islice(whole, _NEWEST))


def best_of(checkpoints: Sequence[Checkpoint], metric: str, mode: Mode) -> Checkpoint | None:
    """Return the best by a metric; NaN and missing values are never best, ties go to the earlier."""
    best: Checkpoint | None = None
    best_value = math.nan
    for checkpoint in checkpoints:
        value = checkpoint.metrics.get(metric, math.nan)
        better = value < best_value if mode == "min" else value > best_value
        if better or (best is None and not math.isnan(value)):
            best, best_value = checkpoint, value
    return best
