"""Reader of HDF5 files without libhdf5, so that damaged or hostile bytes can do no harm.

It lists the datasets of the plain form that `writer` and, by default, every h5py write: superblock version 0,
version 1 object headers, groups as symbol tables or as links, contiguous datasets. Soft, external and repeated links,
values outside the file, and everything that neither of the two writes are refused by name. No size in the file is
trusted: each is compared with the bytes that are there before anything is allocated, and what structures cost together
is bounded by the file's size (`ckptstore.formats.hdf5.metadata`). Chapters are those of the "HDF5 File Format
Specification", version 3.0.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple, NoReturn

from ckptstore.formats.hdf5.dense_links import DenseLinks
from ckptstore.formats.hdf5.dtypes import StoredType, read_type
from ckptstore.formats.hdf5.metadata import Metadata
from ckptstore.formats.hdf5.text_reader import REFERENCE_SIZE, TextReader
from ckptstore.formats.hdf5.writer import (
    ATTRIBUTE,
    DATASPACE,
    DATATYPE,
    LAYOUT,
    LINK,
    LINK_INFO,
    SIGNATURE,
    UNDEFINED,
)
from ckptstore.storage.random_access import RandomAccess

_EXTERNAL_FILES, _CONTINUATION, _SYMBOL_TABLE = 7, 0x10, 0x11
_SHARED = 0x02
_RANK_MOST = 32
# A compressed dataset of zeros can be this many times smaller than its values; more is a decompression bomb.
_EXPANSION_MOST = 1100
_ELEMENTS_MOST = 1 << 48


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """A dataset of a file.

    Attributes:
        path: Its path, without a leading slash.
        shape: Its shape.
        kind: The storage of its values.
        offset: Offset of the values, or None if they are not in one piece (`refusal` says why).
        refusal: Reason why the values cannot be read; empty if they can.
        texts: The file's texts of variable length.
    """

    path: str
    shape: tuple[int, ...]
    kind: StoredType
    offset: int | None
    refusal: str = ""
    texts: TextReader | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes, as stored."""
        return prod(self.shape) * self.kind.stored.itemsize


