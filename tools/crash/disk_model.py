"""Which folders a power cut may leave: of what was not synced, any part may be there, in any order.

Bytes are durable when their file was synced, names when their directory was; neither makes the other durable. A
`Disk` is a recording up to one operation; a model is a rule that picks one of the folders that it may have become.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crash.file_operations import ROOT, Name, Operation, Recording, Resize, Sync, Tree, Write, written

SECTOR = 512
Change = tuple[int, str, int | None]
Pending = Sequence[Write | Resize]
# From a file's durable bytes and the operations on it that were not synced, its bytes after the power cut.
Bytes = Callable[[bytes, Pending], bytes]


@dataclass(slots=True)
class Named:
    """Changes of names by one call, and the directories that have been synced since."""

    number: int
    operation: Name
    synced: set[int]

    @property
    def pending(self) -> bool:
        """Whether a part of it is not durable."""
        return any(directory not in self.synced for directory, _, _ in self.operation.changes)


# From the changes since the recording began, those that are durable or happen to be on the disk, in order.
Names = Callable[[Sequence[Named]], Iterable[Change]]


class Disk:
    """What is durable, and what is not yet, after a number of operations.

    Args:
        recording: All operations.
    """

    def __init__(self, recording: Recording) -> None:
        self._start = recording.fresh()
        self._durable = dict(self._start.contents)
        self._operations = recording.operations
        self._bytes: dict[int, list[tuple[int, Write | Resize]]] = {}
        self.names: list[Named] = []
        self.done = 0

    def step(self) -> Operation:
        """Take the next operation, and return it."""
        operation = self._operations[self.done]
        if isinstance(operation, Name):
            self.names.append(Named(self.done, operation, set()))
        elif isinstance(operation, Write | Resize):
            self._bytes.setdefault(operation.inode, []).append((self.done, operation))
        elif isinstance(operation, Sync):
            self._sync(operation)
        self.done += 1
        return operation

    def _sync(self, sync: Sync) -> None:
        if sync.inode in self._start.names:
            for named in self.names:
                if named.number < sync.entered:
                    named.synced.add(sync.inode)
            return
        for number, operation in self._bytes.pop(sync.inode, []):
            if number < sync.entered:
                self._durable[sync.inode] = written(self._durable[sync.inode], operation)
            else:
                self._bytes.setdefault(sync.inode, []).append((number, operation))

    @property
    def newest(self) -> Write | Resize | None:
        """The last change of bytes, when it was not synced."""
        waiting = [one for operations in self._bytes.values() for one in operations]
        return max(waiting, key=lambda one: one[0])[1] if waiting else None

    def folder(self, names: Names, content: Bytes) -> Tree:
        """What a power cut now leaves, by a rule for names and one for bytes."""
        entries = {inode: dict(found) for inode, found in self._start.names.items()}
        for directory, name, inode in names(self.names):
            if inode is None:
                entries[directory].pop(name, None)
            else:
                entries[directory][name] = inode
        contents = dict(self._durable)
        for inode, waiting in self._bytes.items():
            contents[inode] = content(contents[inode], [operation for _, operation in waiting])
        return Tree(names=entries, contents=contents, links=self._start.links)


# --- names ---------------------------------------------------------------------------------------------------------


def durable_names(named: Named, *, split: bool = False) -> tuple[Change, ...]:
    """The changes of one call that its directories' syncs made durable: all if one was synced, unless `split`."""
    changes = named.operation.changes
    if split:
        kept = tuple(change for change in changes if change[0] in named.synced)
        # A file that moves has its new name before it loses the old one.
        return kept if changes[0] in kept else ()
    return changes if named.synced & {change[0] for change in changes} else ()


def synced_names(named: Sequence[Named]) -> list[Change]:
    """Only what was synced."""
    return [change for one in named for change in durable_names(one)]


