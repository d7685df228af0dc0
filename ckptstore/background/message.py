"""A snapshot and the request to save it, as bytes in memory that another process sees.

A message begins with a head of fixed size. The variables follow, each aligned. Behind them lies what is small: the
structure (paths, shapes, dtypes), the documents of a ``.keras`` archive, the training state, and the request. The
structure is worked out once, and used again while the model's structure stays the same.

The pickled parts never leave the two processes, which run the same code; a payload holds no pickle.
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
from ckptstore.formats.sharded.shards import Shards
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.system.arrays import Array
from ckptstore.system.shared_memory import SharedMemory, aligned

# The message's number, the offset of its body, the body's length, seconds that the step has waited.
_HEAD = struct.Struct("<QQQd")
_FIRST = aligned(_HEAD.size)
# When memory has to grow, it grows by a quarter of the small parts more, so that it need not grow again soon.
_SLACK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveMessage:
    """One snapshot to be saved, as the worker reads it from a slot.

    Attributes:
        number: Counts the messages of one fit, from 1.
        request: How it is to be saved.
        snapshot: The model, as views of the memory.
        may_wait: True if this save may be left out, so that the one after it need not be committed at once.
    """

    number: int
    request: SaveRequest
    snapshot: Snapshot
    may_wait: bool


@dataclass(frozen=True, slots=True)
class _Span:
    """The place of an array in the memory, with its shape and dtype."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """The parts of a message that stay the same from snapshot to snapshot."""

    number: int
    spans: tuple[_Span, ...]
    text: bytes
    end: int


class MessageWriter:
    """Writes messages, and reuses the parts that one has in common with the next."""

    def __init__(self) -> None:
        self._variables: tuple[Variable, ...] | None = None
        self._attributes: Mapping[str, Mapping[str, str]] | None = None
        self._shards: Shards | None = None
        self._structure = _Structure(number=0, spans=(), text=b"", end=_FIRST)
        self._views: dict[int, tuple[tuple[int, int] | None, list[Array]]] = {}

    def prepare(self, memory: SharedMemory, snapshot: Snapshot) -> None:
        """Let a thread make room for messages of this kind, so that the first save need not wait for it."""
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
        """Write a message into memory that nobody reads meanwhile; a crash leaves bytes that no worker ever reads.

        The model must stay as it is until this returns, and may change afterwards.
        """
        structure = self._structure_of(snapshot)
        end = structure.end
        structure_at, end = (end, len(structure.text)), end + len(structure.text)
        documents = {}
        for name, document in snapshot.documents.items():
            documents[name] = (end, len(document))
            end += len(document)
        spans = {}
        for name, array in _arrays(snapshot).items():
            spans[name] = _Span(aligned(end), array.shape, array.dtype)
            end = spans[name].end
        body = pickle.dumps(
            {
                "format": snapshot.format,
                "structure": (structure.number, *structure_at),
                "documents": documents,
                "state": None if snapshot.state is None else (snapshot.state.document, spans),
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
            np.copyto(memory.array(spans[name].offset, array.shape, array.dtype), array)
        memory.put(end, body)
        memory.put(0, _HEAD.pack(number, end, len(body), request.waited_s()))

    def _reserve(self, memory: SharedMemory, fixed: int, nbytes: int) -> None:
        if nbytes > memory.nbytes:
            memory.reserve(nbytes + (nbytes - fixed) // _SLACK)

    def _structure_of(self, snapshot: Snapshot) -> _Structure:
        # Compared by identity: snapshots of the same structure hold the same tuple.
        same = snapshot.variables is self._variables and snapshot.attributes is self._attributes
        if not same or snapshot.shards is not self._shards:
            self._variables, self._attributes = snapshot.variables, snapshot.attributes
            self._shards = snapshot.shards
            spans, end = [], _FIRST
            for variable in snapshot.variables:
                spans.append(_Span(aligned(end), variable.shape, variable.dtype))
                end = spans[-1].end
            facts = [(variable.path, dict(variable.attributes)) for variable in snapshot.variables]
            attributes = {path: dict(values) for path, values in snapshot.attributes.items()}
            # Where the processes of a save meet is known to each process by itself.
            shards = None if snapshot.shards is None else replace(snapshot.shards, reports=None)
            self._structure = _Structure(
                number=self._structure.number + 1,
                spans=tuple(spans),
                text=pickle.dumps((spans, facts, attributes, shards), protocol=5),
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
        # The thread that prepares may still ask for a structure that has changed meanwhile.
        key = structure.number, memory.nbytes
        found, views = self._views.get(id(memory), (None, []))
        if found != key:
            views = [memory.array(span.offset, span.shape, span.dtype) for span in structure.spans]
            self._views[id(memory)] = key, views
        return views


class MessageReader:
    """Reads messages from one slot, in the process that commits them."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._number = 0
        self._variables: tuple[Variable, ...] = ()
        self._attributes: Mapping[str, Mapping[str, str]] = {}
        self._shards: Shards | None = None

    def number(self) -> int:
        """Return the number of the message in the memory; while one is replaced, the number of the newer."""
        if self._memory.refresh():
            self._number = 0
        return int(_HEAD.unpack(self._memory.get(0, _HEAD.size))[0])

    def read(self) -> SaveMessage:
        """Return the message in the memory; its arrays are views, valid until the slot is given back."""
        memory = self._memory
        if memory.refresh():
            self._number = 0
        number, begin, nbytes, waited_s = _HEAD.unpack(memory.get(0, _HEAD.size))
        body = pickle.loads(memory.get(begin, nbytes))
        self._read_structure(*body["structure"])
        state = None
        if body["state"] is not None:
            document, spans = body["state"]
            state = TrainingState(
                document=document, arrays={name: self._array(span) for name, span in spans.items()}
            )
        snapshot = Snapshot(
            format=body["format"],
            variables=self._variables,
            attributes=self._attributes,
            documents={name: memory.get(*place) for name, place in body["documents"].items()},
            state=state,
            shards=self._shards,
        )
        request = replace(body["request"], blocked_s=waited_s)
        return SaveMessage(number=number, request=request, snapshot=snapshot, may_wait=body["may_wait"])

    def _read_structure(self, number: int, offset: int, nbytes: int) -> None:
        if number == self._number:
            return
        spans, facts, self._attributes, self._shards = pickle.loads(self._memory.get(offset, nbytes))
        self._variables = tuple(
            Variable(
                path=path,
                shape=span.shape,
                dtype=span.dtype,
                read=partial(self._array, span),
                attributes=attributes,
            )
            for span, (path, attributes) in zip(spans, facts, strict=True)
        )
        self._number = number

    def _array(self, span: _Span) -> Array:
        return self._memory.array(span.offset, span.shape, span.dtype)


def _arrays(snapshot: Snapshot) -> Mapping[str, Array]:
    return {} if snapshot.state is None else snapshot.state.arrays
