"""Decoding of a payload of several members into an ordinary snapshot, to be written in any format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ckptstore.formats.contents import read_bytes, values_of
from ckptstore.formats.decode import decode_hdf5
from ckptstore.formats.description import digest_of
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.sharded.grid import Part
from ckptstore.formats.sharded.opened import OpenSharded
from ckptstore.formats.sharded.shards import ShardedVariable, Shards, member_of
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.system.arrays import Array

Progress = Callable[[int], object]


def decode_sharded(opened: OpenSharded, progress: Progress | None = None) -> Snapshot:
    """Return the contents as a snapshot; see `ckptstore.formats.payload_format.PayloadFormat.decode`.

    Its variables are whole, and its state is that of process 0. Written in this format again, it keeps its parts, and
    the state of each process.
    """
    processes = range(opened.processes)
    digests = [opened.member_description(process)["variables"] for process in processes]
    found = {
        path: [(part, *opened.dataset(path, part)) for part in variable.grid.parts()]
        for path, variable in opened.described.variables.items()
    }
    dtypes = {path: parts[0][2].kind.dtype for path, parts in found.items()}
    variables = tuple(
        Variable(
            path=path,
            shape=variable.grid.shape,
            dtype=dtypes[path],
            read=partial(_read, opened, path, digests, progress),
        )
        for path, variable in opened.described.variables.items()
    )
    members = tuple(decode_hdf5(opened.member(process), progress) for process in processes)
    shards = Shards(
        variables=tuple(
            ShardedVariable(path=path, dtype=dtypes[path], grid=variable.grid, sharding=variable.sharding)
            for path, variable in opened.described.variables.items()
        ),
        processes=opened.processes,
        members=members,
    )
    return Snapshot(
        format=opened.format.name,
        variables=variables,
        attributes=members[0].attributes,
        documents=opened.documents(),
        state=members[0].state,
        shards=shards,
    )


def _read(
    opened: OpenSharded, path: str, digests: list[Mapping[str, Any]], progress: Progress | None
) -> Array:
    """Return a variable, each part of it checked against its digest."""
    grid = opened.described.variables[path].grid
    whole: Array | None = None
    for part in grid.parts():
        dataset = opened.dataset(path, part)[1]
        values = _checked(opened, f"{path}/{part.name}", part, dataset, digests[part.owner])
        if progress is not None:
            progress(dataset.nbytes)
        if grid.is_whole:
            return values
        if whole is None:
            whole = np.empty(grid.shape, dataset.kind.dtype)
        whole[tuple(map(slice, part.start, part.stop))] = values
    assert whole is not None
    return whole


def _checked(
    opened: OpenSharded, name: str, part: Part, dataset: StoredDataset, digests: Mapping[str, Any]
) -> Array:
    source = opened.member(part.owner).source
    data = read_bytes(source, dataset)
    if name not in digests or digest_of(data.data) != digests[name]["digest"]:
        raise opened.corrupt(f"{member_of(part.owner)}: {name} differs from its digest")
    return values_of(source, dataset, data)
