"""Policies are pure functions from checkpoints to those that stay."""

from __future__ import annotations

import math
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint
from ckptstore.retention import Policy, always_kept, best_of, keep_last


def _checkpoint(version: int, value: float | None = None, *, pinned: bool = False) -> Checkpoint:
    return Checkpoint(
        version=version,
        run="a",
        epoch=version,
        batch=None,
        step=None,
        metrics={} if value is None else {"loss": value},
        path=Path(f"/{version}"),
        nbytes=1,
        digest="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        pinned=pinned,
    )


def _kept(
    checkpoints: list[Checkpoint], shown: set[int] = frozenset(), broken: set[int] = frozenset()
) -> set[int]:
    found = always_kept(
        checkpoints,
        monitors={"loss": "min"},
        shown=shown,
        is_intact=lambda point: point.version not in broken,
    )
    return set(found)


def test_keep_last() -> None:
    checkpoints = [_checkpoint(n) for n in range(1, 6)]
    assert keep_last(2)(checkpoints) == {4, 5}
    assert keep_last(9)(checkpoints) == {1, 2, 3, 4, 5}
    assert keep_last(1)([]) == set()
    for n in (0, -1, True, 1.5, "2"):
        with pytest.raises(InvalidArgumentError):
            keep_last(n)  # type: ignore[arg-type]


def test_policies_join() -> None:
    even = Policy(
        "even", lambda checkpoints: [point.version for point in checkpoints if point.version % 2 == 0]
    )
    joined = keep_last(1) | even
    assert joined([_checkpoint(n) for n in range(1, 6)]) == {2, 4, 5}
    assert repr(joined) == "keep_last(1) | even"


def test_policies_pickle() -> None:
    twin = pickle.loads(pickle.dumps(keep_last(2) | keep_last(1)))
    assert twin([_checkpoint(n) for n in range(1, 6)]) == {4, 5}


def test_best_pinned_shown_and_the_newest_two_intact_always_stay() -> None:
    checkpoints = [_checkpoint(1, 0.5), _checkpoint(2, 0.1), _checkpoint(3, 0.2, pinned=True)]
    checkpoints += [_checkpoint(n, 0.3) for n in range(4, 10)]
    assert _kept(checkpoints, shown={5}) == {2, 3, 5, 8, 9}
    assert _kept(checkpoints, broken={8, 9}) == {2, 3, 6, 7}
    assert _kept(checkpoints[:1], broken={1}) == {1}


def test_nan_is_never_best_and_ties_go_to_the_earlier() -> None:
    values = [math.nan, 3.0, 1.0, 1.0, math.nan, 3.0, None, -math.inf, math.inf]
    checkpoints = [_checkpoint(n, value) for n, value in enumerate(values)]
    assert best_of(checkpoints[:7], "loss", "min").version == 2
    assert best_of(checkpoints[:7], "loss", "max").version == 1
    assert best_of(checkpoints, "loss", "min").version == 7
    assert best_of(checkpoints, "loss", "max").version == 8
    assert best_of(checkpoints[:1], "loss", "min") is None
    assert best_of(checkpoints, "auc", "min") is None
