"""Records what a process does to one folder, from a log of strace, as an exact list of operations on files and names.

An operation takes effect when its call returns; a sync covers what had returned before it was entered. A call whose
exact effect is not in the log raises `UnmodelledError`. The folder that the list leads to is compared with the real
one.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crash.file_operations import (
    ROOT,
    Mark,
    Name,
    Operation,
    Recording,
    Resize,
    Sync,
    Tree,
    UnmodelledError,
    Write,
)
from crash.strace import run_traced
from crash.syscalls import Call

# Strings in hexadecimal, never cut off. Reads move a file's position; clones tell which threads share descriptors.
_TRACED = (
    "%file,?open,?creat,close,?dup,?dup2,dup3,fcntl,lseek,read,readv,write,writev,pwrite64,?pwritev,?pwritev2,ftruncate,"
    "fallocate,fsync,fdatasync,?sync,syncfs,copy_file_range,?sendfile,splice,mmap,ioctl,fchdir,?clone,?clone3,?fork,"
    "?vfork,?io_uring_setup"
)
OPTIONS = ("-xx", "-s", "33554432", "-e", f"trace={_TRACED}")
_LINE = re.compile(r"(\d+) +(.*)")
_RETURNED = re.compile(r"(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?:\s.*)?", re.DOTALL)
# Calls that change neither bytes nor names; modes and owners are not compared.
_HARMLESS = re.compile(
    r"stat|lstat|newfstatat|statx|access|faccessat|faccessat2|readlink|readlinkat|getcwd|statfs|"
    r"chmod|fchmodat|fchmodat2|chown|lchown|fchownat|utime|utimes|utimensat|futimesat|inotify_add_watch"
)
# O_DIRECT is modelled: bytes that bypass the page cache may or may not be on disk, as all bytes until a sync.
_UNMODELLED_FLAGS = {"O_TMPFILE", "__O_TMPFILE", "O_SYNC", "O_DSYNC", "O_PATH"}


def record(work: Callable[..., object], arguments: Sequence[object], root: Path) -> Recording:
    """Run ``work(marks, *arguments)`` in a traced child whose working directory is `root`; return what it did.

    Each line of JSON that it writes, unbuffered, to the file `marks` becomes a `Mark` at its place in the order.

    Raises:
        UnmodelledError: The log is not exact, or does not lead to what is in the folder now.
    """
    root = root.resolve()
    before = Tree.of(root)
    with tempfile.TemporaryDirectory(prefix="ckptstore-recording-") as folder:
        log, marks = Path(folder).resolve() / "log", Path(folder).resolve() / "marks"
        code = run_traced(_in_folder, (work, root, marks, tuple(arguments)), OPTIONS, log=log)
        if code != 0:
            raise RuntimeError(f"the recorded process ended with {code}")
        with log.open(encoding="ascii") as lines:
            recording = Parser(root, before, marks=marks, cwd=root).parse(lines)
    if recording.final().comparable() != Tree.of(root).comparable():
        raise UnmodelledError(f"the recording does not lead to what is in {root}")
    return recording


def _in_folder(work: Callable[..., object], root: Path, marks: Path, arguments: tuple[object, ...]) -> None:
    os.chdir(root)
    work(marks, *arguments)


@dataclass(slots=True)
class _Open:
    """An open file; duplicates of a descriptor share it, and its position."""

    path: str
    inode: int | None
    position: int = 0
    append: bool = False


class Parser:
    """Turns a log into a `Recording`.

    Args:
        root: The folder; absolute, without symbolic links.
        before: Its content before the process began.
        marks: A file outside the folder; each line of JSON written to it is a `Mark`.
        cwd: The process's working directory.
    """

    def __init__(self, root: Path, before: Tree, *, marks: Path, cwd: Path) -> None:
        self._root, self._marks, self._cwd = str(root), str(marks), str(cwd)
        self._before = before
        self._names = {inode: dict(entries) for inode, entries in before.names.items()}
        self._sizes = {inode: len(content) for inode, content in before.contents.items()}
        self._links = dict(before.links)
        self._next = 1 + max({*before.names, *before.contents, *before.links})
        self._files: dict[int, _Open] = {}
        self._operations: list[Operation] = []

    def parse(self, lines: Iterable[str]) -> Recording:
        """Read a log of ``strace -f`` with `OPTIONS`.

        Raises:
            UnmodelledError: It holds a call that is not modelled to the byte.
        """
        begun: dict[str, tuple[str, int]] = {}
        for line in lines:
            match = _LINE.match(line)
            if match is None or match[2].startswith(("---", "+++")):
                continue
            pid, text = match.groups()
            entered = len(self._operations)
            if text.endswith("<unfinished ...>"):
                begun[pid] = (text.removesuffix("<unfinished ...>"), entered)
                if text.startswith("close("):
                    # Before the call has returned, another thread may get the same descriptor.
                    self._files.pop(int(re.findall(r"\d+", text)[0]), None)
                continue
            if text.startswith("<... "):
                head, entered = begun.pop(pid)
                if head.startswith("close("):
                    continue
                text = head + text.partition(" resumed>")[2]
            self._take(text.rstrip(), entered)
        kinds = Tree({inode: {} for inode in self._names}, dict.fromkeys(self._sizes, b""), self._links)
        return Recording(self._before, tuple(self._operations), kinds)

    def _take(self, line: str, entered: int) -> None:
        match = _RETURNED.fullmatch(line)
        if match is None:
            raise UnmodelledError(f"not a call: {line[:200]}")
        call, inside, returned = match.groups()
        handler: Callable[[Call], None] | None = getattr(self, f"_on_{call}", None)
        # close takes effect even if it fails.
        if returned == "?" or (returned.startswith("-") and call != "close") or handler is None:
            if handler is None and not returned.startswith("-") and not _HARMLESS.fullmatch(call):
                raise UnmodelledError(f"{call} is not known: {line[:200]}")
            return
        handler(Call(call, inside, int(returned, 0), entered))

    # --- paths -------------------------------------------------------------------------------------

    def _absolute(self, path: str, at: str = "AT_FDCWD") -> str:
        if path.startswith(("/proc/self/fd", "/dev/fd")):
            raise UnmodelledError(f"a path through a descriptor: {path}")
        base = self._cwd
        if at != "AT_FDCWD" and not path.startswith("/"):
            if int(at) not in self._files:
                raise UnmodelledError(f"{path} is relative to descriptor {at}, opened before")
            base = self._files[int(at)].path
        return os.path.normpath(os.path.join(base, path))  # noqa: PTH118

    def _entry(self, path: str) -> tuple[int, str] | None:
        """Return directory inode and name of an absolute path below the root; None for a path elsewhere."""
        if not path.startswith(self._root + "/"):
            return None
        *parents, name = path[len(self._root) + 1 :].split("/")
        directory = ROOT
        for parent in parents:
            directory = self._names[directory][parent]
            if directory in self._links:
                raise UnmodelledError(f"{path} leads through a symbolic link")
        return directory, name

    def _inode(self, path: str) -> int | None:
        if path == self._root:
            return ROOT
        entry = self._entry(path)
        return None if entry is None else self._names[entry[0]].get(entry[1])

    def _short(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    # --- names ---------------------------------------------------------------------------------------------------

    def _change(self, changes: list[tuple[int, str, int | None]], text: str) -> None:
        for directory, name, inode in changes:
            if inode is None:
                del self._names[directory][name]
            else:
                self._names[directory][name] = inode
        self._operations.append(Name(tuple(changes), text))

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _on_mkdirat(self, call: Call) -> None:
        path = self._absolute(call.paths[0], call.at(0))
        if entry := self._entry(path):
            inode = self._new()
            self._names[inode] = {}
            self._change([(*entry, inode)], f"mkdir {self._short(path)}")

    def _on_symlinkat(self, call: Call) -> None:
        path = self._absolute(call.paths[1], call.at(1))
        if entry := self._entry(path):
            inode = self._new()
            self._links[inode] = call.paths[0]
            self._change([(*entry, inode)], f"symlink {self._short(path)}")

    def _on_unlinkat(self, call: Call) -> None:
        path = self._absolute(call.paths[0], call.at(0))
        if entry := self._entry(path):
            self._change([(*entry, None)], f"{call.name} {self._short(path)}")

    def _on_linkat(self, call: Call) -> None:
        if "AT_EMPTY_PATH" in call.inside or "AT_SYMLINK_FOLLOW" in call.inside:
            raise UnmodelledError(f"link with flags: {call.inside[-80:]}")
        source, target = self._two(call)
        inode, entry = self._inode(source), self._entry(target)
        self._both_here(inode, entry, target)
        if entry:
            self._change([(*entry, inode)], f"link {self._short(source)} -> {self._short(target)}")

    def _on_renameat2(self, call: Call) -> None:
        if "RENAME_EXCHANGE" in call.inside or "RENAME_WHITEOUT" in call.inside:
            raise UnmodelledError(f"rename with flags: {call.inside[-80:]}")
        source, target = self._two(call)
        inode, entry, old = self._inode(source), self._entry(target), self._entry(source)
        self._both_here(inode, entry, target)
        # Renaming a file to another name of the same file does nothing.
        if entry and old and self._names[entry[0]].get(entry[1]) != inode:
            text = f"rename {self._short(source)} -> {self._short(target)}"
            self._change([(*entry, inode), (*old, None)], text)

    def _two(self, call: Call) -> tuple[str, str]:
        return self._absolute(call.paths[0], call.at(0)), self._absolute(call.paths[1], call.at(1))

    def _both_here(self, inode: int | None, entry: tuple[int, str] | None, target: str) -> None:
        if (inode is None) != (entry is None):
            raise UnmodelledError(f"{target}: a file moves into the folder or out of it")

    _on_mkdir, _on_symlink, _on_link = _on_mkdirat, _on_symlinkat, _on_linkat
    _on_unlink = _on_rmdir = _on_unlinkat
    _on_rename = _on_renameat = _on_renameat2

    # --- descriptors ---------------------------------------------------------------------------------------------

    def _on_openat(self, call: Call) -> None:
        path = self._absolute(call.paths[0], call.at(0))
        self._files[call.returned] = opened = _Open(path, None)
        entry = self._entry(path)
        if entry is None and path != self._root:
            return
        inode, flags = self._inode(path), call.flags
        if flags & _UNMODELLED_FLAGS or inode in self._links:
            raise UnmodelledError(f"open of {path} with {sorted(flags)}")
        if inode is None:
            assert entry is not None
            inode = self._new()
            self._sizes[inode] = 0
            self._change([(*entry, inode)], f"create {self._short(path)}")
        elif ("O_TRUNC" in flags or call.name == "creat") and self._sizes.get(inode):
            self._resize(inode, 0, f"truncate {self._short(path)} 0")
        opened.inode, opened.append = inode, "O_APPEND" in flags

    _on_creat = _on_open = _on_openat

    def _on_close(self, call: Call) -> None:
        self._files.pop(call.descriptor, None)

    def _on_dup(self, call: Call) -> None:
        if call.descriptor in self._files:
            self._files[call.returned] = self._files[call.descriptor]
        else:
            self._files.pop(call.returned, None)

    _on_dup2 = _on_dup3 = _on_dup

    def _on_fcntl(self, call: Call) -> None:
        if "F_DUPFD" in call.inside:
            self._on_dup(call)
        elif "F_SETFL" in call.inside and self._ours(call) and call.flags & {*_UNMODELLED_FLAGS, "O_APPEND"}:
            raise UnmodelledError(f"flags of an open file change: {call.inside}")

    def _on_chdir(self, call: Call) -> None:
        self._cwd = self._absolute(call.paths[0])

    def _on_fchdir(self, call: Call) -> None:
        self._cwd = self._files[call.descriptor].path

    def _on_clone(self, call: Call) -> None:
        if "CLONE_FILES" not in call.inside:
            raise UnmodelledError("the recorded process started another one")

    _on_clone3 = _on_fork = _on_vfork = _on_clone

    # --- bytes ---------------------------------------------------------------------------------------------------

    def _ours(self, call: Call) -> _Open | None:
        opened = self._files.get(call.descriptor)
        return opened if opened is not None and opened.inode is not None else None

    def _on_lseek(self, call: Call) -> None:
        if opened := self._ours(call):
            opened.position = call.returned

    def _on_read(self, call: Call) -> None:
        if opened := self._ours(call):
            opened.position += call.returned

    _on_readv = _on_read

    def _on_write(self, call: Call) -> None:
        if opened := self._ours(call):
            if opened.append:
                opened.position = self._sizes[opened.inode or 0]
            self._put(opened, opened.position, call)
            opened.position += call.returned
        elif call.descriptor in self._files and self._files[call.descriptor].path == self._marks:
            for line in call.data.decode().splitlines():
                self._operations.append(Mark(json.loads(line), f"the process reports {line}"))

    def _on_pwrite64(self, call: Call) -> None:
        if opened := self._ours(call):
            if opened.append or call.name == "pwritev2":
                raise UnmodelledError(f"{call.name} on {opened.path}, open for appending or with flags")
            self._put(opened, int(call.inside.rpartition(", ")[2]), call)

    _on_writev, _on_pwritev, _on_pwritev2 = _on_write, _on_pwrite64, _on_pwrite64

    def _put(self, opened: _Open, offset: int, call: Call) -> None:
        assert opened.inode is not None
        data = call.data[: call.returned]
        if len(data) != call.returned:
            raise UnmodelledError(
                f"the log holds {len(data)} of {call.returned} bytes written to {opened.path}"
            )
        if data:
            text = f"{call.name} {self._short(opened.path)} {offset}+{len(data)}"
            self._operations.append(Write(opened.inode, offset, data, text))
            self._sizes[opened.inode] = max(self._sizes[opened.inode], offset + len(data))

    def _resize(self, inode: int, size: int, text: str) -> None:
        if self._sizes[inode] != size:
            self._sizes[inode] = size
            self._operations.append(Resize(inode, size, text))

    def _on_ftruncate(self, call: Call) -> None:
        if opened := self._ours(call):
            size = int(call.inside.split(", ")[1])
            self._resize(opened.inode or 0, size, f"ftruncate {self._short(opened.path)} {size}")

    def _on_truncate(self, call: Call) -> None:
        path, size = self._absolute(call.paths[0]), int(call.inside.rpartition(", ")[2])
        inode = self._inode(path)
        if inode in self._links:
            raise UnmodelledError(f"{path} is a symbolic link")
        if inode is not None:
            self._resize(inode, size, f"truncate {self._short(path)} {size}")

    def _on_fallocate(self, call: Call) -> None:
        if opened := self._ours(call):
            _, mode, start, length = call.inside.split(", ")
            if mode not in ("0", "FALLOC_FL_KEEP_SIZE"):
                raise UnmodelledError(f"fallocate with {mode} on {opened.path}")
            size = int(start) + int(length)
            if mode == "0" and size > self._sizes[opened.inode or 0]:
                self._resize(opened.inode or 0, size, f"fallocate {self._short(opened.path)} {size}")

    def _on_fsync(self, call: Call) -> None:
        if opened := self._ours(call):
            text = f"{call.name} {self._short(opened.path)}"
            self._operations.append(Sync(opened.inode or 0, call.entered, text))

    _on_fdatasync = _on_fsync

    def _on_mmap(self, call: Call) -> None:
        arguments = call.inside.split(", ")
        opened = self._files.get(int(arguments[4]))
        shared = "MAP_SHARED" in call.inside and "PROT_WRITE" in call.inside
        if shared and opened is not None and opened.inode is not None:
            raise UnmodelledError(f"{opened.path} is written through memory")

    def _on_copy_file_range(self, call: Call) -> None:
        """Refuse calls that copy bytes which are not in the log."""
        for word in filter(str.isdecimal, call.inside.split(", ")):
            opened = self._files.get(int(word))
            if opened is not None and opened.inode is not None:
                raise UnmodelledError(f"{call.name} with {opened.path}")

    _on_sendfile = _on_splice = _on_copy_file_range

    def _on_ioctl(self, call: Call) -> None:
        if "FICLONE" in call.inside or "FIDEDUPE" in call.inside:
            raise UnmodelledError(f"blocks are shared: {call.inside}")

    def _on_sync(self, call: Call) -> None:
        raise UnmodelledError(f"{call.name}: more than one file is synced, or written unseen")

    _on_syncfs = _on_io_uring_setup = _on_mknod = _on_mknodat = _on_openat2 = _on_sync
