"""A payload format of several members, for tests: a description, and a file for each array.

It takes the place of the format ``weights``, so that a store of directories needs no other name, and no other schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError
from ckptstore.formats import registry
from ckptstore.formats.description import RESERVED, digest_of, to_json
from ckptstore.formats.payload_format import EncodedMember, PayloadFormat, Progress, write_members
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.records import Format
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.names import SUFFIXES
from ckptstore.storage.payloads.stored import StoredPayload

DESCRIPTION = "description.json"


@dataclass
class Member:
    """A file of one array."""

    name: str
    nbytes: int
    read: Callable[[], np.ndarray]

    def write(self, sink: Sink) -> None:
        sink.write(np.ascontiguousarray(self.read()).tobytes())


class EncodedDirectory:
    """The arrays' files, then the description, which needs their digests."""

    def __init__(self, snapshot: Snapshot, fields: Mapping[str, Any]) -> None:
        state = snapshot.state
        to_json({} if state is None else state.document, "state.document")
        readers = {f"variables/{v.path}": v.read for v in snapshot.variables}
        arrays = {} if state is None else state.arrays
        readers |= {f"state/{name}": partial(np.asarray, array) for name, array in arrays.items()}
        entries = {
            name: {
                "shape": list(read().shape),
                "dtype": read().dtype.name,
                "digest": digest_of(read().tobytes()),
            }
            for name, read in readers.items()
        }
        document = None if state is None else json.dumps(state.document)
        body = {**fields, "entries": entries, "document": document}
        text = to_json({**body, "seal": digest_of(to_json(body, "description"))}, "description")
        self.members: Sequence[EncodedMember] = [
            *(Member(name, read().nbytes, read) for name, read in readers.items()),
            Member(DESCRIPTION, len(text), partial(np.frombuffer, text, np.uint8)),
        ]
        self.nbytes = sum(member.nbytes for member in self.members)

    def write_to(self, upload: Upload) -> None:
        write_members(self, upload)


class OpenDirectory:
    """An open payload of this format."""

    def __init__(self, format: DirectoryFormat, stored: StoredPayload) -> None:
        self.format: PayloadFormat = format
        self.stored = stored
        file = stored.member(DESCRIPTION)
        try:
            self.body = json.loads(file.read(0, file.nbytes))
            sealed = digest_of(to_json({k: v for k, v in self.body.items() if k != "seal"}, "description"))
        except (ValueError, AttributeError, RecursionError) as error:
            raise self.corrupt("its description is not JSON") from error
        if self.body.get("seal") != sealed:
            raise self.corrupt("its description is damaged")

    def corrupt(self, reason: str) -> CorruptPayloadError:
        return self.stored.corrupt(reason)

    def is_described(self) -> bool:
        return True

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        found = self.body["entries"].items()
        return {name.removeprefix(folder): entry for name, entry in found if name.startswith(folder)}

    def description(self) -> dict[str, Any]:
        fields = {
            name: value for name, value in self.body.items() if name not in ("entries", "document", "seal")
        }
        arrays = self._entries("state/")
        document = self.body["document"]
        state = None if document is None else {"document": digest_of(document.encode()), "arrays": arrays}
        return {**fields, "variables": self._entries("variables/"), "documents": {}, "state": state}

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        entries = self._entries("variables/").items()
        return {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in entries}

    def documents(self) -> dict[str, bytes]:
        return {}

    processes = 1

    def state(self, process: int = 0) -> TrainingState | None:
        if self.body["document"] is None:
            return None
        arrays = {name: self.array(f"state/{name}", checked=True) for name in self._entries("state/")}
        return TrainingState(document=json.loads(self.body["document"]), arrays=arrays)

    def array(self, member: str, *, checked: bool = False) -> np.ndarray:
        entry, file = self.body["entries"][member], self.stored.member(member)
        data = bytearray(file.nbytes)
        file.read_into(0, memoryview(data))
        if checked and digest_of(data) != entry["digest"]:
            raise self.corrupt(f"{member} differs from its digest")
        if len(data) != np.prod(entry["shape"], dtype=int) * np.dtype(entry["dtype"]).itemsize:
            raise self.corrupt(f"{member} is cut short")
        return np.frombuffer(data, entry["dtype"]).reshape(entry["shape"])

    def variables(self, as_views: Collection[str] = ()) -> Mapping[str, np.ndarray]:
        return _Arrays(self)

    def read_region(self, path: str, start: Sequence[int], stop: Sequence[int], out: np.ndarray) -> None:
        out[...] = self.array(f"variables/{path}")[tuple(map(slice, start, stop))]

    def verify_regions(self, regions: Any, *, process: int, processes: int) -> int:
        return 0

    def division(self) -> None:
        return None

    def hdf5(self) -> AbstractContextManager[Any]:
        raise InvalidArgumentError(argument="payload", value=self.stored.name, reason="is no HDF5 file")


