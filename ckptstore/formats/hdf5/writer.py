"""Writer of HDF5 files: lays a file out before its data are read, so that it can be written in one pass.

libhdf5 seeks back and forth while it writes, and crashes the process when the disk is full. This module produces a
plain form of the format that every HDF5 since 1.8 (2008) reads: superblock version 0, version 1 object headers,
groups whose links are messages in their own header, contiguous datasets, text in global heap collections. No B-trees,
no checksums, no filters. Chapters in the docstrings below are those of the "HDF5 File Format Specification",
version 3.0.

A file is a superblock and one or more blocks. A block is a tree of groups: the root's header, then text, then one
dataset after the other, in the given order. Each dataset has the headers of groups that it is the first in, its own
header, and its values, aligned to 64 bytes. A reader that follows this order, as Keras does, only reads forward; Keras
reads ``.keras`` weights through `zipfile`, which starts from the beginning at every step back. The root group of the
first block may link to the next block; so the first block stays the same when a model is saved again and again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import NamedTuple

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.hdf5.dtypes import VLEN_STRING, StoredType
from ckptstore.formats.hdf5.string_heap import Text, TextHeap, padded

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_SIZE = 96
UNDEFINED = 0xFFFF_FFFF_FFFF_FFFF
# Messages of an object header.
DATASPACE, LINK_INFO, DATATYPE, FILL_VALUE, LINK, LAYOUT, GROUP_INFO, ATTRIBUTE = 1, 2, 3, 5, 6, 8, 10, 12

_ALIGNMENT = 64
_HEADER_PREFIX = 16
_LINKS_MOST = 65_000  # the number of messages in a header is a 16-bit field
_NAME_MOST = 60_000  # and so is the length of a message

Attributes = tuple[tuple[str, str], ...]


class Dataset(NamedTuple):
    """An array of the file: path, shape, storage of its values, text attributes."""

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
    """A tree laid out from `address` to `end`. The end is aligned: the next block may begin there.

    In the file, ``pieces[i]`` comes before the values of dataset i, which are at ``offsets[i]``, and the last piece
    comes after all values.
    """

    address: int
    pieces: tuple[bytes, ...]
    offsets: tuple[int, ...]
    end: int


def superblock(end: int) -> bytes:
    """Return the start of a file of `end` bytes, directly before its first block (II.A, version 0)."""
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
    """Lay out a block: every byte of its metadata, and the offsets of its values.

    Args:
        datasets: Arrays, by paths relative to the block's root group; missing groups are created.
        group_attributes: Text attributes of groups, by path; missing groups are created.
        address: Offset of the block in the file; its root group's header is there.
        link_to_next: Name of the root group's link to the next block, which begins at this block's end.

    Raises:
        InvalidArgumentError: A path is not an HDF5 path, is there twice, or is both a group and an array; or a group
            has too many members.

    Example:
        >>> from ckptstore.formats.hdf5.dtypes import stored_type
        >>> import numpy as np
        >>> block = lay_out([Dataset("vars/0", (2, 3), stored_type(np.dtype("f4")))])
        >>> block.offsets, block.end
        ((448,), 512)
    """
    root = _Group()
    runs: list[list[_Node]] = [[root]]
    for dataset in datasets:
        runs.append(root.add_dataset(dataset, len(runs)))
    runs.append(_add_attributes(root, group_attributes, runs))
    if link_to_next is not None:
        if link_to_next in root.members:
            raise _bad_path(link_to_next, "is a reserved name")
        root.add_member(link_to_next, _NextBlock(), link_to_next)
    heap = TextHeap()
    for node in chain.from_iterable(runs):
        node.texts = [heap.add(text) for _, text in node.attributes]
    offsets, end = _give_addresses(runs, heap, address)
    if link_to_next is not None:
        root.members[link_to_next].address = end
    return Block(address, tuple(_pieces(runs, heap, address, end)), offsets, end)


def _add_attributes(
    root: _Group, group_attributes: Iterable[tuple[str, Attributes]], runs: list[list[_Node]]
) -> list[_Node]:
    """Add attributes, and groups that have nothing else; these are placed before the group that is named next."""
    waiting: list[_Node] = []
    for path, attributes in group_attributes:
        made: list[_Node] = []
        group = root.group_at(path.split("/") if path else [], path, made)
        group.attributes += attributes
        waiting += made
        if group.run is not None:
            where = runs[group.run]
            where[:] = [where[0], *waiting, *where[1:]] if group.run == 0 else [*waiting, *where]
            waiting = []
    return waiting


def _give_addresses(runs: list[list[_Node]], heap: TextHeap, address: int) -> tuple[tuple[int, ...], int]:
    """Assign addresses to all headers, the heap and all values; return the values' offsets, and the end."""
    offsets = []
    for number, run in enumerate(runs):
        address = padded(address)
        for node in run:
            node.address = address
            address += node.size()
        if number == 0:
            heap.address = address
            address += heap.size()
        elif isinstance(leaf := run[-1] if run else None, _Leaf):
            leaf.data = _aligned(address)
            offsets.append(leaf.data)
            address = leaf.data + leaf.dataset.nbytes
    return tuple(offsets), _aligned(address)


