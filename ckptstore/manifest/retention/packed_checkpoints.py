"""Very many checkpoints in memory, in a tenth of what `Checkpoint` objects take: rows compressed a page at a time."""

from __future__ import annotations

import pickle
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple, overload

from ckptstore.manifest.checkpoint_rows import CheckpointRow
from ckptstore.records import Checkpoint


class Summary(NamedTuple):
    """The facts about a packed checkpoint that need no unpacking."""

    version: int
    run: str
    epoch: int
    batch: int | None
    nbytes: int


class PackedRows:
    """Compressed rows, added a page at a time; each has a position, counted from 0.

    Args:
        store: The store's directory.

    Attributes:
        store: The store's directory.
        versions: The version at each position.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.versions = array("q")
        self._runs: dict[str, int] = {}
        self._run, self._epoch, self._batch, self._nbytes = array("I"), array("q"), array("q"), array("q")
        self._pages: list[bytes] = []
        self._ends = array("q")

    def __len__(self) -> int:
        return len(self.versions)

    def append(self, page: Sequence[CheckpointRow]) -> None:
        """Add a page of rows."""
        self.versions.extend(row.version for row in page)
        self._run.extend(self._runs.setdefault(row.run, len(self._runs)) for row in page)
        self._epoch.extend(row.epoch for row in page)
        self._batch.extend(-1 if row.batch is None else row.batch for row in page)
        self._nbytes.extend(row.nbytes for row in page)
        # Column by column, which compresses better; level 1 does as well as any with digests and metrics.
        columns = tuple(zip(*page, strict=True))
        self._pages.append(zlib.compress(pickle.dumps(columns, protocol=5), 1))
        self._ends.append(len(self.versions))

    def page(self, position: int) -> tuple[range, list[CheckpointRow]]:
        """Return the positions of the page that a position is on, and its rows."""
        number = bisect_right(self._ends, position)
        columns = pickle.loads(zlib.decompress(self._pages[number]))
        begin = self._ends[number - 1] if number else 0
        return range(begin, self._ends[number]), list(starmap(CheckpointRow, zip(*columns, strict=True)))

    def summaries(self, positions: Sequence[int]) -> Iterator[Summary]:
        """Yield the summaries of some rows without unpacking them."""
        runs = list(self._runs)
        return map(
            Summary,
            map(self.versions.__getitem__, positions),
            map(runs.__getitem__, map(self._run.__getitem__, positions)),
            map(self._epoch.__getitem__, positions),
            (None if batch < 0 else batch for batch in map(self._batch.__getitem__, positions)),
            map(self._nbytes.__getitem__, positions),
        )

    def nbytes(self, positions: Iterable[int]) -> int:
        """Return the bytes of the payloads at some positions."""
        return sum(map(self._nbytes.__getitem__, positions))

    def by_version(self) -> Sequence[int]:
        """Return all positions, lowest version first."""
        if len(self._runs) == 1:
            return range(len(self.versions))
        return array("I", sorted(range(len(self.versions)), key=self.versions.__getitem__))


class PackedCheckpoints(Sequence[Checkpoint]):
    """An immutable sequence of packed checkpoints; each is unpacked when it is accessed.

    Args:
        rows: The packed rows.
        positions: The positions of the checkpoints in them.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, rows: PackedRows, positions: Iterable[int]) -> None:
        self.rows = rows
        self.positions = array("I", positions)
        self._last: tuple[range, list[CheckpointRow]] = (range(0), [])

    @property
    def versions(self) -> Iterator[int]:
        """Their versions, without unpacking."""
        return map(self.rows.versions.__getitem__, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...

    @overload
    def __getitem__(self, index: slice) -> PackedCheckpoints: ...

    def __getitem__(self, index: int | slice) -> Checkpoint | PackedCheckpoints:
        if isinstance(index, slice):
            return PackedCheckpoints(self.rows, self.positions[index])
        return self._at(self.positions[index])

    def __iter__(self) -> Iterator[Checkpoint]:
        return map(self._at, self.positions)

    def __reversed__(self) -> Iterator[Checkpoint]:
        return map(self._at, reversed(self.positions))

    def _at(self, position: int) -> Checkpoint:
        here, rows = self._last
        if position not in here:
            here, rows = self._last = self.rows.page(position)
        return rows[position - here.start].to_checkpoint(self.rows.store)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return repr(list(self))
