"""`LocalPayloadStore`: payloads as local files, or directories, beside the manifest."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ckptstore.errors import InvalidArgumentError, StorageError, UnsafeFileSystemError
from ckptstore.storage import deferred_unlink
from ckptstore.storage.files import (
    digest_file,
    fsync_directory,
    is_same_file,
    move_durably,
    remove_directory,
    remove_tree,
    unlink,
)
from ckptstore.storage.layout import KEPT_MANIFEST, Layout
from ckptstore.storage.leases import remove_stale_files
from ckptstore.storage.payloads.local_reading import member_sizes, open_local
from ckptstore.storage.payloads.local_writing import LocalUpload, LocalWriteSession
from ckptstore.storage.payloads.names import is_payload_name
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.storage.publish import publish


class LocalPayloadStore:
    """Implementation of `ckptstore.storage.payloads.interface.PayloadStore` for local files.

    Payloads lie in ``checkpoints/``, read-only; those in quarantine in ``quarantine/``, under the same names, with a
    number where one is taken; uploads in ``tmp/``.

    Args:
        layout: The store's paths.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.quarantine_place = str(layout.quarantine)

    def _path(self, name: str, quarantined: bool = False) -> Path:
        return (self._layout.quarantine if quarantined else self._layout.checkpoints) / name

    def session(self) -> LocalWriteSession:
        """Return a session, which takes its lease with the first `renew`."""
        return LocalWriteSession(self._layout)

    def join(self, token: str) -> LocalUpload:
        """Return an upload to the directory of another process's."""
        temporary, _, name = token.partition(":")
        if not is_payload_name(name) or temporary != Path(temporary).name:
            raise InvalidArgumentError(argument="token", value=token, reason="is not one of an upload")
        return LocalUpload.joined(self._layout.tmp / temporary, self._path(name))

    def sweep(self) -> None:
        """Remove temporary files whose lease nobody holds locked."""
        remove_stale_files(self._layout.tmp)

    def names(self) -> list[str]:
        """List ``checkpoints/``."""
        return self._layout.payload_names()

    def quarantined(self) -> list[str]:
        """List ``quarantine/``, but for manifests; a person may have renamed a payload there."""
        try:
            names = os.listdir(self._layout.quarantine)
            return sorted(name for name in names if not name.startswith(KEPT_MANIFEST))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(operation="list", path=self._layout.quarantine, error=error) from error

    def exists(self, name: str, *, quarantined: bool = False) -> bool:
        """Return True if there is a file or directory of this name."""
        return os.path.lexists(self._path(name, quarantined))

    def nbytes(self, name: str, *, quarantined: bool = False) -> int | None:
        """Return the size of a file, or of all files in a directory."""
        path = self._path(name, quarantined)
        try:
            return sum(member_sizes(path).values()) if path.is_dir() else path.stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(operation="stat", path=path, error=error) from error

    def have_sizes(self, payloads: Sequence[tuple[str, int]]) -> list[bool]:
        """Look at each file."""
        folder = os.fspath(self._layout.checkpoints)
        return [self._has_size(f"{folder}/{name}", nbytes) for name, nbytes in payloads]

    def _has_size(self, path: str, nbytes: int) -> bool:
        try:
            # Not `Path.stat`: there may be very many files, and each would need a `Path`.
            status = os.stat(path)  # noqa: PTH116
            if stat.S_ISDIR(status.st_mode):
                return sum(member_sizes(Path(path)).values()) == nbytes
            return status.st_size == nbytes
        except OSError:
            return False

    def open(self, name: str, *, quarantined: bool = False) -> AbstractContextManager[StoredPayload]:
        """Open the file, or the files of the directory."""
        return open_local(self._path(name, quarantined))

    def remove(self, names: Collection[str], *, in_background: bool = False) -> None:
        """Unlink files, then sync their directory."""
        remove = deferred_unlink.unlink if in_background else unlink
        try:
            for name in names:
                path = self._path(name)
                remove_tree(path) if path.is_dir() else remove(path)
            if names:
                fsync_directory(self._layout.checkpoints)
        finally:
            if in_background:
                deferred_unlink.begin()

    def wait_until_freed(self) -> None:
        """Wait for the thread that frees the blocks of removed files."""
        deferred_unlink.wait()

    def quarantine(self, name: str) -> str:
        """Rename into ``quarantine/``, and sync both directories."""
        aside, count = name, 0
        while self.exists(aside, quarantined=True):
            count += 1
            aside = f"{name}.{count}"
        move_durably(self._path(name), self._path(aside, True))
        return aside

    def put_back(self, quarantined: str, name: str) -> None:
        """Rename back, and sync both directories."""
        move_durably(self._path(quarantined, True), self._path(name))

    def local_path(self, name: str, *, quarantined: bool = False) -> Path:
        """Return the path."""
        return self._path(name, quarantined)

    @contextmanager
    def as_local_file(self, name: str) -> Iterator[Path]:
        """Return the path."""
        yield self._path(name)

    def publish(self, name: str, target: Path) -> None:
        """Link, or copy, to a hidden name beside the target, and rename that over it."""
        path = self._path(name)
        if path.is_dir():
            raise InvalidArgumentError(
                argument="publish",
                value=str(target),
                reason="a payload of several files cannot be shown at a path",
                hint="store.export(ref, path) writes one file",
            )
        publish(path, target)

    def is_shown_at(self, name: str, target: Path) -> bool:
        """Return True if the target is a link to the file, or an equal file."""
        path = self._path(name)
        if is_same_file(target, path):
            return True
        return target.is_file() and target.stat().st_size == self.nbytes(name) and _are_equal(target, path)

    def check(self) -> None:
        """Refuse directories on several file systems: renames across them are not atomic, or not possible."""
        directories = (self._layout.checkpoints, self._layout.tmp, self._layout.quarantine)
        if len({path.stat().st_dev for path in directories}) > 1:
            raise UnsafeFileSystemError(
                path=self._layout.root,
                lacks="checkpoints, tmp and quarantine lie on different file systems, so that files cannot be renamed "
                "from one to the other",
                hint="move them onto one disk",
            )

    def dismantle(self) -> bool:
        """Remove the directories if no payload lies there, and temporary files with them."""
        layout = self._layout
        if not all(map(remove_directory, (layout.quarantine, layout.checkpoints))):
            return False
        if layout.tmp.is_dir():
            remove_tree(layout.tmp)
        return not layout.tmp.exists()


def _are_equal(first: Path, second: Path) -> bool:
    return digest_file(first) == digest_file(second)
