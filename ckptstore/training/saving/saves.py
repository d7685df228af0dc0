"""The saves of one callback: each waited for, or handed over to what saves beside the training and heard of later."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from ckptstore.background.save_queue import Backpressure, SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.errors import InvalidArgumentError, UnfinishedSaveError
from ckptstore.formats.payload import is_streamable
from ckptstore.records import Checkpoint
from ckptstore.retention import Policy
from ckptstore.store.model_adapter import Snapshots, adapter_for
from ckptstore.store.store import CheckpointStore
from ckptstore.training.saving.failures import SaveFailures

# What a callback wants to remember of a save until it hears of it.
Note = TypeVar("Note")


class Saves(Generic[Note]):
    """Saves a model into a store, from the beginning of a fit to its end.

    Args:
        failures: What is done when a save fails.
        settled: Told of each save, in order: the callback's note, and the checkpoint or None where there is none.
        background: Whether to save beside the training.
        backpressure: See `ckptstore.background.save_queue.SaveQueue`.

    Attributes:
        background: Whether to save beside the training.
        backpressure: See `ckptstore.background.save_queue.SaveQueue`.
    """

    def __init__(
        self,
        failures: SaveFailures,
        settled: Callable[[Note, Checkpoint | None], None],
        *,
        background: bool,
        backpressure: Backpressure,
    ) -> None:
        self.background = background
        self._failures = failures
        self._settled = settled
        self.backpressure: Backpressure = backpressure
        self._store: CheckpointStore | None = None
        self._run = ""
        self._snapshots: Snapshots | None = None
        self._queue: SaveQueue | None = None
        self._prepared = False
        self._start_s = 0.0
        self._notes: dict[int, tuple[Note, Policy | None]] = {}

    def anew(self, failures: SaveFailures, settled: Callable[[Note, Checkpoint | None], None]) -> Saves[Note]:
        """Return such saves for a copy of the callback, which begins a fit of its own."""
        return Saves(failures, settled, background=self.background, backpressure=self.backpressure)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit and the callback out; `anew` makes of the rest what a copy needs."""
        return {"background": self.background, "backpressure": self.backpressure}

    def begin(self, store: CheckpointStore, run: str, model: Any) -> None:
        """Get ready for a fit: the process that saves starts by itself meanwhile."""
        self._store, self._run, self._snapshots = store, run, adapter_for(model).snapshots()
        self._prepared, self._notes, self._start_s = False, {}, 0.0
        if self.background:
            self._queue = store.saving_beside(run, backpressure=self.backpressure)
            self._queue.start()

    @property
    def waiting(self) -> bool:
        """Whether saves are on their way."""
        return bool(self._notes)

    def new_start_s(self) -> float:
        """Return the seconds of processor time that other processes took to start, heard of since the last call."""
        new, self._start_s = self._start_s, 0.0
        return new

    # --- saving --------------------------------------------------------------------------------------

    def save(
        self, model: Any, note: Note, *, droppable: bool = False, best: bool = False, **options: Any
    ) -> bool:
        """Save, or hand over; returns whether that was done.

        A crash after this returns leaves the checkpoint saved; beside the training, by the process that has it.

        Args:
            model: The model; it may change as soon as this returns.
            note: Comes back with the checkpoint.
            droppable: True where a newer one may take its place while it waits for the disk.
            best: True where it is the best so far; then only a better one may.
            **options: As for `CheckpointStore.save`.

        Raises:
            CheckpointStoreError: As `CheckpointStore.save`, as far as `SaveFailures` lets it pass.
        """
        assert self._store is not None
        snapshots = self._snapshots or adapter_for(model).snapshots()
        snapshot, request = self._store.prepare(model, run=self._run, snapshots=snapshots, **options)
        if self._queue is None or not is_streamable(snapshot):
            # What only h5py can write is not copied, and comes after what is on its way.
            self.drain()
            store = self._store
            saved = self._failures.attempt(lambda: store.commit(snapshot, request))
            self._settled(note, saved)
            return saved is not None
        # A user's own function is not known to another process.
        mine = None if request.keep is None or getattr(request.keep, "is_builtin", False) else request.keep
        if mine is not None:
            request = replace(request, keep=None)
        handed = self._queue.submit(snapshot, request, droppable=droppable, best=best)
        if handed is None:
            return False
        if handed.dropped is not None:
            self._notes.pop(handed.dropped, None)
        self._notes[handed.number] = note, mine
        return True

    @property
    def to_prepare(self) -> bool:
        """Whether `prepare` has something to do, and was not called yet."""
        return self._queue is not None and not self._prepared

    def prepare(self, model: Any, **options: Any) -> None:
        """Do early what the first save would wait for."""
        self._prepared = True
        if self._queue is None:
            return
        assert self._store is not None
        snapshot, _ = self._store.prepare(model, run=self._run, snapshots=self._snapshots, **options)
        if is_streamable(snapshot):
            self._queue.prepare(snapshot)

    # --- hearing of them -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Tell the callback of what is saved by now; waits for nothing.

        Raises:
            CheckpointStoreError: A save failed, and `SaveFailures` says to raise.
        """
        if self._notes and self._queue is not None:
            self._hear(self._queue.outcomes())

    def drain(self) -> None:
        """Wait until nothing is on its way; a line says so where it takes long.

        Raises:
            CheckpointStoreError: As `settle`.
        """
        if self._queue is not None and self._notes:
            self._queue.drain()
            self.settle()

    def end(self, error: BaseException | None = None) -> None:
        """Wait for what is on its way and let go of the store; may be repeated.

        Args:
            error: What ends the fit; failures of saves are then notes on it.

        Raises:
            CheckpointStoreError: As `settle`; everything is let go of all the same.
        """
        queue = self._queue
        try:
            self.drain()
            if queue is not None:
                queue.close()
                self._hear(queue.outcomes())
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"a save before that failed too: {failure}")
        finally:
            self._queue = self._store = self._snapshots = None
            self._notes = {}
            if queue is not None:
                queue.close()

    def _hear(self, outcomes: list[Outcome]) -> None:
        for position, outcome in enumerate(outcomes):
            try:
                self._hear_one(outcome)
            except BaseException:
                self._hear_rest(outcomes[position + 1 :])
                raise
        # At the end, since a filter may make an exception of it.
        for text in [text for outcome in outcomes for text in outcome.warnings]:
            warnings.warn(text, UserWarning, stacklevel=2)

    def _hear_one(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is not None:
            error.__cause__ = outcome.cause
        self._start_s += outcome.start_s
        noted = self._notes.pop(outcome.number, None)
        if noted is None:
            # Of a removal behind the save; or of a save whose note an interrupt has prevented.
            if isinstance(error, UnfinishedSaveError):
                self._failures.heard_behind(error)
            return
        note, mine = noted
        saved = None
        try:
            if error is None and outcome.checkpoint is not None and mine is not None:
                error = self._retain(outcome.checkpoint, mine)
            saved = self._failures.heard(outcome.checkpoint, error)
        finally:
            self._settled(note, saved)

    def _retain(self, saved: Checkpoint, policy: Policy) -> UnfinishedSaveError | None:
        assert self._store is not None
        try:
            self._store.retain(self._run, policy)
        except Exception as error:
            # Whatever it is: it comes from what the user wrote.
            unfinished = UnfinishedSaveError(
                checkpoint=saved, undone="removing what the policy does not keep", error=error
            )
            unfinished.__cause__ = error
            return unfinished
        return None

    def _hear_rest(self, outcomes: list[Outcome]) -> None:
        """Note what is saved behind a save whose failure ends the training."""
        for outcome in outcomes:
            if outcome.number in self._notes:
                note, _ = self._notes.pop(outcome.number)
                self._settled(note, outcome.checkpoint)


def check_background(background: object, backpressure: object) -> None:
    """Check the two arguments of a callback.

    Raises:
        InvalidArgumentError: One cannot be used.

    Example:
        >>> check_background(True, "drop")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: backpressure='drop': must be 'replace' or 'wait'
    """
    if not isinstance(background, bool):
        raise InvalidArgumentError(argument="background", value=background, reason="must be True or False")
    if backpressure not in ("replace", "wait"):
        raise InvalidArgumentError(
            argument="backpressure", value=backpressure, reason="must be 'replace' or 'wait'"
        )
