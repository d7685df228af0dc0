"""The paths of everything in a store, and the search for a store."""

from __future__ import annotations

import os
import re
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
from ckptstore.records import SUFFIXES, Format
from ckptstore.storage.files import make_directory

MANIFEST = "manifest.sqlite"
# The directory of a drop-in callback's store, beside the files that the callback publishes.
DROP_IN_DIRECTORY = ".ckptstore"
# The beginning of the names of the directories in which supervisors keep files for stores that are not there yet.
WAITING_PREFIX = ".ckptstore-"
_PAYLOAD = re.compile(
    r"(?P<version>[0-9]{8,18})-(?P<run>[A-Za-z0-9_][A-Za-z0-9_.=+@-]{0,99}?)(?P<suffix>\.weights\.h5|\.keras|\.h5)"
)
_FORMATS: dict[str, Format] = {suffix: name for name, suffix in SUFFIXES.items()}


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
        if self.payload_names():
            return True
        try:
            return any(map(leading_version, os.listdir(self.quarantine)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StorageError(operation="list", path=self.quarantine, error=error) from error

    def payload_names(self) -> list[str]:
        """Return the names in `checkpoints` that are names of payloads, sorted."""
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


def payload_file(version: int, run: str, format: Format) -> str:
    """Return a payload's path relative to its store.

    Example:
        >>> payload_file(7, "digits", "weights")
        'checkpoints/00000007-digits.weights.h5'
    """
    return f"checkpoints/{version:08d}-{run}{SUFFIXES[format]}"


def leading_version(name: str) -> int:
    """Return the version at the beginning of a payload's name, also of one in quarantine; 0 if there is none.

    Example:
        >>> leading_version("00000007-a.keras.2"), leading_version("notes.txt")
        (7, 0)
    """
    head = name.partition("-")[0]
    return int(head) if 8 <= len(head) <= 18 and head.isascii() and head.isdecimal() else 0


def is_payload_name(name: str) -> bool:
    """Return True if a file of this name in `checkpoints` is a payload."""
    match = _PAYLOAD.fullmatch(name)
    if match is None:
        return False
    version = int(match["version"])
    written = payload_file(version, match["run"], _FORMATS[match["suffix"]])
    return version >= 1 and written == f"checkpoints/{name}"


def is_payload_file(file: str) -> bool:
    """Return True if a path, relative to a store, can be a payload's.

    Example:
        >>> is_payload_file("checkpoints/00000007-a.keras"), is_payload_file("checkpoints/../a.keras")
        (True, False)
    """
    folder, _, name = file.partition("/")
    return folder == "checkpoints" and is_payload_name(name)


def parse_payload_name(name: str) -> tuple[int, str, Format]:
    """Return the version, run and format in a payload's file name.

    Example:
        >>> parse_payload_name("00000007-digits.weights.h5")
        (7, 'digits', 'weights')
    """
    match = _PAYLOAD.fullmatch(name)
    if match is None:
        raise ValueError(name)
    return int(match["version"]), match["run"], _FORMATS[match["suffix"]]


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
    """Return `path` made absolute, without ``.`` and ``..``, so that a later chdir does not change it."""
    return Path(os.path.abspath(os.fspath(path)))


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
