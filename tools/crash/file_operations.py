"""Operations of a process on the files and names of one folder, in order, and the folder that they lead to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = 0


class UnmodelledError(Exception):
    """A call on the recorded folder whose exact effect is not in the log."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written to a file."""

    inode: int
    offset: int
    data: bytes
    text: str


@dataclass(frozen=True, slots=True)
class Resize:
    """A new size of a file: cut off, or filled with zeros."""

    inode: int
    size: int
    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """Changes of directory entries by one call: (directory, name, inode), or None for the inode of a removed name."""

    changes: tuple[tuple[int, str, int | None], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync of a file or directory, which covers the operations before number `entered`."""

    inode: int
    entered: int
    text: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A report of the process about itself."""

    report: dict[str, Any]
    text: str


Operation = Write | Resize | Name | Sync | Mark


@dataclass(slots=True)
class Tree:
    """A folder by inodes: entries of directories, bytes of files, targets of symbolic links; `ROOT` is the top."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    contents: dict[int, bytes] = field(default_factory=dict)
    links: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Tree:
        """Read a folder; hard links share an inode."""
        tree, inodes = cls(), {os.lstat(folder).st_ino: ROOT}
        for parent, directories, files in os.walk(folder):
            entries = tree.names.setdefault(inodes[os.lstat(parent).st_ino], {})
            for name in (*directories, *files):
                path = Path(parent, name)
                found = path.lstat()
                inode = entries[name] = inodes.setdefault(found.st_ino, len(inodes))
                if stat.S_ISDIR(found.st_mode):
                    tree.names[inode] = {}
                elif stat.S_ISLNK(found.st_mode):
                    tree.links[inode] = str(path.readlink())
                elif stat.S_ISREG(found.st_mode):
                    tree.contents[inode] = path.read_bytes()
                else:
                    raise UnmodelledError(f"{path} is neither file, directory nor symbolic link")
        return tree

    def walk(self, directory: int = ROOT, above: str = "") -> Iterator[tuple[str, int]]:
        """Yield path and inode of everything, sorted by name, directories before their content."""
        for name, inode in sorted(self.names[directory].items()):
            yield above + name, inode
            if inode in self.names:
                yield from self.walk(inode, f"{above}{name}/")

    def reachable(self) -> Tree:
        """Return the tree without files that have lost their last name."""
        used = {ROOT, *(inode for _, inode in self.walk())}
        return Tree(
            {inode: entries for inode, entries in self.names.items() if inode in used},
            {inode: content for inode, content in self.contents.items() if inode in used},
            {inode: target for inode, target in self.links.items() if inode in used},
        )

    def comparable(self) -> tuple[tuple[str, str, int, bytes], ...]:
        """Return everything in it in a comparable form: path, kind, the number of its inode, bytes."""
        firsts: dict[int, int] = {}
        return tuple(
            (path, self._kind(inode), firsts.setdefault(inode, len(firsts)), self._bytes(inode))
            for path, inode in self.walk()
        )

    def _kind(self, inode: int) -> str:
        return "directory" if inode in self.names else "link" if inode in self.links else "file"

    def _bytes(self, inode: int) -> bytes:
        return os.fsencode(self.links[inode]) if inode in self.links else self.contents.get(inode, b"")


def written(content: bytes, operation: Write | Resize) -> bytes:
    """Return a file's bytes after an operation on it."""
    if isinstance(operation, Resize):
        return content[: operation.size].ljust(operation.size, b"\0")
    before = content[: operation.offset].ljust(operation.offset, b"\0")
    return before + operation.data + content[operation.offset + len(operation.data) :]


@dataclass(frozen=True, slots=True)
class Recording:
    """A folder, and the operations on it, in order; `kinds` has the kind of each inode, new ones too."""

    before: Tree
    operations: tuple[Operation, ...]
    kinds: Tree

    def final(self) -> Tree:
        """Return the folder after all operations."""
        tree = self.fresh()
        for operation in self.operations:
            if isinstance(operation, Name):
                for directory, name, inode in operation.changes:
                    if inode is None:
                        tree.names[directory].pop(name, None)
                    else:
                        tree.names[directory][name] = inode
            elif isinstance(operation, Write | Resize):
                tree.contents[operation.inode] = written(tree.contents[operation.inode], operation)
        return tree

    def fresh(self) -> Tree:
        """Return the folder before the operations, with all later inodes, empty and without names."""
        return Tree(
            names={inode: dict(self.before.names.get(inode, {})) for inode in self.kinds.names},
            contents={inode: self.before.contents.get(inode, b"") for inode in self.kinds.contents},
            links=dict(self.kinds.links),
        )
