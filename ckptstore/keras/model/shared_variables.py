"""Variables of a payload as arrays of JAX that several processes share: each process reads what its devices hold.

No process waits for another: an array is made of the parts that this one has read, and JAX takes the rest on trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ckptstore.formats.payload_format import OpenPayload
from ckptstore.keras import private
from ckptstore.keras.private.capture import CapturedValue
from ckptstore.keras.state.arrays import shape_and_dtype
from ckptstore.keras.state.shards import Bounds, array_of_parts, local_bounds
from ckptstore.system.arrays import Array
from ckptstore.system.parallel_copy import PIECE, CopyJob, ParallelCopy


def verify_what_is_read(
    found: OpenPayload, entries: Iterable[CapturedValue], *, process: int, processes: int
) -> None:
    """Verify what one of several processes reads besides its own share of a payload, before it changes anything.

    Args:
        found: The payload, from `ckptstore.formats.payload.open_share`.
        entries: What the model loads.
        process: The number of this process.
        processes: The number of processes.

    Raises:
        CorruptPayloadError: A part differs from its digest.
        StorageError: One cannot be read.
    """
    layout = found.layout()
    regions = [
        (entry.path, *bounds)
        for entry in entries
        if entry.path in layout and layout[entry.path][0] == shape_and_dtype(entry.value)[0]
        for bounds in _read_bounds(entry.value, layout[entry.path][0])
    ]
    found.verify_regions(regions, process=process, processes=processes)


def _read_bounds(live: Any, shape: tuple[int, ...]) -> Iterable[Bounds]:
    sharding = private.sharding_across_processes(live)
    return [((0,) * len(shape), shape)] if sharding is None else local_bounds(sharding, shape)


class SharedVariables(Mapping[str, Any]):
    """A payload's variables by path, each made on access; one that this process holds alone is an array of numpy.

    Args:
        found: The payload.
        entries: What the model loads; the values are its live variables.
    """

    def __init__(self, found: OpenPayload, entries: Iterable[CapturedValue]) -> None:
        self._found = found
        self._layout = found.layout()
        self._alone = found.variables()
        self._live = {entry.path: entry.value for entry in entries}
        self._in_parallel = ParallelCopy()

    def __getitem__(self, path: str) -> Any:
        live = self._live.get(path)
        sharding = private.sharding_across_processes(live)
        if live is None or sharding is None:
            return self._alone[path]
        shape, name = self._layout[path]
        parts = self._read(path, local_bounds(sharding, shape), np.dtype(getattr(ml_dtypes, name, name)))
        wanted = live.value.dtype
        return array_of_parts(shape, sharding, lambda bounds: parts[bounds].astype(wanted, copy=False))

    def _read(self, path: str, wanted: Iterable[Bounds], dtype: np.dtype[Any]) -> dict[Bounds, Array]:
        """Read parts of a variable in pieces, with several threads."""
        parts: dict[Bounds, Array] = {}
        jobs: list[CopyJob] = []
        for start, stop in wanted:
            out: Array = np.empty([last - first for first, last in zip(start, stop, strict=True)], dtype)
            parts[start, stop] = out
            for first, last in _row_ranges(out):
                piece = out[first:last] if out.ndim else out
                begin = (start[0] + first, *start[1:]) if out.ndim else start
                end = (start[0] + last, *stop[1:]) if out.ndim else stop
                jobs.append(partial(self._found.read_region, path, begin, end, piece))
        self._in_parallel(jobs, nbytes=sum(out.nbytes for out in parts.values()))
        return parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)


def _row_ranges(out: Array) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that make pieces of an array, which threads fill at the same time."""
    count = len(out) if out.ndim else 1
    rows = max(1, PIECE * count // max(out.nbytes, 1))
    return ((first, min(first + rows, count)) for first in range(0, count, rows))
