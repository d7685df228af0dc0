"""`PayloadStore`: where the bytes of payloads lie, and all that is ever done with them.

"Under the store's lock" below means that the caller holds `ckptstore.storage.locks.store_lock`: the calls that change
which payloads there are, are never made by two processes at once. Methods raise `StorageError` (`DiskFullError` where
there is no room) if the place of the bytes fails or refuses; that never means that a payload is missing or damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ckptstore.storage.durable_writer import Written
from ckptstore.storage.payloads.stored import StoredPayload


class MemberWriter(Protocol):
    """One member under construction, to be used by one thread."""

    def write(self, data: Any, /) -> Any:
        """Write the bytes of a C-contiguous buffer, which may change once this returns.

        Raises:
            StorageError: An earlier write failed.
        """

    def finish(self) -> Written:
        """Make the member's bytes durable, and return their size and digest; digested on the way, in no second pass.

        Raises:
            StorageError: A step failed. The member must not be finished again: call `abort`, and write a new one.
        """
        ...

    def abort(self) -> None:
        """Throw the member away. Raises nothing, since it runs while another error is being handled."""


class Upload(Protocol):
    """A payload under construction. Nobody sees it before `WriteSession.commit`; a crash before that leaves no payload.

    Attributes:
        name: The name that it will have.
        is_committed: True once its bytes have their final name, which may not be durable yet.
    """

    name: str

    @property
    def is_committed(self) -> bool:
        """True once its bytes have their final name, which may not be durable yet."""
        ...

    def member(self, name: str, nbytes: int) -> MemberWriter:
        """Begin a member.

        Args:
            name: `ckptstore.storage.payloads.stored.ONLY` for the only one, or else a relative path with ``/``.
            nbytes: Its size, for which room is reserved where the place can do that.

        Raises:
            DiskFullError: There is no room for it; nothing is left behind.
            InvalidArgumentError: The name leads out of the payload, or does not go with members begun before.
        """
        ...

    def share(self) -> str:
        """Let other processes write members, and return the token by which they `join`.

        Not of an upload that is itself joined.

        Raises:
            StorageError: It cannot be begun.
        """
        ...

    def local_directory(self) -> Path | None:
        """Return a directory for engines that write files by themselves; None where there is none.

        Such files become members by `add_file` alone. Without a directory the engine writes to one of its own.
        """
        ...

    def add_file(self, name: str, path: Path) -> Written:
        """Make a complete local file a member, durably, and return its size and digest; it is read once."""
        ...

    def add(self, name: str, written: Written) -> None:
        """Note a member that another process has made durable, as its own upload returned it."""

    @property
    def written(self) -> Written:
        """Size and digest of the payload, from the members that are finished or added: see `stored.whole_of`."""
        ...

    def abort(self) -> None:
        """Throw everything away. Raises nothing; what could not be removed is removed later, by `renew` or `sweep`."""


class WriteSession(Protocol):
    """The uploads of one writer, from its first save to its end: what proves that they are in use belongs to it.

    It belongs to the process that began it; after a fork the child begins its own.
    """

    @property
    def is_open(self) -> bool:
        """True from the first `renew` to `close`."""
        ...

    def renew(self) -> None:
        """Prove that this writer is alive, before each upload; removes what earlier uploads have left.

        Under the store's lock. Until `close`, or the end of the process, no `sweep` removes its uploads.
        """

    def begin(self, name: str) -> Upload:
        """Begin a payload under a name that was never used. Changes nothing yet."""
        ...

    def commit(self, upload: Upload) -> None:
        """Give a finished payload its name, for all to see: all of it, durably, when this returns.

        Under the store's lock. A crash leaves no payload of that name, or the complete one. If it raises,
        `Upload.is_committed` tells which.

        Raises:
            StorageError: It failed, or there is a payload of that name.
        """

    def undo(self, upload: Upload) -> None:
        """Remove a committed payload that was not recorded; not durable, since an orphan is harmless.

        Under the store's lock.
        """

    def close(self) -> None:
        """End the session. Raises nothing; what stays is removed by `sweep`. Under the store's lock."""


