"""Uploads to local files: written below ``tmp/``, beside the lease of their writer, and then renamed.

The order of calls, and what a crash at each leaves:

1. `LocalWriteSession.renew` takes the lease, once in a writer's life. A crash leaves its file, unlocked.
2. `LocalUpload.member` creates the file and reserves its blocks, `finish` syncs it; see
   `ckptstore.storage.durable_writer`. A crash leaves a temporary file, which belongs to an unlocked lease: `sweep`
   removes it.
   Where several processes write, `LocalUpload.share` has made the directory, and no other process makes it.
3. `LocalWriteSession.commit` renames it to its final name (of several members, their directory), and syncs the
   directories of both names. A crash leaves it under one of the two.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Self

from ckptstore.errors import InvalidArgumentError, StorageError
from ckptstore.storage.durable_writer import DurableWriter, Written
from ckptstore.storage.files import (
    digest_file,
    fsync_directory,
    make_directories_below,
    remove_tree,
    rename_to_new,
    sync_path,
    unlink,
)
from ckptstore.storage.layout import Layout
from ckptstore.storage.leases import Lease
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.local_reading import member_sizes
from ckptstore.storage.payloads.names import payload_suffix
from ckptstore.storage.payloads.stored import ONLY, whole_of


class LocalWriteSession:
    """Implementation of `ckptstore.storage.payloads.interface.WriteSession` for local files.

    Args:
        layout: The store's paths.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lease: Lease | None = None
        # Of uploads that could not be removed when they failed.
        self._leftovers: list[Path] = []

    @property
    def is_open(self) -> bool:
        """True while it has a lease."""
        return self._lease is not None

    def renew(self) -> None:
        """Take a lease if this session has none, or its file was removed; then remove leftovers."""
        lease = self._lease
        if lease is not None and not lease.is_in_place():
            self._lease = None
            lease.release()
        if self._lease is None:
            self._lease = Lease(self._layout.tmp)
        self._leftovers[:] = [path for path in self._leftovers if not _removed(path)]

    def begin(self, name: str) -> LocalUpload:
        """Begin a payload; `renew` comes before it."""
        assert self._lease is not None
        temporary = self._lease.new_path(payload_suffix(name))
        return LocalUpload(temporary, self._layout.checkpoints / name, leftovers=self._leftovers)

    def commit(self, upload: Upload) -> None:
        """Rename a finished payload to its final name, and sync both directories."""
        assert isinstance(upload, LocalUpload)
        upload.complete()
        rename_to_new(upload.temporary, upload.path)
        fsync_directory(upload.path.parent)
        fsync_directory(upload.temporary.parent)

    def undo(self, upload: Upload) -> None:
        """Remove a committed payload."""
        assert isinstance(upload, LocalUpload)
        remove_tree(upload.path) if upload.path.is_dir() else unlink(upload.path)

    def close(self) -> None:
        """End the lease."""
        lease, self._lease = self._lease, None
        if lease is not None:
            # If its file stays, nobody holds it, and the next opening removes it.
            with suppress(StorageError):
                lease.release()


