"""The paths of everything in a store, and the search for a store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ckptstore.errors import (
    CorruptManifestError,
    InvalidArgumentError,
    NotAStoreError,
    StorageError,
    StoreNotFoundError,
    StoreRemovedError,
)
from ckptstore.storage.files import make_directory
from ckptstore.storage.payloads.mounts import mounted_at
from ckptstore.storage.payloads.names import is_payload_name, leading_version

MANIFEST = "manifest.sqlite"
# The beginning of the names of damaged manifests in quarantine.
KEPT_MANIFEST = "manifest-"
# The directory of a drop-in callback's store, beside the files that the callback publishes.
DROP_IN_DIRECTORY = ".ckptstore"
# The beginning of the names of the directories in which supervisors keep files for stores that are not there yet.
WAITING_PREFIX = ".ckptstore-"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one store; `root` is absolute."""

    root: Path

    @property
    def manifest(self) -> Path:
        """The SQLite manifest, the only source of truth."""
        return self.root / MANIFEST

    @property
    def locks(self) -> Path:
        """The directory of lock files, which are never removed."""
        return self.root / "locks"

    @property
    def checkpoints(self) -> Path:
        """The directory of payloads, each written once."""
        return self.root / "checkpoints"

    @property
    def tmp(self) -> Path:
        """The directory of files that are being written."""
        return self.root / "tmp"

    @property
    def quarantine(self) -> Path:
        """The directory of damaged payloads and manifests, kept for a person to look at."""
        return self.root / "quarantine"

    @property
    def heartbeats(self) -> Path:
        """The directory of heartbeats, one small file for each run; nothing is lost if it is removed."""
        return self.root / "heartbeats"

    @property
    def logs(self) -> Path:
        """The directory of the runs' output and of what differed from their commits; made when the first is kept."""
        return self.root / "logs"

    @property
    def reserve(self) -> Path:
        """A small file that is removed when the disk is full, so that a deletion can be recorded."""
        return self.root / "reserve"

    def make(self) -> None:
        """Make the directories, durably; refuses a path that cannot be a store before anything is changed.

        Raises:
            NotAStoreError: The path, or a directory above it, is a file.
            CorruptManifestError: There are payloads but no manifest.
            StorageError: A directory cannot be made.
        """
        for path in (self.root, *self.root.parents):
            if os.path.lexists(path) and not path.is_dir():
                raise NotAStoreError(path=path, reason="it is a file, not a directory")
        if not self.manifest.exists() and self.holds_payloads():
            raise CorruptManifestError(path=self.manifest, reason="it is missing, though there are payloads")
        self.make_directories()

    def make_directories(self) -> list[Path]:
        """Make the directories that are missing, durably, and return them.

        Raises:
            StorageError: One cannot be made.
        """
        directories = (self.root, self.locks, self.checkpoints, self.tmp, self.quarantine)
        missing = [path for path in directories if not path.is_dir()]
        for path in missing:
            make_directory(path)
        return missing

    def require_manifest(self) -> None:
        """Check that a store that is in use is still here, so that nothing is made in its place.

        Raises:
            StoreRemovedError: It has no manifest any more.
        """
        if os.path.lexists(self.manifest):
            return
        if self.holds_payloads():
            raise StoreRemovedError(
                store=self.root,
                reason="the manifest was removed",
                hint=f"end this process, then run: ckptstore repair {self.root}",
            )
        raise StoreRemovedError(store=self.root, reason="the store was removed")

    def holds_payloads(self) -> bool:
        """Return True if there are payloads, also in quarantine: a manifest then belongs to them."""
        elsewhere = mounted_at(self.root)
        if elsewhere is not None:
            return bool(elsewhere.names() or elsewhere.quarantined())
        if self.payload_names():
            return True
        try:
            return any(map(leading_version, os.listdir(self.quarantine)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StorageError(operation="list", path=self.quarantine, error=error) from error

    def kept_manifest(self, timestamp: str) -> Path:
        """Return the path at which a damaged manifest is kept, for a person to look at."""
        return self.quarantine / f"{KEPT_MANIFEST}{timestamp}.sqlite"

    def payload_names(self) -> list[str]:
        """Return the names of the local payloads, sorted."""
        try:
            names = os.listdir(self.checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(operation="list", path=self.checkpoints, error=error) from error
        return sorted(name for name in names if is_payload_name(name))


def log_file(run: str, attempt: int) -> str:
    """Return the path of an attempt's output, relative to its store.

    Example:
        >>> log_file("digits", 3)
        'logs/digits/3.log'
    """
    return f"logs/{run}/{attempt}.log"


def diff_file(run: str, attempt: int) -> str:
    """Return the path of what differed from the commit of an attempt, relative to its store.

    Example:
        >>> diff_file("digits", 3)
        'logs/digits/3.diff.gz'
    """
    return f"logs/{run}/{attempt}.diff.gz"


def find_store(path: str | os.PathLike[str]) -> Path:
    """Return the directory of the store at `path`: that directory itself, or its ``.ckptstore``.

    Raises:
        StoreNotFoundError: Neither holds a manifest or payloads.

    Example:
        >>> find_store("/nowhere")
        Traceback (most recent call last):
        ...
        ckptstore.errors.StoreNotFoundError: /nowhere: no store here ...
    """
    given = absolute(path)
    for root in (given, given / DROP_IN_DIRECTORY):
        layout = Layout(root)
        if os.path.lexists(layout.manifest) or layout.holds_payloads():
            return root
    raise StoreNotFoundError(path=given)


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return `path` made absolute, without ``.`` and ``..``, so that a later chdir does not change it.

    Raises:
        InvalidArgumentError: It is empty; or it begins with ``~``, and no file here does, see `means_home`.
    """
    given = os.fspath(path)
    if not given:
        raise InvalidArgumentError(
            argument="path", value=given, reason="is empty", hint="'.' is the present directory"
        )
    if means_home(given):
        raise InvalidArgumentError(
            argument="path",
            value=given,
            reason="begins with ~, which a shell expands and Python does not: it would become a folder of that name",
            hint=f"os.path.expanduser({given!r})",
        )
    return Path(os.path.abspath(given))


def means_home(path: str | os.PathLike[str]) -> bool:
    """Return True if a shell would take `path` to begin in a home directory, and no file here has such a name."""
    text = os.fspath(path)
    return (
        text[:1] == "~"
        and os.path.expanduser(text) != text  # noqa: PTH111 - text, which may hold placeholders
        and not os.path.lexists(text.split(os.sep, 1)[0])
    )


def relative_to_store(root: Path, path: Path) -> str:
    """Return `path` relative to the store, so that store and published files may be moved together.

    Links in the directories are followed, so that a file has the same name however the store was opened. If `path`
    itself is a link, it is not followed: publishing replaces it.
    """
    return os.path.relpath(resolve_parents(path), os.path.realpath(root))


def published_path(root: Path, published: str) -> Path:
    """Return the absolute path of a published file from its path relative to the store."""
    return Path(os.path.normpath(Path(os.path.realpath(root), published)))


def resolve_parents(path: Path) -> Path:
    """Return `path` with links in its directories followed, but not `path` itself if it is a link."""
    return Path(os.path.realpath(path.parent), path.name)


def require_outside(root: Path, target: Path, argument: str = "publish") -> Path:
    """Return `target` if a checkpoint of the store at `root` may be published there.

    Args:
        root: The store's directory.
        target: The path.
        argument: The name of the argument, for the error.

    Raises:
        InvalidArgumentError: It is the store, lies in it, or is a directory above it.
    """
    store, resolved = Path(os.path.realpath(root)), resolve_parents(target)
    if resolved == store or store in resolved.parents or resolved in store.parents:
        raise InvalidArgumentError(
            argument=argument, value=str(target), reason="lies in the store, or is a directory above it"
        )
    return target
