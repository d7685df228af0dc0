"""Compares two checkpoints: metrics, and how far each variable moved, one of each in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptstore.formats import payload
from ckptstore.records import Checkpoint, json_number
from ckptstore.system.arrays import Array

Progress = Callable[[int], object]
# Values that are compared at once, in double precision.
_PART = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableChange:
    """How far one variable has moved from the first checkpoint to the second.

    Attributes:
        path: Where it lies in the payload.
        shape: Its shape.
        dtype: Its dtype's name.
        norm: Euclidean norm of its values in the first.
        change_norm: The same of the difference.
        change_max: The largest absolute difference of a value.
        changed_share: Share of the values whose bits differ, from 0 to 1.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    norm: float
    change_norm: float
    change_max: float
    changed_share: float

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "path": self.path,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "norm": json_number(self.norm),
            "change_norm": json_number(self.change_norm),
            "change_max": json_number(self.change_max),
            "changed_share": self.changed_share,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between two checkpoints.

    Attributes:
        first: The one.
        second: The other.
        variables: Of each variable that both have in the same shape and dtype, how far it has moved.
        unlike: Of each that both have otherwise, shape and dtype in the first and in the second.
        only_first: Variables that only the first has.
        only_second: Variables that only the second has.
    """

    first: Checkpoint
    second: Checkpoint
    variables: Sequence[VariableChange]
    unlike: Mapping[str, tuple[str, str]] = field(hash=False)
    only_first: Sequence[str]
    only_second: Sequence[str]

    @property
    def metrics(self) -> dict[str, tuple[float | None, float | None]]:
        """Each metric in the first and in the second."""
        names = dict.fromkeys((*self.first.metrics, *self.second.metrics))
        return {name: (self.first.metrics.get(name), self.second.metrics.get(name)) for name in names}

    @property
    def changed(self) -> list[VariableChange]:
        """The variables that are not the same, bit by bit."""
        return [one for one in self.variables if one.changed_share]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        metrics = {
            name: [None if value is None else json_number(value) for value in pair]
            for name, pair in self.metrics.items()
        }
        return {
            "versions": [self.first.version, self.second.version],
            "metrics": metrics,
            "variables": [one.to_json() for one in self.variables],
            "unlike": {name: list(pair) for name, pair in self.unlike.items()},
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }


def difference(first: Checkpoint, second: Checkpoint, progress: Progress | None = None) -> Difference:
    """Compare two checkpoints.

    Args:
        first: The one.
        second: The other.
        progress: Called with numbers of bytes as they are read, up to twice what both payloads have.

    Raises:
        CorruptPayloadError: One is damaged.
        StorageError: One cannot be read, which does not say that it is damaged.
    """
    with (
        payload.open_verified(
            first.path, nbytes=first.nbytes, digest=first.digest, progress=progress
        ) as ours,
        payload.open_verified(
            second.path, nbytes=second.nbytes, digest=second.digest, progress=progress
        ) as theirs,
    ):
        one, two = ours.layout(), theirs.layout()
        both = [name for name in one if name in two]
        before, after = ours.variables(), theirs.variables()
        changes = []
        for name in (name for name in both if one[name] == two[name]):
            old = before[name]
            changes.append(_change(name, old, after[name]))
            if progress is not None:
                progress(2 * old.nbytes)
        return Difference(
            first=first,
            second=second,
            variables=tuple(changes),
            unlike={name: (_shown(one[name]), _shown(two[name])) for name in both if one[name] != two[name]},
            only_first=tuple(name for name in one if name not in two),
            only_second=tuple(name for name in two if name not in one),
        )


def _shown(layout: tuple[tuple[int, ...], str]) -> str:
    return f"{layout[0]} {layout[1]}"


def _change(name: str, before: Array, after: Array) -> VariableChange:
    one, two = before.reshape(-1), after.reshape(-1)
    squares = moved = largest = 0.0
    changed = 0
    for begin in range(0, one.size, _PART):
        old, new = one[begin : begin + _PART], two[begin : begin + _PART]
        changed += _count_changed(old, new)
        old_square, moved_square, most = _moved(old, new)
        squares += old_square
        moved += moved_square
        # NaN is larger than anything here: it must not be passed over.
        largest = most if math.isnan(most) or most > largest else largest
    return VariableChange(
        path=name,
        shape=before.shape,
        dtype=before.dtype.name,
        norm=math.sqrt(squares),
        change_norm=math.sqrt(moved),
        change_max=largest,
        changed_share=changed / one.size if one.size else 0.0,
    )


def _count_changed(old: Array, new: Array) -> int:
    if old.dtype.kind == "O":
        return int(np.count_nonzero(old != new))
    size = old.dtype.itemsize
    bits = (np.ascontiguousarray(one).view(np.uint8).reshape(-1, size) for one in (old, new))
    return int(np.count_nonzero(np.any(np.not_equal(*bits), axis=1)))


def _moved(old: Array, new: Array) -> tuple[float, float, float]:
    """Return the squares of the old values and of the differences, and the largest difference."""
    if old.dtype.kind in "OSV" and not _is_number(old.dtype):
        return math.nan, math.nan, math.nan
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        values, moved = old.astype(wide), new.astype(wide)
        # Where the bits are the same nothing has moved, be it an infinity or NaN.
        moved = np.where(_same(values, moved), 0, moved - values)
        sizes = np.abs(moved)
        return float(np.sum(np.abs(values) ** 2)), float(np.sum(sizes**2)), float(np.max(sizes, initial=0.0))


def _same(one: Array, other: Array) -> Array:
    same: Array = (one == other) | (np.isnan(one) & np.isnan(other))
    return same


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype that numpy calls opaque is one of ml_dtypes' numbers."""
    return dtype.kind == "V" and dtype.type.__module__ == "ml_dtypes"
