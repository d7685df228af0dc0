"""Models of a disk after a power cut: of what was not synced, any part may have reached it, in any order.

Bytes are durable when their file was synced, names when their directory was; neither makes the other durable. A `Disk`
is a recording up to one operation; a model is a rule that picks one of the folders that may be left.
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
# Returns a file's bytes after the power cut, from its durable bytes and its operations that were not synced.
Bytes = Callable[[bytes, Pending], bytes]


@dataclass(slots=True)
class Named:
    """Changes of names by one call, and the directories synced since."""

    number: int
    operation: Name
    synced: set[int]

    @property
    def pending(self) -> bool:
        """True while a part of it is not durable."""
        return any(directory not in self.synced for directory, _, _ in self.operation.changes)


# Returns, of all changes of names, those that are durable or happen to be on the disk, in order.
Names = Callable[[Sequence[Named]], Iterable[Change]]


class Disk:
    """The durable and the pending state after a number of operations.

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
        """Apply the next operation, and return it."""
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
        """The last change of bytes that is not synced, or None."""
        pending = [numbered for operations in self._bytes.values() for numbered in operations]
        return max(pending, key=lambda numbered: numbered[0])[1] if pending else None

    def folder(self, names: Names, content: Bytes) -> Tree:
        """Return what a power cut now leaves, by a rule for names and one for bytes."""
        entries = {inode: dict(found) for inode, found in self._start.names.items()}
        for directory, name, inode in names(self.names):
            if inode is None:
                entries[directory].pop(name, None)
            else:
                entries[directory][name] = inode
        contents = dict(self._durable)
        for inode, pending in self._bytes.items():
            contents[inode] = content(contents[inode], [operation for _, operation in pending])
        return Tree(names=entries, contents=contents, links=self._start.links)


# --- names ---------------------------------------------------------------------------------------------------------


def durable_names(named: Named, *, split: bool = False) -> tuple[Change, ...]:
    """Return the durable changes of one call: all if one of its directories was synced, unless `split`."""
    changes = named.operation.changes
    if split:
        kept = tuple(change for change in changes if change[0] in named.synced)
        # A file that moves has its new name before it loses the old one.
        return kept if changes[0] in kept else ()
    return changes if named.synced & {change[0] for change in changes} else ()


def synced_names(named: Sequence[Named]) -> list[Change]:
    """Return only synced changes."""
    return [change for entry in named for change in durable_names(entry)]


def synced_names_split(named: Sequence[Named]) -> list[Change]:
    """Return only synced changes, where a move between two directories is two changes."""
    return [change for entry in named for change in durable_names(entry, split=True)]


def all_names(named: Sequence[Named]) -> list[Change]:
    """Return all changes, as after a mere kill."""
    return [change for entry in named for change in entry.operation.changes]


def added_names(named: Sequence[Named]) -> list[Change]:
    """Return all new names and only synced removals: a renamed or removed file has its old name again."""
    return [
        change
        for entry in named
        for change in entry.operation.changes
        if change[2] is not None or change in durable_names(entry, split=True)
    ]


def removed_names(named: Sequence[Named]) -> list[Change]:
    """Return all removals, and only synced new names."""
    return [
        change
        for entry in named
        for change in (
            entry.operation.changes if entry.operation.changes[0][2] is None else durable_names(entry)
        )
    ]


def last_name(named: Sequence[Named]) -> list[Change]:
    """Return the synced changes and the last change, without the changes before it."""
    return [
        change
        for entry in named
        for change in (entry.operation.changes if entry is named[-1] else durable_names(entry))
    ]


def some_names(chance: random.Random) -> Names:
    """Return a rule that picks at random: in order as a journal does, in order by directory, or in any order."""
    journal, split = chance.choice(("one", "by directory", "none")), chance.random() < 0.4
    reach = chance.random()

    def chosen(named: Sequence[Named]) -> list[Change]:
        pending = [entry.number for entry in named if entry.pending]
        until: dict[int, int] = {}

        def limit(directory: int) -> int:
            at = until.get(ROOT if journal == "one" else directory)
            if at is None:
                at = chance.choice([-1, *pending])
                until[ROOT if journal == "one" else directory] = at
            return at

        found: list[Change] = []
        for entry in named:
            if journal == "none":
                on_disk = chance.random() < reach
            else:
                on_disk = entry.number <= min(limit(directory) for directory, _, _ in entry.operation.changes)
            found += _part(entry, on_disk, split, chance)
        return found

    return chosen


def _part(entry: Named, on_disk: bool, split: bool, chance: random.Random) -> tuple[Change, ...]:
    certain = durable_names(entry, split=split)
    changes = entry.operation.changes
    if on_disk and split and len(changes) > 1 and chance.random() < 0.5:
        return changes if changes[1] in certain else changes[:1]
    return changes if on_disk else certain


# --- bytes ---------------------------------------------------------------------------------------------------------


def no_bytes(durable: bytes, pending: Pending) -> bytes:
    """Return only synced bytes."""
    return durable


def all_bytes(durable: bytes, pending: Pending) -> bytes:
    """Return all bytes, as after a mere kill."""
    for operation in pending:
        durable = written(durable, operation)
    return durable


def zeros(durable: bytes, pending: Pending) -> bytes:
    """Return the synced bytes in the new size, filled with zeros."""
    return resized(durable, len(all_bytes(durable, pending)))


def resized(content: bytes, size: int) -> bytes:
    """Return content cut off at a size, or filled with zeros."""
    return content[:size].ljust(size, b"\0")


def last_torn(newest: Write | Resize | None, *, tail: bool = False) -> Bytes:
    """Return a rule that keeps only half of the last write: its head, or its tail after a gap."""

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
    """Return a rule that picks at random for each file: no bytes, all, zeros, or any part of any write."""

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


def random_tree(disk: Disk, seed: str) -> Tree:
    """Return a folder that is determined by `seed`."""
    chance = random.Random(seed)
    return disk.folder(some_names(chance), some_bytes(chance))


def fingerprint(tree: Tree, hashes: dict[bytes, bytes]) -> bytes:
    """Return a digest of everything in a folder; `hashes` caches the digests of bytes."""
    whole = hashlib.blake2b(digest_size=16)
    for path, kind, first, content in tree.comparable():
        known = hashes.get(content)
        if known is None:
            known = hashes[content] = hashlib.blake2b(content, digest_size=16).digest()
        whole.update(f"{path}\0{kind}\0{first}\0".encode("utf-8", "surrogateescape") + known)
    return whole.digest()


def write_tree(tree: Tree, folder: Path) -> None:
    """Create a folder with the content of a tree."""
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