def read_datasets(source: RandomAccess) -> dict[str, StoredDataset]:
    """Return all datasets of a file by path, in the order of the file's own lists.

    Raises:
        CorruptPayloadError: It is not an HDF5 file, is damaged, or has a form that neither Keras nor ckptstore
            writes.
        StorageError: The disk cannot be read.
    """
    try:
        return _DatasetReader(source).run()
    except (struct.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise source.corrupt("its HDF5 metadata make no sense") from error


class _Message(NamedTuple):
    kind: int
    body: bytes


class _DatasetReader:
    """A pass over the tree of a file; remembers every address, so that it ends wherever the links lead."""

    def __init__(self, source: RandomAccess) -> None:
        self.source = source
        self._seen: set[int] = set()
        self._metadata = Metadata(source)
        self._texts = TextReader(source)
        self._found: dict[str, StoredDataset] = {}

    def run(self) -> dict[str, StoredDataset]:
        stack = [("", self._root())]
        while stack:
            path, address = stack.pop()
            messages = list(self._messages(address, path))
            kinds = {message.kind for message in messages}
            if DATATYPE in kinds:
                self._found[path] = self._dataset(path, messages)
            elif kinds & {LINK_INFO, _SYMBOL_TABLE}:
                stack += reversed(
                    [(self._joined(path, name), to) for name, to in self._links(path, messages)]
                )
            else:
                raise self.source.corrupt(f"{_shown(path)} is neither a group nor an array")
        placed = [
            (found.offset, found.offset + found.nbytes) for found in self._found.values() if found.offset
        ]
        self._metadata.check_disjoint(placed)
        return self._found

    def _joined(self, path: str, name: str) -> str:
        self._metadata.charge_name(len(path) + len(name))
        return f"{path}/{name}" if path else name

    def _root(self) -> int:
        """Check the superblock (II.A, version 0) and return the address of the root group."""
        source = self.source
        if source.nbytes < 96 or source.read(0, 8) != SIGNATURE:
            raise source.corrupt("it is not an HDF5 file")
        head = self._metadata.take(0, 96)
        if head[8] != 0:
            raise source.corrupt(f"its HDF5 superblock has version {head[8]}; Keras and ckptstore write 0")
        base, _, end, _, _, root = struct.unpack_from("<6Q", head, 24)
        if (head[13], head[14], base) != (8, 8, 0):
            raise source.corrupt("its HDF5 superblock makes no sense")
        if end > source.nbytes:
            raise source.corrupt(f"it is cut short: {source.nbytes:,} bytes of {end:,}")
        return int(root)

    def _visit(self, address: int, what: str) -> None:
        if address in self._seen:
            raise self.source.corrupt(f"{what} is reached in two ways")
        self._seen.add(address)

    def _messages(self, address: int, path: str) -> Iterator[_Message]:
        """Yield the messages of a version 1 object header (IV.A.1.a) and its continuations."""
        self._visit(address, _shown(path))
        version, _, size = struct.unpack("<BxHxxxxI4x", self._metadata.take(address, 16))
        if version != 1:
            raise self.source.corrupt(f"{_shown(path)} has no HDF5 object header of version 1")
        blocks = deque([(address + 16, size)])
        while blocks:
            start, size = blocks.popleft()
            block = self._metadata.take(start, size)
            position = 0
            while position + 8 <= size:
                kind, length, flags = struct.unpack_from("<HHB", block, position)
                body = block[position + 8 : position + 8 + length]
                position += 8 + length
                if position > size:
                    raise self.source.corrupt(f"{_shown(path)} has a message that leaves its header")
                if flags & _SHARED and kind in (DATATYPE, DATASPACE):
                    raise self.source.corrupt(f"{_shown(path)} shares its type with others")
                if kind == _CONTINUATION:
                    blocks.append(struct.unpack_from("<QQ", body))
                    self._visit(blocks[-1][0], f"a part of {_shown(path)}")
                yield _Message(kind, body)

    # --- groups ---------------------------------------------------------------------------------

    def _links(self, path: str, messages: list[_Message]) -> list[tuple[str, int]]:
        links: list[tuple[str, int]] = []
        for kind, body in messages:
            if kind == LINK:
                links.append(self._link(path, body))
            elif kind == _SYMBOL_TABLE:
                links += self._symbol_table(path, *struct.unpack_from("<QQ", body))
            elif kind == LINK_INFO:
                links += self._dense_links(path, body)
        names = [name for name, _ in links]
        if len(set(names)) != len(names) or any(not name or "/" in name for name in names):
            raise self.source.corrupt(f"{_shown(path)} has two members of one name, or one without")
        return links

    def _dense_links(self, path: str, body: bytes) -> Iterator[tuple[str, int]]:
        """Yield the links that a link info message (IV.A.2.c) leads to; a creation index may come first."""
        heap, index = struct.unpack_from("<QQ", body, 2 + 8 * (body[1] & 1))
        if heap == UNDEFINED:
            return
        self._visit(heap, f"a heap of {_shown(path)}")
        for message in DenseLinks(self._metadata, self._fail, heap, index).messages():
            yield self._link(path, message)

    def _fail(self, reason: str) -> NoReturn:
        raise self.source.corrupt(reason)

    def _link(self, path: str, body: bytes) -> tuple[str, int]:
        """Read a link message (IV.A.2.g)."""
        flags, position = body[1], 2
        if flags & 0x08:
            if body[position] != 0:
                raise self.source.corrupt(f"{_shown(path)} holds a soft or external link")
            position += 1
        position += 8 * bool(flags & 0x04) + bool(flags & 0x10)
        width = 1 << (flags & 0x03)
        length = int.from_bytes(body[position : position + width], "little")
        position += width
        if position + length + 8 > len(body):
            raise self.source.corrupt(f"{_shown(path)} has a member whose name does not end")
        (address,) = struct.unpack_from("<Q", body, position + length)
        return body[position : position + length].decode(), address

    def _symbol_table(self, path: str, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """Yield the links of an old-style group: a B-tree, nodes, names in a heap (III.A.1, III.B, III.D)."""
        head = self._metadata.take(heap, 32)
        size, _, start = struct.unpack_from("<QQQ", head, 8)
        if head[:4] != b"HEAP":
            raise self.source.corrupt(f"{_shown(path)} has no heap of names")
        names = self._metadata.take(start, size)
        for node in self._leaves(path, tree):
            entries = self._metadata.take(node, 8)
            if entries[:4] != b"SNOD":
                raise self.source.corrupt(f"{_shown(path)} has a damaged list of members")
            (count,) = struct.unpack_from("<H", entries, 6)
            table = self._metadata.take(node + 8, 40 * count)
            for position in range(0, len(table), 40):
                name_at, address, cached = struct.unpack_from("<QQI", table, position)
                if cached == 2 or address == UNDEFINED:
                    raise self.source.corrupt(f"{_shown(path)} holds a soft link")
                name_end = names.find(b"\0", name_at)
                if name_end < 0:
                    raise self.source.corrupt(f"{_shown(path)} has a member without a name")
                self._metadata.charge_name(name_end - name_at)
                yield names[name_at:name_end].decode(), address

    def _leaves(self, path: str, root: int) -> Iterator[int]:
        stack = [root]
        while stack:
            address = stack.pop()
            self._visit(address, f"a list of {_shown(path)}")
            head = self._metadata.take(address, 24)
            kind, level, count = struct.unpack_from("<BBH", head, 4)
            if head[:4] != b"TREE" or kind != 0:
                raise self.source.corrupt(f"{_shown(path)} has a damaged tree of members")
            keys = self._metadata.take(address + 24, 16 * count)
            children = [child for _, child in struct.iter_unpack("<QQ", keys)]
            if level:
                stack += reversed(children)
            else:
                yield from children

    # --- datasets -------------------------------------------------------------------------------

    def _dataset(self, path: str, messages: list[_Message]) -> StoredDataset:
        bodies: dict[int, bytes] = {}
        mark = None
        for kind, body in messages:
            if kind == ATTRIBUTE:
                mark = self._mark(path, body) or mark
            elif kind == _EXTERNAL_FILES:
                raise self.source.corrupt(f"the values of {path!r} lie in another file")
            else:
                bodies[kind] = body
        if DATASPACE not in bodies or LAYOUT not in bodies:
            raise self.source.corrupt(f"{_shown(path)} is neither a group nor an array")
        kind_found = read_type(bodies[DATATYPE], mark)
        if kind_found is None:
            raise self.source.corrupt(f"{path!r} has a datatype that Keras does not write")
        shape = self._shape(path, bodies[DATASPACE])
        # An empty array takes no bytes, but numpy must still be able to count along its other dimensions.
        too_large = prod(shape) * kind_found.stored.itemsize > _EXPANSION_MOST * self.source.nbytes
        if too_large or prod(max(size, 1) for size in shape) >= _ELEMENTS_MOST:
            raise self.source.corrupt(f"{path!r} claims shape {shape}, more than the file can hold")
        return self._place(path, shape, kind_found, bodies[LAYOUT])

    def _shape(self, path: str, body: bytes) -> tuple[int, ...]:
        """Read a dataspace (IV.A.2.b, versions 1 and 2)."""
        version, rank = body[0], body[1]
        scalar_or_simple = version == 1 or (version == 2 and body[3] in (0, 1))
        if not scalar_or_simple or rank > _RANK_MOST:
            raise self.source.corrupt(f"{path!r} has a shape that Keras does not write")
        return struct.unpack_from(f"<{rank}Q", body, 8 if version == 1 else 4)

    def _place(self, path: str, shape: tuple[int, ...], kind: StoredType, body: bytes) -> StoredDataset:
        """Read the place of the values (IV.A.2.i, version 3)."""
        version, layout = body[0], body[1]
        if version != 3 or layout > 2:
            raise self.source.corrupt(f"{path!r} is stored in a way that Keras does not write")
        if layout != 1:
            refusal = f"{path!r} is stored in chunks or compressed, as Keras and ckptstore do not write"
            return StoredDataset(path=path, shape=shape, kind=kind, offset=None, refusal=refusal)
        offset, nbytes = struct.unpack_from("<QQ", body, 2)
        texts = self._texts if kind.dtype.kind == "O" else None
        dataset = StoredDataset(path=path, shape=shape, kind=kind, offset=offset, texts=texts)
        if dataset.nbytes == 0:
            return StoredDataset(path=path, shape=shape, kind=kind, offset=0)
        if dataset.nbytes != nbytes or offset + nbytes > self.source.nbytes:
            raise self.source.corrupt(
                f"{path!r} claims shape {shape} of {kind.dtype}, {dataset.nbytes:,} bytes that are not there"
            )
        return dataset

    def _mark(self, path: str, body: bytes) -> str | None:
        """Return the text of an attribute ``dtype``, or None for any other attribute (IV.A.2.m)."""
        version, flags, name_size, kind_size, space_size = struct.unpack_from("<BBHHH", body)
        position = 9 if version == 3 else 8
        step = 8 if version == 1 else 1
        if version > 3 or body[position : position + name_size].rstrip(b"\0") != b"dtype" or flags & 1:
            return None
        position += -(-name_size // step) * step
        kind = read_type(body[position : position + kind_size], None)
        position += -(-kind_size // step) * step + -(-space_size // step) * step
        if kind is None or space_size == 0:
            return None
        value = body[position : position + kind.stored.itemsize]
        if kind.dtype.kind == "O":
            if len(value) < REFERENCE_SIZE:
                raise self.source.corrupt(f"{_shown(path)} has an attribute that is cut short")
            (text,) = self._texts.texts(value, f"{path}@dtype")
        else:
            text = value.rstrip(b"\0")
        return text.decode() if kind.dtype.kind in "OS" else None


def _shown(path: str) -> str:
    return repr(path) if path else "the root group"
