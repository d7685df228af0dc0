"""HDF5 files that only libhdf5 can make, built in memory: whole-model ``.h5``, and arrays of text.

libhdf5 crashes the process when a disk is full, so it never writes to one: the file is built in memory, and its
bytes go to the sink like all others. This is the only way of saving that holds the state twice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import xxhash

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.contents import Contents, gaps_digest
from ckptstore.formats.description import DescriptionText, entries_template, to_json
from ckptstore.formats.hdf5.dtypes import stored_type
from ckptstore.formats.hdf5.reader import StoredDataset, read_datasets
from ckptstore.formats.hdf5.writer import check_path
from ckptstore.formats.snapshot import Snapshot, TrainingState
from ckptstore.formats.streamed_hdf5 import DESCRIPTION, GROUP, STATE_ARRAYS, STATE_DOCUMENT, escaped
from ckptstore.storage.random_access import InMemoryFile


class InMemoryHdf5:
    """A complete HDF5 file in memory.

    Args:
        snapshot: What to write, by its `fill` if it has one, else from its variables.
        fields: The caller's fields of the description.
        documents: Digests of the other members of the archive.

    Raises:
        InvalidArgumentError: HDF5 cannot hold a name or a value, or a value is not JSON.
    """

    def __init__(self, snapshot: Snapshot, fields: Mapping[str, Any], documents: Mapping[str, str]) -> None:
        image = io.BytesIO()
        with h5py.File(image, "w") as file:
            if snapshot.fill is not None:
                snapshot.fill(file)
            else:
                _fill(file, snapshot)
            if GROUP in file:
                raise InvalidArgumentError(argument="path", value=GROUP, reason="is a reserved name")
            if snapshot.state is not None:
                _add_state(file, snapshot.state)
        self._image = image
        text = self._text_for(snapshot, fields, documents)
        with h5py.File(image, "r+") as file:
            file.create_dataset(DESCRIPTION, data=np.zeros(text.nbytes, np.uint8))
        self._complete(text, snapshot.state)
        self.nbytes = len(image.getbuffer())

    def write(self, write: Any) -> None:
        """Write the file; errors of `write` are raised unchanged."""
        write(self._image.getbuffer())

    def _contents(self) -> Contents:
        with self._image.getbuffer() as view:
            try:
                contents = Contents(read_datasets(InMemoryFile(view)))
                refused = [found.refusal for found in contents.all() if found.refusal]
            except CorruptPayloadError as error:
                refused = [error.reason]
        # Even if it is a valid file: what cannot be read back and verified is not saved.
        if refused:
            raise InvalidArgumentError(argument="snapshot", value="its HDF5 file", reason=refused[0])
        return contents

    def _text_for(
        self, snapshot: Snapshot, fields: Mapping[str, Any], documents: Mapping[str, str]
    ) -> DescriptionText:
        contents = self._contents()
        variables = entries_template(_entries(contents.variables))
        arrays = None
        if snapshot.state is not None:
            stored = [(name, contents.arrays[name]) for name in snapshot.state.arrays]
            arrays = entries_template((name, found.shape, found.kind.dtype.name) for name, found in stored)
        return DescriptionText(fields, documents, variables, arrays)

    def _complete(self, text: DescriptionText, state: TrainingState | None) -> None:
        """Write the description, with all digests, into the space reserved for it."""
        contents = self._contents()
        assert contents.description is not None
        with self._image.getbuffer() as view:
            source = InMemoryFile(view)

            def digest(found: StoredDataset) -> str:
                begin = found.offset or 0
                return xxhash.xxh3_128_hexdigest(view[begin : begin + found.nbytes])

            complete = text.complete(
                variables=[digest(found) for found in contents.variables.values()],
                state=None if contents.document is None else digest(contents.document),
                arrays=[] if state is None else [digest(contents.arrays[name]) for name in state.arrays],
                structure=gaps_digest(source, contents),
            )
            offset = contents.description.offset or 0
            view[offset : offset + len(complete)] = complete


def _fill(file: h5py.File, snapshot: Snapshot) -> None:
    for variable in snapshot.variables:
        check_path(variable.path)  # libhdf5 ends a name at NUL
        _add_array(file, variable.path, variable.read(), variable.attributes)
    for path, attributes in snapshot.attributes.items():
        with _refusing(path):
            file.require_group(path or "/").attrs.update(attributes)


def _add_array(file: h5py.File, path: str, array: Any, attributes: Mapping[str, str]) -> None:
    kind = stored_type(array.dtype)
    if kind is not None:
        if kind.convert is not None:
            array = kind.convert(np.ascontiguousarray(array).reshape(-1)).reshape(array.shape)
        if kind.mark is not None:
            attributes = {"dtype": kind.mark, **attributes}
    elif array.dtype.kind == "U":
        array = array.astype(object)
    with _refusing(path):
        file.create_dataset(path, data=array).attrs.update(attributes)


@contextmanager
def _refusing(path: str) -> Iterator[None]:
    """Name the path in the error if HDF5 cannot hold it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            argument="path", value=path, reason=f"HDF5 cannot hold it: {error}"
        ) from error


def _add_state(file: h5py.File, state: TrainingState) -> None:
    document = to_json(state.document, "state.document")
    file.create_dataset(STATE_DOCUMENT, data=np.frombuffer(document, np.uint8))
    for name, array in state.arrays.items():
        if stored_type(array.dtype) is None:
            raise InvalidArgumentError(
                argument=name, value=str(array.dtype), reason="is not a dtype of numbers"
            )
        _add_array(file, STATE_ARRAYS + escaped(name), array, {})


def _entries(datasets: Mapping[str, StoredDataset]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(path, found.shape, found.kind.dtype.name) for path, found in datasets.items()]
