"""A snapshot, and what is to be done with it, as bytes in memory that another process sees.

It begins with a head of fixed size, then the variables, each aligned; behind them what is small: the structure (paths,
shapes, dtypes), the documents of a ``.keras`` archive, the training state, the request. The structure is worked out
once and used again while the model's stays the same.

The part that is pickled never leaves the two processes, which run the same code; a payload holds no pickle.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ckptstore.commit.request import SaveRequest
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.system.arrays import Array
from ckptstore.system.shared_memory import Memory, aligned

# Number of the letter, where its body begins, the body's length, seconds that the step has waited.
_HEAD = struct.Struct("<QQQd")
_FIRST = aligned(_HEAD.size)
_SLACK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What a writer finds in a place.

    Attributes:
        number: Counts the letters of one fit, from 1.
        request: What is to be saved.
        snapshot: The model, as views of the memory.
        patient: Whether what is saved may be left out, so that what comes behind it need not be saved at once.
    """

    number: int
    request: SaveRequest
    snapshot: Snapshot
    patient: bool


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array lies, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """What stays the same from snapshot to snapshot."""

    number: int
    places: tuple[_Array, ...]
    text: bytes
    end: int


class LetterWriter:
    """Writes letters; keeps what one has in common with the next."""

    def __init__(self) -> None:
        self._variables: tuple[Variable, ...] | None = None
        self._attributes: Mapping[str, Mapping[str, str]] | None = None
        self._structure = _Structure(number=0, places=(), text=b"", end=_FIRST)
        self._views: dict[int, tuple[tuple[int, int] | None, list[Array]]] = {}

    def prepare(self, memory: Memory, snapshot: Snapshot) -> None:
        """Let a thread make room for letters of this kind, so that the first one need not wait for it."""
        tail = sum(map(len, snapshot.documents.values())) + sum(a.nbytes for a in _arrays(snapshot).values())
        structure = self._structure_of(snapshot)
        self._reserve(memory, structure.end, structure.end + len(structure.text) + 2 * tail)
        memory.populate_beside(partial(self._prepare_copy, memory, structure, snapshot))

    def write(
        self, memory: Memory, snapshot: Snapshot, request: SaveRequest, number: int, *, patient: bool = False
    ) -> None:
        """Copy a snapshot into memory that nobody reads meanwhile; a crash leaves what no writer ever looks at.

        The model must stay as it is until this returns, and need not afterwards.
        """
        structure = self._structure_of(snapshot)
        end = structure.end
        structure_at, end = (end, len(structure.text)), end + len(structure.text)
        documents = {}
        for name, document in snapshot.documents.items():
            documents[name] = (end, len(document))
            end += len(document)
        places = {}
        for name, array in _arrays(snapshot).items():
            places[name] = _Array(aligned(end), array.shape, array.dtype)
            end = places[name].end
        body = pickle.dumps(
            {
                "format": snapshot.format,
                "structure": (structure.number, *structure_at),
                "documents": documents,
                "state": None if snapshot.state is None else (snapshot.state.document, places),
                "request": request,
                "patient": patient,
            },
            protocol=5,
        )
        self._reserve(memory, structure.end, end + len(body))
        memory.populate()
        self._copy(memory, structure, snapshot)
        memory.put(structure_at[0], structure.text)
        for name, (offset, _) in documents.items():
            memory.put(offset, snapshot.documents[name])
        for name, array in _arrays(snapshot).items():
            np.copyto(memory.array(places[name].offset, array.shape, array.dtype), array)
        memory.put(end, body)
        memory.put(0, _HEAD.pack(number, end, len(body), request.waited_s()))

    def _reserve(self, memory: Memory, fixed: int, nbytes: int) -> None:
        if nbytes > memory.nbytes:
            memory.reserve(nbytes + (nbytes - fixed) // _SLACK)

    def _structure_of(self, snapshot: Snapshot) -> _Structure:
        # By identity: whoever makes snapshots of one structure hands over the same tuple again.
        if snapshot.variables is not self._variables or snapshot.attributes is not self._attributes:
            self._variables, self._attributes = snapshot.variables, snapshot.attributes
            places, end = [], _FIRST
            for variable in snapshot.variables:
                places.append(_Array(aligned(end), variable.shape, variable.dtype))
                end = places[-1].end
            facts = [(variable.path, dict(variable.attributes)) for variable in snapshot.variables]
            attributes = {path: dict(values) for path, values in snapshot.attributes.items()}
            self._structure = _Structure(
                number=self._structure.number + 1,
                places=tuple(places),
                text=pickle.dumps((places, facts, attributes), protocol=5),
                end=end,
            )
        return self._structure

    def _copy(self, memory: Memory, structure: _Structure, snapshot: Snapshot) -> None:
        views = self._views_of(memory, structure)
        if snapshot.copy is not None:
            snapshot.copy(views)
            return
        for view, variable in zip(views, snapshot.variables, strict=True):
            np.copyto(view, variable.read())

    def _prepare_copy(self, memory: Memory, structure: _Structure, snapshot: Snapshot) -> None:
        if snapshot.copy is not None:
            snapshot.copy.prepare(self._views_of(memory, structure))

    def _views_of(self, memory: Memory, structure: _Structure) -> list[Array]:
        # The thread that prepares may still be at those of a structure that has changed meanwhile.
        key = structure.number, memory.nbytes
        found, views = self._views.get(id(memory), (None, []))
        if found != key:
            views = [memory.array(one.offset, one.shape, one.dtype) for one in structure.places]
            self._views[id(memory)] = key, views
        return views


class LetterReader:
    """Reads letters from one place, in the process that commits them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._number = 0
        self._variables: tuple[Variable, ...] = ()
        self._attributes: Mapping[str, Mapping[str, str]] = {}

    def number(self) -> int:
        """Return the number of the letter that lies in the memory, or, of one that is being replaced, of the newer."""
        if self._memory.refresh():
            self._number = 0
        return int(_HEAD.unpack(self._memory.get(0, _HEAD.size))[0])

    def read(self) -> Letter:
        """Return the letter that lies in the memory; its arrays are views, right until the place is given back."""
        memory = self._memory
        if memory.refresh():
            self._number = 0
        number, begin, nbytes, waited_s = _HEAD.unpack(memory.get(0, _HEAD.size))
        body = pickle.loads(memory.get(begin, nbytes))
        self._read_structure(*body["structure"])
        state = None
        if body["state"] is not None:
            document, places = body["state"]
            state = TrainingState(
                document=document, arrays={name: self._array(one) for name, one in places.items()}
            )
        snapshot = Snapshot(
            format=body["format"],
            variables=self._variables,
            attributes=self._attributes,
            documents={name: memory.get(*place) for name, place in body["documents"].items()},
            state=state,
        )
        request = replace(body["request"], blocked_s=waited_s)
        return Letter(number=number, request=request, snapshot=snapshot, patient=body["patient"])

    def _read_structure(self, number: int, offset: int, nbytes: int) -> None:
        if number == self._number:
            return
        places, facts, self._attributes = pickle.loads(self._memory.get(offset, nbytes))
        self._variables = tuple(
            Variable(
                path=path,
                shape=one.shape,
                dtype=one.dtype,
                read=partial(self._array, one),
                attributes=attributes,
            )
            for one, (path, attributes) in zip(places, facts, strict=True)
        )
        self._number = number

    def _array(self, place: _Array) -> Array:
        return self._memory.array(place.offset, place.shape, place.dtype)


def _arrays(snapshot: Snapshot) -> Mapping[str, Array]:
    return {} if snapshot.state is None else snapshot.state.arrays
