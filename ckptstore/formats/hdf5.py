"""Lays out HDF5 files before their data are read, so that they can be written in one pass by `write` alone.

libhdf5 goes back and forth in the file it writes, and crashes the process when the disk is full. What is
written here is a plain form of the format that every HDF5 since 1.8 (2008) reads: superblock version 0,
version 1 object headers, groups whose links stand as messages in their own header, contiguous datasets, text
in global heap collections. No B-trees, no checksums, no filters. Chapters in the docstrings below are those
of the "HDF5 File Format Specification", version 3.0.

A file is a superblock and one or more blocks. A block is a tree of groups: headers, then text, then the
values of its datasets in the order given, each aligned to 64 bytes. The root group of the first block may
link to the block behind it; so the first block of a model that is saved again and again stays the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import NamedTuple

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.hdf5_types import VLEN_STRING, StoredType

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_SIZE = 96
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF
# Messages of an object header.
DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT, GROUP_INFO, ATTRIBUTE = 1, 2, 3, 5, 6, 8, 10, 12

_ALIGNMENT = 64
_HEADER_PREFIX = 16
_LINKS_MOST = 65_000  # the number of messages in a header has 16 bits
_NAME_MOST = 60_000  # so has the length of a message
_HEAP_LEAST = 4096  # libhdf5 takes no smaller collection
_HEAP_OBJECTS_MOST = 4000

Attributes = tuple[tuple[str, str], ...]


class Dataset(NamedTuple):
    """One array of the file: where it lies, its shape, how its values are stored, its text attributes."""

    path: str
    shape: tuple[int, ...]
    kind: StoredType
    attributes: Attributes = ()

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes, as stored."""
        return prod(self.shape) * self.kind.stored.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """A laid-out tree: `metadata` at `address`, values of dataset i at ``offsets[i]``, nothing behind `end`.

    `end` is aligned: the next block may begin there. Between the parts lie zeros.
    """

    address: int
    metadata: bytes
    offsets: tuple[int, ...]
    end: int


def superblock(end: int) -> bytes:
    """Return the start of a file of `end` bytes whose first block lies behind it (II.A, version 0)."""
    versions = bytes([0, 0, 0, 0, 0, 8, 8, 0])
    tree_ranks = struct.pack("<HHI", 4, 16, 0)  # of B-trees that libhdf5 may add later; its defaults
    addresses = struct.pack("<QQQQ", 0, UNDEFINED, end, UNDEFINED)
    root = struct.pack("<QQII16x", 0, SUPERBLOCK_SIZE, 0, 0)
    return SIGNATURE + versions + tree_ranks + addresses + root


def lay_out(
    datasets: Iterable[Dataset],
    group_attributes: Iterable[tuple[str, Attributes]] = (),
    *,
    address: int = SUPERBLOCK_SIZE,
    link_to_next: str | None = None,
) -> Block:
    """Work out a block: every byte of its metadata, and where its values go.

    Args:
        datasets: Arrays, by paths relative to the block's root group; missing groups are made.
        group_attributes: Text attributes of groups, by path; missing groups are made.
        address: Where in the file the block begins; its root group's header lies there.
        link_to_next: Name under which the root group links to what lies at the block's end.

    Raises:
        InvalidArgumentError: A path cannot be a name in HDF5, is there twice, or is both a group and an
            array; or a group has too many members.

    Example:
        >>> from ckptstore.formats.hdf5_types import stored_type
        >>> import numpy as np
        >>> block = lay_out([Dataset("vars/0", (2, 3), stored_type(np.dtype("f4")))])
        >>> block.offsets, block.end
        ((448,), 512)
    """
    root = _Group()
    leaves = [root.add_dataset(dataset) for dataset in datasets]
    for path, attributes in group_attributes:
        root.group_at(path.split("/") if path else [], path).attributes += attributes
    if link_to_next is not None:
        if link_to_next in root.members:
            raise _bad_path(link_to_next, "is a reserved name")
        root.add_member(link_to_next, _Elsewhere(), link_to_next)
    heap = _Heap()
    nodes = list(_walk(root))
    for node in nodes:
        node.texts = [heap.add(text) for _, text in node.attributes]
    sizes = [node.size() for node in nodes]
    for node, node_address in zip(nodes, accumulate(sizes, initial=address), strict=False):
        node.address = node_address
    heap.address = address + sum(sizes)
    end = _aligned(heap.address + heap.size())
    for leaf in leaves:
        leaf.data = end
        end = _aligned(end + leaf.dataset.nbytes)
    if link_to_next is not None:
        root.members[link_to_next].address = end
    metadata = b"".join([*(node.encode(heap) for node in nodes), heap.encode()])
    return Block(address, metadata, tuple(leaf.data for leaf in leaves), end)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _padded(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def _message(kind: int, body: bytes) -> bytes:
    """One message of a version 1 header (IV.A.1.a)."""
    nbytes = _padded(len(body))
    return struct.pack("<HHB3x", kind, nbytes, 0) + body.ljust(nbytes, b"\0")


def _header(messages: list[bytes]) -> bytes:
    """A version 1 object header (IV.A.1.a) with one reference to it."""
    body = b"".join(messages)
    return struct.pack("<BBHII4x", 1, 0, len(messages), 1, len(body)) + body


# No creation order, no heap of links, no index (IV.A.2.c); and as many links as there may be stay messages
# (IV.A.2.k), also when somebody adds one with libhdf5.
_GROUP_MESSAGES = [
    _message(LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)),
    _message(GROUP_INFO, struct.pack("<BBHH", 0, 1, 0xFFFF, 0)),
]
# Allocated late, written if set, none set: what h5py says of a dataset that is given its values (IV.A.2.f).
_FILL_MESSAGE = _message(FILL_VALUE, bytes([2, 2, 2, 1, 0, 0, 0, 0]))
_SCALAR = bytes([1, 0, 0, 0, 0, 0, 0, 0])


