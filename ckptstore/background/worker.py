"""Commits messages into one store; runs in the writer's process, or in a thread where there is none."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptstore.background.message import MessageReader, SaveMessage
from ckptstore.commit.committer import Committer
from ckptstore.commit.open import open_for_writing
from ckptstore.commit.retry import tried_again
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.system.shared_memory import SharedMemory

# Seconds from the beginning of one commit to that of the next, while what is saved may be left out: a commit takes
# processor time from the training, and of snapshots that are taken every few milliseconds few are worth it.
REST_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one message.

    Attributes:
        number: The message's.
        checkpoint: What was saved, or None.
        error: What went wrong, or None; a checkpoint may be saved all the same (`UnfinishedSaveError`). One that came
            behind the save, in a removal, is told by a second outcome of the same number.
        cause: The error behind that, which an exception does not take along when it is pickled.
        warned: What the user is to be warned of, where that was said in another process.
        start_s: Seconds of processor time that it took to start the process that does it; told with its first message.
    """

    number: int
    checkpoint: Checkpoint | None = None
    error: BaseException | None = None
    cause: BaseException | None = None
    warned: tuple[str, ...] = ()
    start_s: float = 0.0


class Worker:
    """Opens the store when the first message comes, and commits one message after the other.

    Args:
        root: The store's directory.
        memories: The slots for messages.

    Attributes:
        idle_until: When to begin with the next message, by the monotonic clock, if nobody is in a flush_up_to.
    """

    def __init__(self, root: Path, memories: tuple[SharedMemory, ...]) -> None:
        self.idle_until = 0.0
        self._number = 0
        self._layout = Layout(root)
        self._readers = [MessageReader(memory) for memory in memories]
        self._manifest: Manifest | None = None
        self._committer: Committer | None = None

    def number(self, slot: int) -> int:
        """Return the number of the message in a slot."""
        return self._readers[slot].number()

    def commit(self, slot: int, *, again: bool = False) -> Outcome:
        """Commit the message in a slot; raises nothing but what ends a process. The caller calls `remove` behind it.

        Args:
            slot: Which.
            again: True where a writer that died may have committed it before.
        """
        number = 0
        try:
            message = self._readers[slot].read()
            number = message.number
            self.idle_until = time.monotonic() + (REST_S if message.may_wait else 0.0)
            checkpoint = tried_again(partial(self._commit, message, again))
        except Exception as error:
            return _failure(number, error)
        self._number = number
        return Outcome(number=number, checkpoint=checkpoint)

    def remove(self) -> Outcome | None:
        """Remove what the last commit let go, now that the trainer has heard of it; returns what went wrong."""
        try:
            if self._committer is not None:
                self._committer.remove()
        except Exception as error:
            return _failure(self._number, error)
        return None

    def _commit(self, message: SaveMessage, again: bool) -> Checkpoint:
        committer, manifest = self._opened()
        if again:
            # Opening the store has taken in a payload without a row; what is there now is what was saved.
            before = manifest.saved_at(message.request.run, message.request.created_at)
            if before is not None:
                return before
        return committer.commit(message.snapshot, message.request, removing=False)

    def _opened(self) -> tuple[Committer, Manifest]:
        if self._committer is None or self._manifest is None:
            self._manifest = open_for_writing(self._layout)
            self._committer = Committer(self._layout, self._manifest)
        return self._committer, self._manifest

    def close(self) -> None:
        """End the lease and close the manifest."""
        try:
            if self._committer is not None:
                self._committer.close()
        finally:
            if self._manifest is not None:
                self._manifest.close()


def _failure(number: int, error: Exception) -> Outcome:
    # Whatever it is, the training has to hear of it.
    return Outcome(
        number=number,
        checkpoint=getattr(error, "checkpoint", None),
        error=portable(error),
        cause=None if error.__cause__ is None else portable(error.__cause__),
    )


def portable(error: BaseException) -> BaseException:
    """Return an error as another process can have it: itself, or its words where it does not pickle.

    Example:
        >>> portable(ValueError("x"))
        ValueError('x')
    """
    try:
        pickle.loads(pickle.dumps(error))
    except Exception as reason:
        return RuntimeError(f"{type(error).__name__}: {error} (cannot be pickled: {reason})")
    return error
