"""What rules look at, of very many checkpoints: a column of numbers for each of it, and no object for each of them."""

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


class Seen(NamedTuple):
    """What rules look at of one checkpoint; it lives no longer than they look."""

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
        """Those that are looked at; NaN where it has none."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def created_at(self) -> datetime:
        """When it was saved."""
        return _EPOCH + self.microseconds * _MICROSECOND


class Columns(Sequence[Seen]):
    """Checkpoints, oldest first, in some fifty bytes each and eight for each metric.

    Args:
        metrics: Those that are looked at.
    """

    def __init__(self, metrics: Sequence[str]) -> None:
        self._names = tuple(metrics)
        # Version, epoch, batch, step, bytes, microseconds; -1 for None.
        self._numbers = [array("q") for _ in range(6)]
        # Whether it is resumable, and pinned.
        self._truths = [bytearray(), bytearray()]
        self._metrics = [array("d") for _ in self._names]
        self._tags: dict[int, tuple[str, ...]] = {}

    def extend(self, checkpoints: Sequence[RetentionFacts]) -> None:
        """Add some."""
        numbers = (
            (one.version for one in checkpoints),
            (one.epoch for one in checkpoints),
            (-1 if one.batch is None else one.batch for one in checkpoints),
            (-1 if one.step is None else one.step for one in checkpoints),
            (one.nbytes for one in checkpoints),
            ((one.created_at - _EPOCH) // _MICROSECOND for one in checkpoints),
        )
        for column, added in zip(self._numbers, numbers, strict=True):
            column.extend(added)
        self._truths[0].extend(one.resumable for one in checkpoints)
        self._truths[1].extend(one.pinned for one in checkpoints)
        for values, name in zip(self._metrics, self._names, strict=True):
            values.extend(one.metrics.get(name, math.nan) for one in checkpoints)
        self._tags.update((one.version, one.tags) for one in checkpoints if one.tags)

    def __len__(self) -> int:
        return len(self._numbers[0])

    @overload
    def __getitem__(self, index: int) -> Seen: ...

    @overload
    def __getitem__(self, index: slice) -> Columns: ...

    def __getitem__(self, index: int | slice) -> Seen | Columns:
        if isinstance(index, slice):
            return self._of(lambda column: column[index])
        at = range(len(self))[index]
        return next(iter(self[at : at + 1]))

    def __iter__(self) -> Iterator[Seen]:
        return self._seen(iter)

    def __reversed__(self) -> Iterator[Seen]:
        return self._seen(reversed)

    def only(self, is_wanted: Callable[[int], bool]) -> Columns:
        """Return those whose version is wanted."""
        wanted = bytes(map(is_wanted, self._numbers[0]))
        return self._of(lambda column: compress(column, wanted))

    def _of(self, part: Callable[[Any], Iterable[Any]]) -> Columns:
        found = Columns(self._names)
        found._numbers = [array("q", part(column)) for column in self._numbers]
        found._truths = [bytearray(part(column)) for column in self._truths]
        found._metrics = [array("d", part(column)) for column in self._metrics]
        found._tags = self._tags
        return found

    def _seen(self, way: Callable[[Any], Iterator[Any]]) -> Iterator[Seen]:
        version, epoch, batch, step, nbytes, microseconds = map(way, self._numbers)
        resumable, pinned = map(way, self._truths)
        values: Iterable[tuple[float, ...]] = repeat(())
        if self._names:
            values = zip(*map(way, self._metrics), strict=True)
        tags = map(self._tags.get, way(self._numbers[0]), repeat(()))
        return map(
            Seen,
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


def only(checkpoints: Sequence[RetentionFacts], is_wanted: Callable[[int], bool]) -> Sequence[RetentionFacts]:
    """Return the checkpoints whose version is wanted."""
    if isinstance(checkpoints, Columns):
        return checkpoints.only(is_wanted)
    return [one for one in checkpoints if is_wanted(one.version)]
