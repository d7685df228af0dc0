"""HDF5 file of a snapshot, written in one pass: the variables as Keras writes them, then the group ``ckptstore``.

``ckptstore/description`` holds the description's JSON as uint8, ``ckptstore/state/document`` the training state's JSON
likewise, and ``ckptstore/state/arrays`` its arrays. Their names are escaped, so that each is a single HDF5 name. Keras
reads by name and ignores this group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import xxhash

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.description import DescriptionText, entries_template, to_json
from ckptstore.formats.hdf5.dtypes import StoredType, stored_type
from ckptstore.formats.hdf5.writer import Attributes, Block, Dataset, lay_out, superblock
from ckptstore.formats.sink import BufferedWriter
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.system.arrays import Array

GROUP = "ckptstore"
DESCRIPTION = f"{GROUP}/description"
STATE_DOCUMENT = f"{GROUP}/state/document"
STATE_ARRAYS = f"{GROUP}/state/arrays/"

_BYTES = stored_type(np.dtype(np.uint8))
# A run saves the same structure again and again; several models may take turns.
_STRUCTURES_KEPT = 8

# Path, shape, dtype and attributes of each variable.
Structure = tuple[tuple[str, tuple[int, ...], np.dtype[Any], Attributes], ...]
Groups = tuple[tuple[str, Attributes], ...]


def escaped(name: str) -> str:
    """Return the HDF5 name of an array of the training state; any text is allowed.

    Example:
        >>> escaped("rng/keys"), escaped("100 %"), escaped("."), escaped("")
        ('rng%2Fkeys', '100 %25', '%2E', '%')
    """
    if name in ("", "."):
        return "%2E" if name else "%"
    return quote(name, safe=" !#$&'()*+,:;<=>?@[]^`{|}", errors="surrogatepass")


def unescaped(name: str) -> str:
    """Return the original name of an escaped one.

    Example:
        >>> unescaped("rng%2Fkeys"), unescaped("%")
        ('rng/keys', '')
    """
    return "" if name == "%" else unquote(name, errors="surrogatepass")


def is_streamable(snapshot: Snapshot) -> bool:
    """Return True if every variable has a dtype that can be written without libhdf5."""
    dtypes = {variable.dtype for variable in snapshot.variables}
    return snapshot.fill is None and all(stored_type(dtype) is not None for dtype in dtypes)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything about a structure that does not depend on values: its block, storage types and JSON."""

    block: Block
    kinds: tuple[StoredType, ...]
    template: str


@lru_cache(maxsize=_STRUCTURES_KEPT)
def _plan(structure: Structure, groups: Groups) -> _Plan:
    datasets = [_dataset(*entry) for entry in structure]
    block = lay_out(datasets, groups, link_to_next=GROUP)
    entries = entries_template((path, shape, dtype.name) for path, shape, dtype, _ in structure)
    return _Plan(block, tuple(dataset.kind for dataset in datasets), entries)


def _dataset(path: str, shape: tuple[int, ...], dtype: np.dtype[Any], attributes: Attributes = ()) -> Dataset:
    kind = stored_type(dtype)
    if kind is None:
        raise InvalidArgumentError(argument=path, value=str(dtype), reason="is not a dtype of numbers")
    if kind.mark is not None and not any(name == "dtype" for name, _ in attributes):
        attributes = (*attributes, ("dtype", kind.mark))
    return Dataset(path, shape, kind, attributes)


class StreamedHdf5:
    """An HDF5 file laid out in advance, except for its arrays and their digests.

    Args:
        snapshot: What to write; `write` reads its arrays one by one.
        fields: The caller's fields of the description.
        documents: Digests of the other members of the archive.

    Raises:
        InvalidArgumentError: HDF5 cannot hold a name, or a value is not JSON.
    """

    def __init__(self, snapshot: Snapshot, fields: Mapping[str, Any], documents: Mapping[str, str]) -> None:
        self._snapshot = snapshot
        self._plan = _plan(_structure(snapshot), _groups(snapshot))
        state = snapshot.state
        self._state = None if state is None else to_json(state.document, "state.document")
        self._text = DescriptionText(fields, documents, self._plan.template, _arrays_template(state))
        datasets = self._tail_datasets(state)
        self._arrays = [
            (array, dataset.kind)
            for array, dataset in zip(_state_arrays(state).values(), datasets[1:], strict=False)
        ]
        self._tail_block = lay_out(datasets, address=self._plan.block.end)
        self.nbytes = self._tail_block.end
        self._superblock = superblock(self.nbytes)

    def _tail_datasets(self, state: TrainingState | None) -> list[Dataset]:
        datasets = []
        if state is not None and self._state is not None:
            datasets.append(Dataset("state/document", (len(self._state),), _bytes_kind()))
            for name, array in state.arrays.items():
                datasets.append(_dataset(f"state/arrays/{escaped(name)}", array.shape, array.dtype))
        return [*datasets, Dataset("description", (self._text.nbytes,), _bytes_kind())]

    def write(self, write: Any) -> None:
        """Write the file in one pass, by calls of `write` alone.

        Raises:
            InvalidArgumentError: A variable's shape or dtype differs from the snapshot's.
            Exception: Errors of `write`, unchanged; what was written until then is not a payload.
        """
        stream = BufferedWriter(write)
        stream.add(self._superblock)
        pieces = self._plan.block.pieces
        digests = []
        values = self._snapshot.values()
        for variable, kind, piece in zip(self._snapshot.variables, self._plan.kinds, pieces, strict=False):
            array = next(values)
            _check(variable, array)
            stream.add(piece)
            digests.append(stream.add_array(array, kind))
        stream.add(pieces[-1])
        self._write_tail(stream, digests)
        stream.flush()

    def _write_tail(self, stream: BufferedWriter, variables: list[str]) -> None:
        pieces = iter(self._tail_block.pieces)
        state = None
        if self._state is not None:
            stream.add(next(pieces))
            stream.add(self._state)
            state = xxhash.xxh3_128_hexdigest(self._state)
        arrays = []
        for array, kind in self._arrays:
            stream.add(next(pieces))
            arrays.append(stream.add_array(array, kind))
        stream.add(next(pieces))
        text = self._text.complete(
            variables=variables, state=state, arrays=arrays, structure=self._structure_digest()
        )
        stream.add(text)
        stream.add(next(pieces))

    def _structure_digest(self) -> str:
        pieces = (self._superblock, *self._plan.block.pieces, *self._tail_block.pieces)
        return xxhash.xxh3_128_hexdigest(b"".join(pieces))


def _structure(snapshot: Snapshot) -> Structure:
    return tuple(
        (variable.path, variable.shape, variable.dtype, tuple(variable.attributes.items()))
        for variable in snapshot.variables
    )


def _groups(snapshot: Snapshot) -> Groups:
    return tuple((path, tuple(attributes.items())) for path, attributes in snapshot.attributes.items())


def _state_arrays(state: TrainingState | None) -> Mapping[str, Array]:
    return {} if state is None else state.arrays


def _arrays_template(state: TrainingState | None) -> str | None:
    if state is None:
        return None
    return entries_template((name, array.shape, array.dtype.name) for name, array in state.arrays.items())


def _bytes_kind() -> StoredType:
    assert _BYTES is not None
    return _BYTES


def _check(variable: Variable, array: Array) -> None:
    if array.shape != variable.shape or array.dtype != variable.dtype:
        raise InvalidArgumentError(
            argument=variable.path,
            value=f"{array.shape} {array.dtype}",
            reason=f"was announced as {variable.shape} {variable.dtype}",
        )