class LocalUpload:
    """Implementation of `ckptstore.storage.payloads.interface.Upload` for local files.

    Args:
        temporary: The file, or the directory, that is written.
        path: The final path.
        leftovers: Receives `temporary` where it cannot be removed.
    """

    def __init__(self, temporary: Path, path: Path, *, leftovers: list[Path]) -> None:
        self.temporary = temporary
        self.path = path
        self.name = path.name
        self._leftovers = leftovers
        self._members: dict[str, Written] = {}
        self._is_single: bool | None = None
        self._is_joined = False

    @classmethod
    def joined(cls, temporary: Path, path: Path) -> Self:
        """Return the upload of another process, which has made its directory.

        That directory is never made here: it would come back after the other process has removed it.
        """
        if not temporary.is_dir():
            raise StorageError(
                operation="join",
                path=temporary,
                error=FileNotFoundError(
                    errno.ENOENT, "process 0 writes there, and this process does not see it"
                ),
                hint="every process needs the same directory, on a file system that all of them share; unless "
                "process 0 has given this save up meanwhile",
            )
        upload = cls(temporary, path, leftovers=[])
        upload._is_joined = True
        return upload

    @property
    def is_committed(self) -> bool:
        """True once the rename was done."""
        return bool(self._members) and not os.path.lexists(self.temporary)

    def member(self, name: str, nbytes: int) -> _Member:
        """Create the file of a member, with its blocks reserved."""
        self._check_member(name)
        path = self.temporary / name if name else self.temporary
        if name:
            # Of a store that was removed, nothing is made again.
            make_directories_below(self.temporary if self._is_joined else self.temporary.parent, path.parent)
        return _Member(self._members, name, DurableWriter(path, reserve=nbytes))

    def _check_member(self, name: str) -> None:
        parts = PurePosixPath(name).parts
        reason = None
        if name != ONLY and (
            name != "/".join(parts) or ".." in parts or name.startswith("/") or "\0" in name
        ):
            reason = "is not a relative path inside the payload"
        elif self._is_single not in (None, name == ONLY) or (name == ONLY and self._is_single):
            reason = "a payload is one file, or a directory of members"
        if reason is not None:
            raise InvalidArgumentError(argument="member", value=name, reason=reason)
        self._is_single = name == ONLY

    def share(self) -> str:
        """Make the directory in which other processes write, and return its name."""
        return f"{self.local_directory().name}:{self.name}"

    def local_directory(self) -> Path:
        """Return the directory of the members, and make it if need be."""
        self._is_single = False
        if not self._is_joined:
            make_directories_below(self.temporary.parent, self.temporary)
        return self.temporary

    def add_file(self, name: str, path: Path) -> Written:
        """Sync and digest a file in `local_directory`; another file is copied there."""
        self._check_member(name)
        target = self.temporary / name
        if path != target:
            with path.open("rb") as file:
                member = self.member(name, os.fstat(file.fileno()).st_size)
                try:
                    while chunk := file.read(1 << 20):
                        member.write(chunk)
                    return member.finish()
                except BaseException:
                    member.abort()
                    raise
        sync_path(path)
        self._members[name] = Written(nbytes=path.stat().st_size, digest=digest_file(path))
        return self._members[name]

    def add(self, name: str, written: Written) -> None:
        """Note a member that another process wrote into the directory."""
        self._check_member(name)
        self._members[name] = written

    @property
    def written(self) -> Written:
        """Size and digest of all members."""
        return whole_of(self._members)

    def complete(self) -> None:
        """Make the names of several members durable.

        Raises:
            StorageError: A member was not finished, or is missing.
        """
        if ONLY in self._members:
            return
        noted = {name: written.nbytes for name, written in self._members.items()}
        if not noted or member_sizes(self.temporary) != noted:
            raise StorageError(
                operation="commit",
                path=self.temporary,
                error=OSError("its files are not the members that were finished"),
            )
        for folder, *_ in os.walk(self.temporary, topdown=False):
            fsync_directory(Path(folder))

    def abort(self) -> None:
        """Remove what was written; what cannot be removed now is removed by the next `renew`, or the next opening."""
        if os.path.lexists(self.temporary) and not _removed(self.temporary):
            self._leftovers.append(self.temporary)


class _Member:
    """A member's file; notes size and digest when it is finished."""

    def __init__(self, members: dict[str, Written], name: str, writer: DurableWriter) -> None:
        self._members = members
        self._name = name
        self._writer = writer
        # Not wrapped: a save calls it very often.
        self.write = writer.write

    def finish(self) -> Written:
        """Sync and close the file."""
        self._members[self._name] = self._writer.finish()
        return self._members[self._name]

    def abort(self) -> None:
        """Close and remove the file."""
        self._writer.abort()


def _removed(path: Path) -> bool:
    try:
        remove_tree(path) if path.is_dir() and not path.is_symlink() else unlink(path)
    except OSError:
        return False
    # Another process may have begun a member meanwhile.
    return not os.path.lexists(path)