class PayloadStore(Protocol):
    """The payloads of one store.

    Payloads in quarantine are a space of names of their own, which methods reach by ``quarantined=True``.

    Attributes:
        quarantine_place: Where payloads in quarantine lie, for messages.
    """

    quarantine_place: str

    # --- writing ---

    def session(self) -> WriteSession:
        """Return a session for a writer; holds nothing before its first `renew`."""
        ...

    def join(self, token: str) -> Upload:
        """Return the upload of another process's session, to write some of its members.

        Only the session's own process finishes it: members that are written here are reported there by `Upload.add`.
        Once it is aborted there, members that are begun here fail, and what is written here is removed with the rest.

        Raises:
            InvalidArgumentError: It is no token.
            StorageError: There is no such upload here: it has ended, or lies where this process does not see it.
        """
        ...

    def sweep(self) -> None:
        """Remove what dead writers left of uploads, and nothing of living ones. Under the store's lock.

        It depends on no clock and no process id; see `WriteSession.renew`.
        """

    # --- looking ---

    def names(self) -> list[str]:
        """Return the names of all payloads, sorted.

        The list may be some seconds old: whoever concludes from it that a payload is missing, or there, asks `exists`.
        """
        ...

    def quarantined(self) -> list[str]:
        """Return the names of all payloads in quarantine, sorted; likewise."""
        ...

    def exists(self, name: str, *, quarantined: bool = False) -> bool:
        """Return True if there is a payload of this name, whole or not, at this instant."""
        ...

    def nbytes(self, name: str, *, quarantined: bool = False) -> int | None:
        """Return the size of a payload, of all its members, in bytes; None where there is none."""
        ...

    def have_sizes(self, payloads: Sequence[tuple[str, int]]) -> list[bool]:
        """Return for each name and size whether there is such a payload with that size; raises nothing.

        One call for very many: a payload that cannot be looked at counts as none.
        """
        ...

    def open(self, name: str, *, quarantined: bool = False) -> AbstractContextManager[StoredPayload]:
        """Open a payload for reading by offset.

        Raises:
            CorruptPayloadError: There is none.
            StorageError: It cannot be opened or, later, read.
        """
        ...

    # --- removing and putting aside; all under the store's lock, but for `remove` of payloads whose rows are marked ---

    def remove(self, names: Collection[str], *, in_background: bool = False) -> None:
        """Remove payloads, durably when this returns; names of which there are none are passed over.

        A crash leaves some of them. It may be repeated.

        Args:
            names: Their names.
            in_background: True to free their space later, see `wait_until_freed`.
        """

    def wait_until_freed(self) -> None:
        """Wait until the space of all removed payloads is free."""

    def quarantine(self, name: str) -> str:
        """Move a payload into quarantine, durably, under an unused name, which is returned.

        A crash leaves it in one place or the other, or in both.
        """
        ...

    def put_back(self, quarantined: str, name: str) -> None:
        """Move a payload from quarantine to a name of which there is none, durably; a crash leaves what it does there.

        Raises:
            StorageError: There is a payload of that name.
        """

    # --- local files ---

    def local_path(self, name: str, *, quarantined: bool = False) -> Path | None:
        """Return the local file or directory that a payload is; None where it lies elsewhere."""
        ...

    def as_local_file(self, name: str) -> AbstractContextManager[Path]:
        """Return a payload as a local file or directory for the block: itself, or a temporary copy.

        For code of others that needs a path. The file's name ends in the payload's suffix; it must not be changed.
        """
        ...

    def publish(self, name: str, target: Path) -> None:
        """Show a payload at a user's path, durably; there is the complete old file or the new one at every instant.

        Raises:
            InvalidArgumentError: It has several members.
            StorageError: It could not be put there; what is at `target` is unchanged.
        """

    def is_shown_at(self, name: str, target: Path) -> bool:
        """Return True if a path shows a payload: as a link to it, or as an equal copy, which is read."""
        ...

    # --- the place itself ---

    def check(self) -> None:
        """Refuse a place that cannot keep these promises.

        Raises:
            UnsafeFileSystemError: It lacks something; says what.
        """

    def dismantle(self) -> bool:
        """Remove the place itself; returns False where something still lies there. Under the store's lock."""
        ...


@dataclass(frozen=True, slots=True)
class PayloadRef:
    """A payload, by its store and its name."""

    store: PayloadStore
    name: str
    quarantined: bool = False

    def open(self) -> AbstractContextManager[StoredPayload]:
        """Open it; raises as `PayloadStore.open`."""
        return self.store.open(self.name, quarantined=self.quarantined)

    def as_local_file(self) -> AbstractContextManager[Path]:
        """Return it as a local file for the block, as `PayloadStore.as_local_file`."""
        return self.store.as_local_file(self.name)