class _Arrays(Mapping[str, np.ndarray]):
    def __init__(self, opened: OpenDirectory) -> None:
        self._opened = opened

    def __getitem__(self, name: str) -> np.ndarray:
        return self._opened.array(f"variables/{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened.layout())

    def __len__(self) -> int:
        return len(self._opened.layout())


class DirectoryFormat:
    """The format: see `ckptstore.formats.payload_format.PayloadFormat`."""

    name: Format = "weights"
    suffix = SUFFIXES["weights"]
    run_suffix = "-weights"
    noun = "a directory"
    is_whole_model = False
    allows_weights_only = True
    has_documents = False
    has_shards = False
    is_directory = True
    keras_fills_it = False
    matches_by_order = False
    loading_code = ""
    exports_as: tuple[Format, ...] = ("weights",)

    def streams(self, snapshot: Snapshot) -> bool:
        return True

    def encode(self, snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedDirectory:
        if snapshot.documents or set(RESERVED) & set(description):
            raise InvalidArgumentError(
                argument="documents", value=list(description), reason="are not for this format"
            )
        return EncodedDirectory(snapshot, description)

    def recognises(self, stored: StoredPayload) -> bool:
        return DESCRIPTION in stored.members

    @contextmanager
    def open(self, stored: StoredPayload) -> Iterator[OpenDirectory]:
        yield OpenDirectory(self, stored)

    def verify_share(
        self,
        stored: StoredPayload,
        *,
        nbytes: int,
        digest: str,
        process: int,
        processes: int,
        progress: Any = None,
    ) -> None:
        stored.verify(nbytes, digest, progress)

    def verify(self, opened: OpenDirectory) -> list[str]:  # type: ignore[override]
        entries, present = opened.body["entries"], set(opened.stored.members) - {DESCRIPTION}
        problems = [f"{name} is missing" for name in entries if name not in present]
        problems += [f"{name} is not in the description" for name in present if name not in entries]
        for name in present.intersection(entries):
            if opened.stored.member(name).digest() != entries[name]["digest"]:
                problems.append(f"{name} differs from its digest")
        return problems

    def check_structure(self, opened: OpenDirectory) -> None:
        """The description is always there."""

    def decode(self, opened: OpenDirectory, progress: Progress | None = None) -> Snapshot:
        def read(name: str) -> np.ndarray:
            array = opened.array(f"variables/{name}", checked=True)
            if progress is not None:
                progress(array.nbytes)
            return array

        layout = opened.layout().items()
        variables = tuple(
            Variable(path=name, shape=shape, dtype=np.dtype(dtype), read=partial(read, name))
            for name, (shape, dtype) in layout
        )
        return Snapshot(format=self.name, variables=variables, state=opened.state())

    def export_nbytes(self, stored: StoredPayload, format: Format) -> int:
        raise InvalidArgumentError(argument="path", value=stored.name, reason="a directory is not exported")

    def export(self, stored: StoredPayload, format: Format, sink: Sink, **options: Any) -> None:
        self.export_nbytes(stored, format)


@contextmanager
def registered(format: Any) -> Iterator[None]:
    """Let a format take the place of the registered one of its name for the block."""
    with pytest.MonkeyPatch.context() as patch:
        formats = tuple(format if known.name == format.name else known for known in registry.all_formats())
        patch.setattr(registry, "_FORMATS", formats)
        patch.setitem(registry._BY_NAME, format.name, format)
        yield
