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
from ckptstore.system.shared_memory import SharedMemory, aligned

# Number of the message, where its body begins, the body's length, seconds that the step has waited.
_HEAD = struct.Struct("<QQQd")
_FIRST = aligned(_HEAD.size)
_SLACK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveMessage:
    """What a writer finds in a slot.

    Attributes:
        number: Counts the messages of one fit, from 1.
        request: What is to be saved.
        snapshot: The model, as views of the memory.
        may_wait: Whether what is saved may be left out, so that what comes behind it need not be saved at once.
    """

    number: int
    request: SaveRequest
    snapshot: Snapshot
    may_wait: bool


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
    slots: tuple[_Array, ...]
    text: bytes
    end: int


class MessageWriter:
    """Writes messages; keeps what one has in common with the next."""

    def __init__(self) -> None:
        self._variables: tuple[Variable, ...] | None = None
        self._attributes: Mapping[str, Mapping[str, str]] | None = None
        self._structure = _Structure(number=0, slots=(), text=b"", end=_FIRST)
        self._views: dict[int, tuple[tuple[int, int] | None, list[Array]]] = {}

    def prepare(self, memory: SharedMemory, snapshot: Snapshot) -> None:
        """Let a thread make room for messages of this kind, so that the first one need not wait for it."""
        tail = sum(map(len, snapshot.documents.values())) + sum(a.nbytes for a in _arrays(snapshot).values())
        structure = self._structure_of(snapshot)
        self._reserve(memory, structure.end, structure.end + len(structure.text) + 2 * tail)
        memory.prefault_in_background(partial(self._prepare_copy, memory, structure, snapshot))

    def write(
        self,
        memory: SharedMemory,
        snapshot: Snapshot,
        request: SaveRequest,
        number: int,
        *,
        may_wait: bool = False,
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
        slots = {}
        for name, array in _arrays(snapshot).items():
            slots[name] = _Array(aligned(end), array.shape, array.dtype)
            end = slots[name].end
        body = pickle.dumps(
            {
                "format": snapshot.format,
                "structure": (structure.number, *structure_at),
                "documents": documents,
                "state": None if snapshot.state is None else (snapshot.state.document, slots),
                "request": request,
                "may_wait": may_wait,
            },
            protocol=5,
        )
        self._reserve(memory, structure.end, end + len(body))
        memory.prefault()
        self._copy(memory, structure, snapshot)
        memory.put(structure_at[0], structure.text)
        for name, (offset, _) in documents.items():
            memory.put(offset, snapshot.documents[name])
        for name, array in _arrays(snapshot).items():
            np.copyto(memory.array(slots[name].offset, array.shape, array.dtype), array)
        memory.put(end, body)
        memory.put(0, _HEAD.pack(number, end, len(body), request.waited_s()))

    def _reserve(self, memory: SharedMemory, fixed: int, nbytes: int) -> None:
        if nbytes > memory.nbytes:
            memory.reserve(nbytes + (nbytes - fixed) // _SLACK)

    def _structure_of(self, snapshot: Snapshot) -> _Structure:
        # By identity: whoever makes snapshots of one structure hands over the same tuple again.
        if snapshot.variables is not self._variables or snapshot.attributes is not self._attributes:
            self._variables, self._attributes = snapshot.variables, snapshot.attributes
            slots, end = [], _FIRST
            for variable in snapshot.variables:
                slots.append(_Array(aligned(end), variable.shape, variable.dtype))
                end = slots[-1].end
            facts = [(variable.path, dict(variable.attributes)) for variable in snapshot.variables]
            attributes = {path: dict(values) for path, values in snapshot.attributes.items()}
            self._structure = _Structure(
                number=self._structure.number + 1,
                slots=tuple(slots),
                text=pickle.dumps((slots, facts, attributes), protocol=5),
                end=end,
            )
        return self._structure

    def _copy(self, memory: SharedMemory, structure: _Structure, snapshot: Snapshot) -> None:
        views = self._views_of(memory, structure)
        if snapshot.copy is not None:
            snapshot.copy(views)
            return
        for view, variable in zip(views, snapshot.variables, strict=True):
            np.copyto(view, variable.read())

    def _prepare_copy(self, memory: SharedMemory, structure: _Structure, snapshot: Snapshot) -> None:
        if snapshot.copy is not None:
            snapshot.copy.prepare(self._views_of(memory, structure))

    def _views_of(self, memory: SharedMemory, structure: _Structure) -> list[Array]:
        # The thread that prepares may still be at those of a structure that has changed meanwhile.
        key = structure.number, memory.nbytes
        found, views = self._views.get(id(memory), (None, []))
        if found != key:
            views = [memory.array(one.offset, one.shape, one.dtype) for one in structure.slots]
            self._views[id(memory)] = key, views
        return views


class MessageReader:
    """Reads messages from one slot, in the process that commits them."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._number = 0
        self._variables: tuple[Variable, ...] = ()
        self._attributes: Mapping[str, Mapping[str, str]] = {}

    def number(self) -> int:
        """Return the number of the message that lies in the memory, or, of one that is being replaced, of the newer."""
        if self._memory.refresh():
            self._number = 0
        return int(_HEAD.unpack(self._memory.get(0, _HEAD.size))[0])

    def read(self) -> SaveMessage:
        """Return the message that lies in the memory; its arrays are views, right until the slot is given back."""
        memory = self._memory
        if memory.refresh():
            self._number = 0
        number, begin, nbytes, waited_s = _HEAD.unpack(memory.get(0, _HEAD.size))
        body = pickle.loads(memory.get(begin, nbytes))
        self._read_structure(*body["structure"])
        state = None
        if body["state"] is not None:
            document, slots = body["state"]
            state = TrainingState(
                document=document, arrays={name: self._array(one) for name, one in slots.items()}
            )
        snapshot = Snapshot(
            format=body["format"],
            variables=self._variables,
            attributes=self._attributes,
            documents={name: memory.get(*slot) for name, slot in body["documents"].items()},
            state=state,
        )
        request = replace(body["request"], blocked_s=waited_s)
        return SaveMessage(number=number, request=request, snapshot=snapshot, may_wait=body["may_wait"])

    def _read_structure(self, number: int, offset: int, nbytes: int) -> None:
        if number == self._number:
            return
        slots, facts, self._attributes = pickle.loads(self._memory.get(offset, nbytes))
        self._variables = tuple(
            Variable(
                path=path,
                shape=one.shape,
                dtype=one.dtype,
                read=partial(self._array, one),
                attributes=attributes,
            )
            for one, (path, attributes) in zip(slots, facts, strict=True)
        )
        self._number = number

    def _array(self, slot: _Array) -> Array:
        return self._memory.array(slot.offset, slot.shape, slot.dtype)


def _arrays(snapshot: Snapshot) -> Mapping[str, Array]:
    return {} if snapshot.state is None else snapshot.state.arrays
