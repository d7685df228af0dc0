"""The text of ``description.json``: what the payload is, its variables with their parts, and a digest of each member.

The digests of single parts are in the members, whose own descriptions list them. So this text is small where a model
has very many parts, and a process reports no more than the digest of its member. Sizes are written with a fixed width,
so that the length of the text is known before the members are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats.description import (
    NOT_OURS,
    PREFIX,
    RESERVED,
    digest_of,
    is_digests,
    sealed,
    to_json,
    unsealed,
)
from ckptstore.formats.sharded.grid import Grid, whole
from ckptstore.formats.sharded.shards import ShardedVariable, member_of
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.random_access import RandomAccess

DESCRIPTION = "description.json"
_OWN = ("processes", "process", "files", "encoding")
# The text of a number of bytes is this long, filled with blanks.
_DIGITS = 19
_UNKNOWN = Written(nbytes=0, digest=PREFIX + "0" * 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedVariable:
    """A variable as the description lists it.

    Attributes:
        dtype: The name of its dtype.
        grid: Its parts.
        sharding: See `ckptstore.formats.sharded.shards.ShardedVariable`.
    """

    dtype: str
    grid: Grid
    sharding: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of an open payload.

    Attributes:
        fields: The writer's fields.
        variables: The variables, by path.
        documents: The digest of each document, by name.
        files: Size and digest of each process's member, by process.
    """

    fields: Mapping[str, Any]
    variables: Mapping[str, DescribedVariable]
    documents: Mapping[str, str]
    files: tuple[Written, ...]

    @cached_property
    def processes(self) -> int:
        """The number of processes that wrote the payload."""
        return len(self.files)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Refuse a caller's fields that have a name of ours.

    Raises:
        InvalidArgumentError: One has.
    """
    for name in (*RESERVED, *_OWN):
        if name in fields:
            raise InvalidArgumentError(argument="description", value=name, reason="is a reserved name")


class DescriptionText:
    """The text before the members' sizes and digests are known.

    Args:
        fields: The caller's fields; JSON values.
        documents: The documents, by name.
        variables: All variables.
        processes: The number of processes.

    Raises:
        InvalidArgumentError: `fields` is not JSON.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        documents: Mapping[str, bytes],
        variables: Iterable[ShardedVariable],
        processes: int,
    ) -> None:
        found = {
            **fields,
            "documents": {name: digest_of(document) for name, document in documents.items()},
            "variables": {variable.path: _entry(variable) for variable in variables},
            "processes": processes,
        }
        self._head = to_json(found, "description").decode("ascii").removesuffix("}")
        self._processes = processes
        self.nbytes = len(self.complete(dict.fromkeys(range(processes), _UNKNOWN)))

    def complete(self, files: Mapping[int, Written]) -> bytes:
        """Return the text, exactly `nbytes` bytes long.

        Args:
            files: Size and digest of each process's member.
        """
        entries = (
            f'"{member_of(process)}": {{"nbytes": {files[process].nbytes:<{_DIGITS}d}, '
            f'"digest": "{files[process].digest}"}}'
            for process in range(self._processes)
        )
        return sealed(f'{self._head}, "files": {{{", ".join(entries)}}}, "encoding": "hdf5')


def _entry(variable: ShardedVariable) -> dict[str, Any]:
    grid = variable.grid
    entry: dict[str, Any] = {"shape": grid.shape, "dtype": stored_name(variable.dtype)}
    if grid.owners != (0,):
        entry |= {"cuts": grid.cuts, "owners": grid.owners}
    if variable.sharding is not None:
        entry["sharding"] = variable.sharding
    return entry


def stored_name(dtype: Any) -> str:
    """Return the name of a dtype as it is read back: all text is of variable length then.

    Example:
        >>> import numpy as np
        >>> stored_name(np.dtype("U5")), stored_name(np.dtype(">f4"))
        ('object', 'float32')
    """
    return "object" if dtype.kind in "UO" else str(dtype.name)


def parse(source: RandomAccess) -> Description:
    """Return the description that a member holds.

    Raises:
        CorruptPayloadError: It is damaged.
        StorageError: It cannot be read.
    """
    found = unsealed(source, source.read(0, source.nbytes))
    try:
        return _parsed(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise source.corrupt(NOT_OURS) from error


def _parsed(found: dict[str, Any]) -> Description:
    documents, variables, processes = found.pop("documents"), found.pop("variables"), found.pop("processes")
    files, encoding = found.pop("files"), found.pop("encoding")
    if encoding != "hdf5" or not is_digests(documents) or type(processes) is not int:
        raise ValueError("it has fields of other types")
    written = tuple(_written(files[member_of(process)]) for process in range(min(processes, len(files))))
    if not written or len(written) != processes or len(files) != processes:
        raise ValueError("its list of members is not complete")
    return Description(
        fields=found,
        variables={path: _variable(entry, processes) for path, entry in variables.items()},
        documents=documents,
        files=written,
    )


def _written(entry: Mapping[str, Any]) -> Written:
    nbytes, digest = entry["nbytes"], entry["digest"]
    if type(nbytes) is not int or not isinstance(digest, str):
        raise TypeError(json.dumps(entry))
    return Written(nbytes=nbytes, digest=digest)


def _variable(entry: Mapping[str, Any], processes: int) -> DescribedVariable:
    shape = _integers(entry["shape"])
    grid = whole(shape)
    if "cuts" in entry:
        grid = Grid(cuts=tuple(map(_integers, entry["cuts"])), owners=_integers(entry["owners"]))
    dtype, sharding = entry["dtype"], entry.get("sharding")
    if grid.shape != shape or not set(grid.owners) <= set(range(processes)):
        raise ValueError("its parts are not those of its shape")
    if not isinstance(dtype, str) or not isinstance(sharding, dict | None):
        raise TypeError(json.dumps(entry))
    return DescribedVariable(dtype=dtype, grid=grid, sharding=sharding)


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or value < 0 for value in values):
        raise TypeError(f"{values} are no indices")
    return tuple(values)


def corrupt_member(source: RandomAccess, process: int, reason: str) -> CorruptPayloadError:
    """Return the error for a member that is not what the description says."""
    return source.corrupt(f"{member_of(process)}: {reason}")
