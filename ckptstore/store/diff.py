"""Compares two checkpoints: their metrics, and how far each variable moved; one variable of each is in memory."""

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
# Values compared at a time, in double precision.
_PART = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableChange:
    """Change of one variable from the first checkpoint to the second.

    Attributes:
        path: Its path in the payload.
        shape: Its shape.
        dtype: Its dtype's name.
        norm: Euclidean norm of its values in the first.
        change_norm: Euclidean norm of the difference.
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
    """Differences between two checkpoints.

    Attributes:
        first: The first checkpoint.
        second: The second checkpoint.
        variables: The change of each variable that both have with the same shape and dtype.
        unlike: Shape and dtype, in the first and in the second, of each variable for which they differ.
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
        """The variables that differ in any bit."""
        return [variable for variable in self.variables if variable.changed_share]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        metrics = {
            name: [None if value is None else json_number(value) for value in pair]
            for name, pair in self.metrics.items()
        }
        return {
            "versions": [self.first.version, self.second.version],
            "metrics": metrics,
            "variables": [variable.to_json() for variable in self.variables],
            "unlike": {name: list(pair) for name, pair in self.unlike.items()},
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }


def difference(first: Checkpoint, second: Checkpoint, progress: Progress | None = None) -> Difference:
    """Compare two checkpoints.

    Args:
        first: The first.
        second: The second.
        progress: Called with numbers of bytes as they are read, up to twice the size of both payloads.

    Raises:
        CorruptPayloadError: One is damaged.
        StorageError: One cannot be read, which does not mean that it is damaged.
    """
    with (
        payload.open_checkpoint(first, progress) as old_payload,
        payload.open_checkpoint(second, progress) as new_payload,
    ):
        old_layout, new_layout = old_payload.layout(), new_payload.layout()
        both = [name for name in old_layout if name in new_layout]
        before, after = old_payload.variables(), new_payload.variables()
        changes = []
        for name in (name for name in both if old_layout[name] == new_layout[name]):
            old = before[name]
            changes.append(_change(name, old, after[name]))
            if progress is not None:
                progress(2 * old.nbytes)
        return Difference(
            first=first,
            second=second,
            variables=tuple(changes),
            unlike={
                name: (_shown(old_layout[name]), _shown(new_layout[name]))
                for name in both
                if old_layout[name] != new_layout[name]
            },
            only_first=tuple(name for name in old_layout if name not in new_layout),
            only_second=tuple(name for name in new_layout if name not in old_layout),
        )


def _shown(layout: tuple[tuple[int, ...], str]) -> str:
    return f"{layout[0]} {layout[1]}"


def _change(name: str, before: Array, after: Array) -> VariableChange:
    old_values, new_values = before.reshape(-1), after.reshape(-1)
    squares = moved = largest = 0.0
    changed = 0
    for begin in range(0, old_values.size, _PART):
        old, new = old_values[begin : begin + _PART], new_values[begin : begin + _PART]
        changed += _count_changed(old, new)
        old_square, moved_square, most = _moved(old, new)
        squares += old_square
        moved += moved_square
        # NaN counts as the largest.
        largest = most if math.isnan(most) or most > largest else largest
    return VariableChange(
        path=name,
        shape=before.shape,
        dtype=before.dtype.name,
        norm=math.sqrt(squares),
        change_norm=math.sqrt(moved),
        change_max=largest,
        changed_share=changed / old_values.size if old_values.size else 0.0,
    )


def _count_changed(old: Array, new: Array) -> int:
    if old.dtype.kind == "O":
        return int(np.count_nonzero(old != new))
    size = old.dtype.itemsize
    bits = (np.ascontiguousarray(values).view(np.uint8).reshape(-1, size) for values in (old, new))
    return int(np.count_nonzero(np.any(np.not_equal(*bits), axis=1)))


def _moved(old: Array, new: Array) -> tuple[float, float, float]:
    """Return the squares of the old values and of the differences, and the largest difference."""
    if old.dtype.kind in "OSV" and not _is_number(old.dtype):
        return math.nan, math.nan, math.nan
    wide = np.complex128 if old.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        values, moved = old.astype(wide), new.astype(wide)
        # Equal values have not moved, including infinities and NaN.
        moved = np.where(_same(values, moved), 0, moved - values)
        sizes = np.abs(moved)
        return float(np.sum(np.abs(values) ** 2)), float(np.sum(sizes**2)), float(np.max(sizes, initial=0.0))


def _same(first: Array, other: Array) -> Array:
    same: Array = (first == other) | (np.isnan(first) & np.isnan(other))
    return same


def _is_number(dtype: np.dtype[Any]) -> bool:
    """Return True if a dtype that numpy calls opaque is one of ml_dtypes' numbers."""
    return dtype.kind == "V" and dtype.type.__module__ == "ml_dtypes"