def synced_names_split(named: Sequence[Named]) -> list[Change]:
    """Only what was synced, where a move between two directories is two changes."""
    return [change for one in named for change in durable_names(one, split=True)]


def all_names(named: Sequence[Named]) -> list[Change]:
    """All, as after a mere kill."""
    return [change for one in named for change in one.operation.changes]


def added_names(named: Sequence[Named]) -> list[Change]:
    """All new names, and no removal that was not synced: what was renamed or removed is back under its old name."""
    return [
        change
        for one in named
        for change in one.operation.changes
        if change[2] is not None or change in durable_names(one, split=True)
    ]


def removed_names(named: Sequence[Named]) -> list[Change]:
    """All removals by themselves, and no new name that was not synced."""
    return [
        change
        for one in named
        for change in (one.operation.changes if one.operation.changes[0][2] is None else durable_names(one))
    ]


def last_name(named: Sequence[Named]) -> list[Change]:
    """What was synced, and the last change before the changes that preceded it."""
    return [
        change
        for one in named
        for change in (one.operation.changes if one is named[-1] else durable_names(one))
    ]


def some_names(chance: random.Random) -> Names:
    """Return a rule that picks at random: in order as a journal would, in order by directory, or any."""
    journal, split = chance.choice(("one", "by directory", "none")), chance.random() < 0.4
    reach = chance.random()

    def chosen(named: Sequence[Named]) -> list[Change]:
        pending = [one.number for one in named if one.pending]
        until: dict[int, int] = {}

        def limit(directory: int) -> int:
            at = until.get(ROOT if journal == "one" else directory)
            if at is None:
                at = chance.choice([-1, *pending])
                until[ROOT if journal == "one" else directory] = at
            return at

        found: list[Change] = []
        for one in named:
            if journal == "none":
                there = chance.random() < reach
            else:
                there = one.number <= min(limit(directory) for directory, _, _ in one.operation.changes)
            found += _part(one, there, split, chance)
        return found

    return chosen


def _part(one: Named, there: bool, split: bool, chance: random.Random) -> tuple[Change, ...]:
    certain = durable_names(one, split=split)
    changes = one.operation.changes
    if there and split and len(changes) > 1 and chance.random() < 0.5:
        return changes if changes[1] in certain else changes[:1]
    return changes if there else certain


# --- bytes ---------------------------------------------------------------------------------------------------------


def no_bytes(durable: bytes, pending: Pending) -> bytes:
    """Only what was synced."""
    return durable


def all_bytes(durable: bytes, pending: Pending) -> bytes:
    """All, as after a mere kill."""
    for operation in pending:
        durable = written(durable, operation)
    return durable


def zeros(durable: bytes, pending: Pending) -> bytes:
    """The new size, and zeros where nothing was synced."""
    return resized(durable, len(all_bytes(durable, pending)))


def resized(content: bytes, size: int) -> bytes:
    """Cut off, or fill up with zeros."""
    return content[:size].ljust(size, b"\0")


def last_torn(newest: Write | Resize | None, *, tail: bool = False) -> Bytes:
    """Return a rule by which only half of the very last write is there: its head, or its tail in front of a gap."""

    def torn(durable: bytes, pending: Pending) -> bytes:
        for operation in pending:
            part = _half if operation is newest else _whole
            durable = part(durable, operation, tail)
        return durable

    return torn


def _whole(content: bytes, operation: Write | Resize, tail: bool) -> bytes:
    return written(content, operation)


def _half(content: bytes, operation: Write | Resize, tail: bool) -> bytes:
    if isinstance(operation, Resize):
        return content
    length = len(operation.data)
    cut = length // 2 if length <= SECTOR else length // 2 // SECTOR * SECTOR or SECTOR
    start, data = (cut, operation.data[cut:]) if tail else (0, operation.data[:cut])
    return written(content, Write(operation.inode, operation.offset + start, data, "")) if data else content