def _pieces(runs: list[list[_Node]], heap: TextHeap, address: int, end: int) -> Iterator[bytes]:
    """Yield the bytes before each dataset's values, and those after the last."""
    piece = b""
    for number, run in enumerate(runs):
        padding = bytes(padded(address + len(piece)) - address - len(piece))
        piece = b"".join([piece, padding, *(node.encode(heap) for node in run)])
        if number == 0:
            piece += heap.encode()
        elif isinstance(leaf := run[-1] if run else None, _Leaf):
            yield piece.ljust(leaf.data - address, b"\0")
            piece, address = b"", leaf.data + leaf.dataset.nbytes
    yield piece.ljust(end - address, b"\0")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _message(kind: int, body: bytes) -> bytes:
    """Return a message of a version 1 header (IV.A.1.a)."""
    nbytes = padded(len(body))
    return struct.pack("<HHB3x", kind, nbytes, 0) + body.ljust(nbytes, b"\0")


def _header(messages: list[bytes]) -> bytes:
    """Return a version 1 object header (IV.A.1.a) with one reference to it."""
    body = b"".join(messages)
    return struct.pack("<BBHII4x", 1, 0, len(messages), 1, len(body)) + body


# No creation order, no heap of links, no index (IV.A.2.c); and links stay messages whatever their number
# (IV.A.2.k), even if libhdf5 adds one.
_GROUP_MESSAGES = [
    _message(LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)),
    _message(GROUP_INFO, struct.pack("<BBHH", 0, 1, 0xFFFF, 0)),
]
# Allocated late, written if set, none set: h5py's fill value of a dataset that is created with values (IV.A.2.f).
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
    return 8 + padded(3 + (1 if len(name) < 256 else 2) + len(name) + 8)


def _link(name: bytes, address: int) -> bytes:
    """Return a hard link (IV.A.2.g) that states its character set: UTF-8 only if the name needs it."""
    wide = len(name) >= 256
    length = struct.pack("<H" if wide else "<B", len(name))
    flags = 0x10 | int(wide)
    return _message(
        LINK, struct.pack("<BBB", 1, flags, not name.isascii()) + length + name + struct.pack("<Q", address)
    )


class _Node:
    """A group or a dataset; `address` is that of its header, `texts` are the places of its attributes' texts."""

    __slots__ = ("address", "attributes", "texts")

    def __init__(self, attributes: Attributes = ()) -> None:
        self.address = 0
        self.attributes = attributes
        self.texts: list[Text] = []

    def size(self) -> int:
        raise NotImplementedError

    def encode(self, heap: TextHeap) -> bytes:
        raise NotImplementedError

    def _attributes_size(self) -> int:
        return sum(8 + padded(9 + len(name.encode()) + 1 + 20 + 8 + 16) for name, _ in self.attributes)

    def _attribute_messages(self, heap: TextHeap) -> list[bytes]:
        """Return the attributes, each a text of variable length (IV.A.2.m, version 3)."""
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


class _NextBlock(_Node):
    """Target of the link to the next block."""

    __slots__ = ()


class _Group(_Node):
    """A group; `run` is the number of the dataset (from 1) that its header is placed before, 0 for the root."""

    __slots__ = ("members", "names", "run")

    def __init__(self) -> None:
        super().__init__()
        self.members: dict[str, _Node] = {}
        self.names: list[bytes] = []
        self.run: int | None = 0

    def add_member(self, name: str, member: _Node, path: str) -> None:
        if len(self.members) >= _LINKS_MOST:
            raise _bad_path(path, f"would be one of more than {_LINKS_MOST:,} in its group")
        self.names.append(_name_bytes(name, path))
        self.members[name] = member

    def group_at(self, names: list[str], path: str, made: list[_Node], run: int | None = None) -> _Group:
        group = self
        for name in names:
            member = group.members.get(name)
            if member is None:
                member = _Group()
                member.run = run
                group.add_member(name, member, path)
                made.append(member)
            if not isinstance(member, _Group):
                raise _bad_path(path, "is both a group and an array")
            group = member
        return group

    def add_dataset(self, dataset: Dataset, run: int) -> list[_Node]:
        *parents, name = dataset.path.split("/")
        made: list[_Node] = []
        group = self.group_at(parents, dataset.path, made, run)
        if name in group.members:
            raise _bad_path(dataset.path, "is there twice")
        leaf = _Leaf(dataset)
        group.add_member(name, leaf, dataset.path)
        return [*made, leaf]

    def size(self) -> int:
        links = sum(map(_link_size, self.names))
        return _HEADER_PREFIX + sum(map(len, _GROUP_MESSAGES)) + links + self._attributes_size()

    def encode(self, heap: TextHeap) -> bytes:
        members = zip(self.names, self.members.values(), strict=True)
        links = [_link(name, member.address) for name, member in members]
        return _header([*_GROUP_MESSAGES, *links, *self._attribute_messages(heap)])


class _Leaf(_Node):
    """A dataset; `data` is the offset of its values."""

    __slots__ = ("data", "dataset")

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.attributes)
        self.dataset = dataset
        self.data = 0

    def size(self) -> int:
        space = 8 + 8 + 8 * len(self.dataset.shape)
        kind = 8 + padded(len(self.dataset.kind.message))
        return _HEADER_PREFIX + space + kind + len(_FILL_MESSAGE) + 8 + 24 + self._attributes_size()

    def encode(self, heap: TextHeap) -> bytes:
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