def _name_bytes(name: str, path: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise _bad_path(path, "has no UTF-8 form") from error
    if not encoded or encoded == b"." or b"\0" in encoded or len(encoded) > _NAME_MOST:
        raise _bad_path(path, "is not a path of names in HDF5")
    return encoded


def check_path(path: str) -> None:
    """Raise InvalidArgumentError for a path that is not a sequence of names in HDF5."""
    for name in path.split("/"):
        _name_bytes(name, path)


def _bad_path(path: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(argument="path", value=path, reason=reason)


def _link_size(name: bytes) -> int:
    return 8 + _padded(3 + (1 if len(name) < 256 else 2) + len(name) + 8)


def _link(name: bytes, address: int) -> bytes:
    """A hard link (IV.A.2.g): the character set is given, and is UTF-8 only where it has to be."""
    wide = len(name) >= 256
    length = struct.pack("<H" if wide else "<B", len(name))
    flags = 0x10 | int(wide)
    return _message(
        LINK, struct.pack("<BBB", 1, flags, not name.isascii()) + length + name + struct.pack("<Q", address)
    )


class _Node:
    """A group or a dataset; `address` is where its header lies, `texts` where its attributes' texts do."""

    __slots__ = ("address", "attributes", "texts")

    def __init__(self, attributes: Attributes = ()) -> None:
        self.address = 0
        self.attributes = attributes
        self.texts: list[_Text] = []

    def size(self) -> int:
        raise NotImplementedError

    def encode(self, heap: _Heap) -> bytes:
        raise NotImplementedError

    def _attributes_size(self) -> int:
        return sum(8 + _padded(9 + len(name.encode()) + 1 + 20 + 8 + 16) for name, _ in self.attributes)

    def _attribute_messages(self, heap: _Heap) -> list[bytes]:
        """Attributes of one text of variable length each (IV.A.2.m, version 3)."""
        messages = []
        for (name, _), text in zip(self.attributes, self.texts, strict=True):
            encoded = name.encode() + b"\0"
            sizes = struct.pack(
                "<BBHHHB", 3, 0, len(encoded), len(VLEN_STRING), len(_SCALAR), not name.isascii()
            )
            messages.append(
                _message(ATTRIBUTE, sizes + encoded + VLEN_STRING + _SCALAR + heap.reference(text))
            )
        return messages


class _Elsewhere(_Node):
    """What a link leads to outside the block."""

    __slots__ = ()


class _Group(_Node):
    __slots__ = ("members", "names")

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[str, _Node] = {}
        self.names: list[bytes] = []

    def add_member(self, name: str, member: _Node, path: str) -> None:
        if len(self.members) >= _LINKS_MOST:
            raise _bad_path(path, f"would be one of more than {_LINKS_MOST:,} in its group")
        self.names.append(_name_bytes(name, path))
        self.members[name] = member

    def group_at(self, names: list[str], whole: str) -> _Group:
        group = self
        for name in names:
            member = group.members.get(name)
            if member is None:
                member = _Group()
                group.add_member(name, member, whole)
            if not isinstance(member, _Group):
                raise _bad_path(whole, "is both a group and an array")
            group = member
        return group

    def add_dataset(self, dataset: Dataset) -> _Leaf:
        *parents, name = dataset.path.split("/")
        group = self.group_at(parents, dataset.path)
        if name in group.members:
            raise _bad_path(dataset.path, "is there twice")
        leaf = _Leaf(dataset)
        group.add_member(name, leaf, dataset.path)
        return leaf

    def size(self) -> int:
        links = sum(map(_link_size, self.names))
        return _HEADER_PREFIX + sum(map(len, _GROUP_MESSAGES)) + links + self._attributes_size()

    def encode(self, heap: _Heap) -> bytes:
        members = zip(self.names, self.members.values(), strict=True)
        links = [_link(name, member.address) for name, member in members]
        return _header([*_GROUP_MESSAGES, *links, *self._attribute_messages(heap)])


class _Leaf(_Node):
    """A dataset; `data` is where its values lie."""

    __slots__ = ("data", "dataset")

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.attributes)
        self.dataset = dataset
        self.data = 0

    def size(self) -> int:
        space = 8 + 8 + 8 * len(self.dataset.shape)
        kind = 8 + _padded(len(self.dataset.kind.message))
        return _HEADER_PREFIX + space + kind + len(_FILL_MESSAGE) + 8 + 24 + self._attributes_size()

    def encode(self, heap: _Heap) -> bytes:
        shape, nbytes = self.dataset.shape, self.dataset.nbytes
        space = struct.pack(f"<BB6x{len(shape)}Q", 1, len(shape), *shape)
        layout = struct.pack("<BBQQ", 3, 1, self.data if nbytes else UNDEFINED, nbytes)
        messages = [
            _message(DATASPACE, space),
            _message(DATATYPE, self.dataset.kind.message),
            _FILL_MESSAGE,
            _message(LAYOUT, layout),
            *self._attribute_messages(heap),
        ]
        return _header(messages)


def _walk(group: _Group) -> Iterator[_Node]:
    """All nodes of the block, the root first, in an order that keeps a group near its members."""
    stack: list[_Node] = [group]
    while stack:
        node = stack.pop()
        if isinstance(node, _Elsewhere):
            continue
        yield node
        if isinstance(node, _Group):
            stack.extend(reversed(node.members.values()))


class _Text(NamedTuple):
    """A text in the heap: its length in bytes, its collection and its place there; ``slot=0`` is no text."""

    nbytes: int
    collection: int
    slot: int


class _Heap:
    """Global heap collections (III.E) for text of variable length.

    Equal texts are kept apart: libhdf5 frees a text when the attribute that owns it is changed.
    """

    def __init__(self) -> None:
        self.address = 0
        self._collections: list[list[bytes]] = []
        self._starts: list[int] = []

    def add(self, text: str) -> _Text:
        encoded = text.encode(errors="surrogatepass")
        if b"\0" in encoded or encoded.decode(errors="replace") != text:
            raise InvalidArgumentError(argument="attribute", value=text, reason="cannot be a text in HDF5")
        if not encoded:
            return _Text(0, 0, 0)
        if not self._collections or len(self._collections[-1]) >= _HEAP_OBJECTS_MOST:
            self._collections.append([])
        self._collections[-1].append(encoded)
        return _Text(len(encoded), len(self._collections) - 1, len(self._collections[-1]))

    def size(self) -> int:
        """Return the size of all collections; nothing may be added after it was asked for."""
        sizes = [self._collection_size(collection) for collection in self._collections]
        self._starts = list(accumulate(sizes, initial=0))
        return self._starts[-1]

    @staticmethod
    def _collection_size(texts: list[bytes]) -> int:
        # With the head and the object that stands for the free space.
        return max(_HEAP_LEAST, 16 + sum(16 + _padded(len(text)) for text in texts) + 16)

    def reference(self, text: _Text) -> bytes:
        address = self.address + self._starts[text.collection] if text.slot else 0
        return struct.pack("<IQI", text.nbytes, address, text.slot)

    def encode(self) -> bytes:
        pieces = []
        for texts in self._collections:
            size = self._collection_size(texts)
            used = [
                struct.pack("<HHIQ", index, 1, 0, len(text)) + text.ljust(_padded(len(text)), b"\0")
                for index, text in enumerate(texts, start=1)
            ]
            collection = b"".join([b"GCOL", struct.pack("<B3xQ", 1, size), *used])
            free = size - len(collection)
            pieces.append(collection + struct.pack("<HHIQ", 0, 0, 0, free).ljust(free, b"\0"))
        return b"".join(pieces)
