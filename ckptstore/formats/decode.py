"""Decoding of HDF5 payloads, ours or Keras' own, back into snapshots that can be written elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore.formats.contents import read_bytes, values_of
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.formats.streamed_hdf5 import GROUP
from ckptstore.storage.random_access import RandomAccess
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    import h5py

Progress = Callable[[int], object]


def decode_hdf5(found: Hdf5Payload, progress: Progress | None = None) -> Snapshot:
    """Return a payload's contents as a snapshot; see `ckptstore.formats.payload_format.PayloadFormat.decode`."""
    described = found.is_described()
    digests = found.description()["variables"] if described else {}
    state = found.state() if described else None
    if found.format.keras_fills_it:
        return Snapshot(format=found.format.name, state=state, fill=partial(_fill, found))
    variables = tuple(
        _variable(found.source, name, stored, digests.get(name), progress)
        for name, stored in found.contents.variables.items()
    )
    return Snapshot(
        format=found.format.name,
        variables=variables,
        attributes=_attributes(found),
        documents=found.documents(),
        state=state,
    )


def _variable(
    source: RandomAccess,
    name: str,
    stored: StoredDataset,
    expected: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Variable:
    def read() -> Array:
        data = read_bytes(source, stored)
        if expected is not None and digest_of(data.data) != expected["digest"]:
            raise source.corrupt(f"{name} differs from its digest")
        if progress is not None:
            progress(len(data))
        return values_of(source, stored, data)

    return Variable(path=name, shape=stored.shape, dtype=stored.kind.dtype, read=read)


def _attributes(payload: Hdf5Payload) -> dict[str, dict[str, str]]:
    """Return the text attributes of all groups; libhdf5 reads them, in a file that was checked before."""
    import h5py  # neither opening a store nor a save needs it

    found: dict[str, dict[str, str]] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Group) and name != GROUP and not name.startswith(f"{GROUP}/"):
            texts = {key: value for key, value in node.attrs.items() if isinstance(value, str)}
            if texts:
                found[name] = texts

    with payload.hdf5() as file:
        note("", file)
        file.visititems(note)
    return found


def _fill(payload: Hdf5Payload, target: h5py.File) -> None:
    with payload.hdf5() as file:
        for name in file:
            if name != GROUP:
                file.copy(name, target)
        for name, value in file.attrs.items():
            target.attrs[name] = value
