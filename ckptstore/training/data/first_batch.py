"""Digests of the first batches that data gives: a resume compares them, and so notices data that is not the same.

Data that draws from a random generator of its own, without a seed, gives other batches in each process, and so do files
that have changed. Nothing more is read for a digest: of a Python generator Keras has taken the first batches before the
fit, and of other data the first batch of each iterator is looked at as it passes, once an epoch. Only what lies in host
memory is, and of a large array only rows spread over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import xxhash

from ckptstore.keras.private import FitLoop
from ckptstore.keras.state.backend_arrays import as_numpy, is_in_host_memory
from ckptstore.system.arrays import Array
from ckptstore.training.data import source

# All values of an array up to this size, about 20 microseconds, and parts of so many rows of a larger one.
_MAX_NBYTES = 256 << 10
_ROWS = 16
# Of arrays and files the order is restored, or it is known that it cannot be; arrays are in the fingerprint.
_LOOKED_AT = ("PyDatasetAdapter", "TorchDataLoaderAdapter")


def digest_of(batches: Any) -> dict[str, str] | None:
    """Return a digest of a batch, or of several, and the backend that it passed; None if nothing in it can be read.

    Example:
        >>> digest_of((np.zeros(3), None)) == digest_of((np.zeros(3), None)) != digest_of((np.ones(3), None))
        True
        >>> digest_of([object()]) is None
        True
    """
    digest, is_read = xxhash.xxh3_128(), False
    for value in keras.tree.flatten(batches):
        array = _host_array(value)
        if array is not None:
            is_read = True
            digest.update(f"{array.shape}".encode())
            for part in _parts(array):
                digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return {"values": digest.hexdigest()[:16], "backend": keras.backend.backend()} if is_read else None


def is_other(saved: Mapping[str, str] | None, now: Mapping[str, str] | None) -> bool:
    """Return True if two digests are of other values; False if one is not known, or of another backend."""
    if saved is None or now is None or saved["backend"] != now["backend"]:
        return False
    return saved["values"] != now["values"]


def _host_array(value: Any) -> Array | None:
    if not is_in_host_memory(value):
        return None
    try:
        array = as_numpy(value)
    except (TypeError, RuntimeError):
        return None  # sparse, or quantized
    return None if array is None or array.dtype.hasobject else array


def _parts(array: Array) -> list[Array]:
    if array.nbytes <= _MAX_NBYTES:
        return [array]
    rows = [array[int(row)] for row in np.linspace(0, len(array) - 1, _ROWS)]
    most = max(1, _MAX_NBYTES // _ROWS // array.itemsize)
    # Of a row of a picture, say, values from everywhere.
    return [row.reshape(-1)[:: max(1, row.size // most)] for row in rows]


class FirstBatch:
    """Digest of the first batch of the iterator that a fit reads from.

    Not known on TensorFlow, which reads in its own threads, nor of sources that are set to a position.

    Args:
        loop: The fit; None to look at nothing. The data that Keras iterates over stays wrapped until it is released.

    Attributes:
        at_start: Digest of the batches that Keras has taken from a Python generator before the fit, or None.
    """

    def __init__(self, loop: FitLoop | None) -> None:
        first = None if loop is None else loop.data.first_batches
        self.at_start = None if first is None else digest_of(first)
        self._digest: dict[str, str] | None = None
        self._is_due = False
        if loop is None:
            return
        if loop.data.adapter_name in _LOOKED_AT and source.kind(loop.source) != "position":
            loop.data.wrap_batches(lambda batches: _Noting(batches, self._note))

    def iterator_begins(self) -> None:
        """Take note of a new iterator."""
        self._digest, self._is_due = None, True

    def _note(self, batch: Any) -> None:
        if self._is_due:
            self._digest, self._is_due = digest_of(batch), False

    @property
    def digest(self) -> dict[str, str] | None:
        """The digest; None before the first batch."""
        return self._digest


class _Noting:
    """Batches of which the first is noted as it passes.

    Args:
        batches: The batches.
        note: Called with the first batch.
    """

    def __init__(self, batches: Iterable[Any], note: Any) -> None:
        self._batches = batches
        self._note = note

    def __iter__(self) -> Iterator[Any]:
        # At once, as without us: a loader of torch draws when an iterator over it is made.
        return self._noted(iter(self._batches))

    def _noted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self._note(batch)
            yield batch
            del batch
            break
        yield from batches
