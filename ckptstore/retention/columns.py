"""Columns of the facts that rules use, for very many checkpoints without an object for each."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import compress, repeat
from typing import Any, NamedTuple, overload

from ckptstore.retention.rule import RetentionFacts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class ColumnRow(NamedTuple):
    """Facts about one checkpoint, made for the moment in which a rule looks at it."""

    version: int
    epoch: int
    batch: int | None
    step: int | None
    nbytes: int
    microseconds: int
    resumable: bool
    pinned: bool
    tags: tuple[str, ...]
    names: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics that rules use; NaN where it has none."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def created_at(self) -> datetime:
        """Time of the save."""
        return _EPOCH + self.microseconds * _MICROSECOND


class CheckpointColumns(Sequence[ColumnRow]):
    """Checkpoints, oldest first, in some fifty bytes each and eight for each metric.

    Args:
        metrics: The metrics that rules use.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self._names = tuple(metrics)
        # Version, epoch, batch, step, bytes, microseconds; -1 for None.
        self._numbers = [array("q") for _ in range(6)]
        # Resumable, pinned.
        self._flags = [bytearray(), bytearray()]
        self._metrics = [array("d") for _ in self._names]
        self._tags: dict[int, tuple[str, ...]] = {}

    def extend(self, checkpoints: Sequence[RetentionFacts]) -> None:
        """Append checkpoints."""
        numbers = (
            (checkpoint.version for checkpoint in checkpoints),
            (checkpoint.epoch for checkpoint in checkpoints),
            (-1 if checkpoint.batch is None else checkpoint.batch for checkpoint in checkpoints),
            (-1 if checkpoint.step is None else checkpoint.step for checkpoint in checkpoints),
            (checkpoint.nbytes for checkpoint in checkpoints),
            ((checkpoint.created_at - _EPOCH) // _MICROSECOND for checkpoint in checkpoints),
        )
        for column, added in zip(self._numbers, numbers, strict=True):
            column.extend(added)
        self._flags[0].extend(checkpoint.resumable for checkpoint in checkpoints)
        self._flags[1].extend(checkpoint.pinned for checkpoint in checkpoints)
        for values, name in zip(self._metrics, self._names, strict=True):
            values.extend(checkpoint.metrics.get(name, math.nan) for checkpoint in checkpoints)
        self._tags.update(
            (checkpoint.version, checkpoint.tags) for checkpoint in checkpoints if checkpoint.tags
        )

    def __len__(self) -> int:
        return len(self._numbers[0])

    @overload
    def __getitem__(self, index: int) -> ColumnRow: ...

    @overload
    def __getitem__(self, index: slice) -> CheckpointColumns: ...

    def __getitem__(self, index: int | slice) -> ColumnRow | CheckpointColumns:
        if isinstance(index, slice):
            return self._part(lambda column: column[index])
        at = range(len(self))[index]
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[ColumnRow]:
        return self._rows(iter)

    def __reversed__(self) -> Iterator[ColumnRow]:
        return self._rows(reversed)

    def select_versions(self, is_wanted: Callable[[int], bool]) -> CheckpointColumns:
        """Return the rows whose version is wanted."""
        wanted = bytes(map(is_wanted, self._numbers[0]))
        return self._part(lambda column: compress(column, wanted))

    def _part(self, part: Callable[[Any], Iterable[Any]]) -> CheckpointColumns:
        found = CheckpointColumns(self._names)
        found._numbers = [array("q", part(column)) for column in self._numbers]
        found._flags = [bytearray(part(column)) for column in self._flags]
        found._metrics = [array("d", part(column)) for column in self._metrics]
        found._tags = self._tags
        return found

    def _rows(self, iterate: Callable[[Any], Iterator[Any]]) -> Iterator[ColumnRow]:
        version, epoch, batch, step, nbytes, microseconds = map(iterate, self._numbers)
        resumable, pinned = map(iterate, self._flags)
        values: Iterable[tuple[float, ...]] = repeat(())
        if self._names:
            values = zip(*map(iterate, self._metrics), strict=True)
        tags = map(self._tags.get, iterate(self._numbers[0]), repeat(()))
        return map(
            ColumnRow,
            version,
            epoch,
            map(_or_none, batch),
            map(_or_none, step),
            nbytes,
            microseconds,
            map(bool, resumable),
            map(bool, pinned),
            tags,
            repeat(self._names),
            values,
        )


def _or_none(number: int) -> int | None:
    return None if number < 0 else number


def select_versions(
    checkpoints: Sequence[RetentionFacts], is_wanted: Callable[[int], bool]
) -> Sequence[RetentionFacts]:
    """Return the checkpoints whose version is wanted."""
    if isinstance(checkpoints, CheckpointColumns):
        return checkpoints.select_versions(is_wanted)
    return [checkpoint for checkpoint in checkpoints if is_wanted(checkpoint.version)]