def some_bytes(chance: random.Random) -> Bytes:
    """Return a rule that picks at random, for each file: none, all, zeros, or any part of any of the writes."""

    def chosen(durable: bytes, pending: Pending) -> bytes:
        rule = chance.choice((no_bytes, all_bytes, zeros, None, None, None))
        return _any_part(durable, pending, chance) if rule is None else rule(durable, pending)

    return chosen


def _any_part(durable: bytes, pending: Pending, chance: random.Random) -> bytes:
    sizes, whole, content, reach = [len(durable)], durable, durable, chance.random()
    for operation in pending:
        whole = written(whole, operation)
        sizes.append(len(whole))
        if chance.random() < reach:
            content = written(content, operation)
        elif isinstance(operation, Write) and chance.random() < 0.3:
            content = _torn(content, operation, chance)
    return content if chance.random() < 0.5 else resized(content, chance.choice(sizes))


def _torn(content: bytes, operation: Write, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        data = operation.data[: chance.randrange(len(operation.data))]
        return written(content, Write(operation.inode, operation.offset, data, "")) if data else content
    first = operation.offset // SECTOR * SECTOR
    for sector in range(first, operation.offset + len(operation.data), SECTOR):
        start = max(sector, operation.offset)
        data = operation.data[start - operation.offset : sector + SECTOR - operation.offset]
        if chance.random() < 0.5:
            content = written(content, Write(operation.inode, start, data, ""))
    return content


# --- folders -------------------------------------------------------------------------------------------------------

MODELS: dict[str, Callable[[Disk], Tree]] = {
    "only what was synced": lambda disk: disk.folder(synced_names, no_bytes),
    "only what was synced, moves split": lambda disk: disk.folder(synced_names_split, no_bytes),
    "names without bytes": lambda disk: disk.folder(all_names, no_bytes),
    "names with zeros": lambda disk: disk.folder(all_names, zeros),
    "bytes without names": lambda disk: disk.folder(synced_names, all_bytes),
    "all": lambda disk: disk.folder(all_names, all_bytes),
    "last write cut short": lambda disk: disk.folder(all_names, last_torn(disk.newest)),
    "last write without its head": lambda disk: disk.folder(all_names, last_torn(disk.newest, tail=True)),
    "removed names are back": lambda disk: disk.folder(added_names, all_bytes),
    "removed names are back, without bytes": lambda disk: disk.folder(added_names, no_bytes),
    "removals before new names": lambda disk: disk.folder(removed_names, all_bytes),
    "last name before others": lambda disk: disk.folder(last_name, all_bytes),
    "last name before others, without bytes": lambda disk: disk.folder(last_name, no_bytes),
}


def random_folder(disk: Disk, seed: str) -> Tree:
    """Return a folder that follows from `seed`."""
    chance = random.Random(seed)
    return disk.folder(some_names(chance), some_bytes(chance))


def fingerprint(tree: Tree, hashes: dict[bytes, bytes]) -> bytes:
    """Return a digest of everything in a folder; `hashes` keeps those of bytes seen before."""
    whole = hashlib.blake2b(digest_size=16)
    for path, kind, first, content in tree.picture():
        known = hashes.get(content)
        if known is None:
            known = hashes[content] = hashlib.blake2b(content, digest_size=16).digest()
        whole.update(f"{path}\0{kind}\0{first}\0".encode("utf-8", "surrogateescape") + known)
    return whole.digest()


def put(tree: Tree, folder: Path) -> None:
    """Make a folder that is a tree."""
    firsts: dict[int, Path] = {}
    folder.mkdir()
    for relative, inode in tree.walk():
        path = folder / relative
        if inode in tree.names:
            path.mkdir()
        elif inode in tree.links:
            path.symlink_to(tree.links[inode])
        elif inode in firsts:
            os.link(firsts[inode], path)
        else:
            firsts[inode] = path
            path.write_bytes(tree.contents[inode])
