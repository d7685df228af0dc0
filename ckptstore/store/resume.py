"""Finds the newest resume point that loads, walking back over what is damaged and what keeps crashing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from ckptstore.commit.quarantine import withdraw
from ckptstore.errors import (
    CheckpointStoreError,
    CorruptPayloadError,
    NoUsableCheckpointError,
    RefusedByLayerError,
)
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint
from ckptstore.storage.layout import Layout
from ckptstore.store.verify import unacknowledged

Load = Callable[[Checkpoint], object]
Locked = Callable[[], AbstractContextManager[None]]


def _lies_elsewhere(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, speaks of memory or the system, not of the payload."""
    while error is not None:
        if isinstance(error, MemoryError | OSError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Resumption:
    """One walk back through a run's resume points.

    What does not match its digest is put aside at once. What does, and cannot be loaded all the same (a layer's own
    code, say, raises something), is put aside once an older one has been loaded: if none can be, the cause lies
    elsewhere and everything stays. That the model is another one, or that the disk cannot be read, is raised.

    A checkpoint that was started from `attempts` times without a save since is stepped over: older ones come first. If
    all were, the newest has its turn again. What was saved before the run was begun anew is never looked at.

    Args:
        layout: Where the store lies.
        manifest: Its manifest.
        run: The run; None for the newest of all runs.
        locked: Gives the store's lock; None in a store that is open for reading, where nothing is put aside or noted.
        attempts: Starts without progress before a checkpoint is stepped over; None to count none, and note none.
    """

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        *,
        run: str | None,
        locked: Locked | None,
        attempts: int | None,
    ) -> None:
        self._layout = layout
        self._manifest = manifest
        self._run = run
        self._locked = locked
        self._attempts = attempts
        self._damaged: list[Checkpoint] = []
        self._failed: list[tuple[Checkpoint, Exception]] = []
        self._stepped_over: list[int] = []
        self._floors: dict[str, int] = {}

    def load(self, load: Load) -> Checkpoint | None:
        """Load the first that can be, note the start, and return it; None where a run has none.

        A crash meanwhile leaves all checkpoints where they are, or a damaged one put aside.

        Raises:
            NoUsableCheckpointError: There are resume points, and all are damaged or missing.
            StorageError: One cannot be read, which does not say that it is damaged.
            ModelMismatchError: The newest that is whole does not fit the model.
            Exception: What `load` raised of the newest, where it raised something of every one.
        """
        lost = {one.version for one in unacknowledged(self._manifest) if self._is_of_the_run(one)}
        for checkpoint in self._candidates():
            self._note_start(checkpoint)
            if self._loads(checkpoint, load):
                self._conclude(checkpoint, lost)
                return checkpoint
        if self._failed:
            raise self._failed[0][1]
        lost.update(checkpoint.version for checkpoint in self._damaged)
        if lost:
            versions = tuple(sorted(lost, reverse=True))
            raise NoUsableCheckpointError(run=self._run, store=self._layout.root, versions=versions)
        known = [*self._manifest.in_state("missing"), *self._manifest.in_state("damaged")]
        gone = sum(map(self._is_of_the_run, known))
        if gone:
            warnings.warn(
                f"the run begins anew: all its {gone} resume points are damaged or missing", stacklevel=2
            )
        return None

    def _note_start(self, checkpoint: Checkpoint) -> None:
        """Count the start before it is made: loading itself may be what ends the process."""
        if self._locked is not None and self._attempts is not None:
            with self._locked():
                self._manifest.add_event("resuming", run=checkpoint.run, version=checkpoint.version)

    def _is_of_the_run(self, checkpoint: Checkpoint) -> bool:
        """Whether it is, or was, a resume point of the run's newest attempt."""
        run = checkpoint.run
        if not checkpoint.resumable or self._run not in (None, run):
            return False
        if run not in self._floors:
            self._floors[run] = self._manifest.attempt_floor(run)
        return checkpoint.version >= self._floors[run]

    def _candidates(self) -> Iterator[Checkpoint]:
        """Yield resume points, newest first, those that keep crashing last."""
        if self._attempts is None:
            yield from self._manifest.resume_points(self._run)
            return
        starts = self._manifest.starts(self._run)
        crashing: list[Checkpoint] = []
        for checkpoint in self._manifest.resume_points(self._run):
            if starts.get(checkpoint.version, 0) < self._attempts:
                yield checkpoint
            else:
                crashing.append(checkpoint)
                self._step_over(checkpoint, starts[checkpoint.version])
        attempts = self._attempts
        yield from sorted(crashing, key=lambda one: starts[one.version] // attempts)

    def _step_over(self, checkpoint: Checkpoint, starts: int) -> None:
        self._stepped_over.append(checkpoint.version)
        warnings.warn(
            f"version {checkpoint.version} is stepped over: started from {starts} times without a save since",
            stacklevel=2,
        )

    def _loads(self, checkpoint: Checkpoint, load: Load) -> bool:
        for last in (False, True):
            try:
                load(checkpoint)
            except CorruptPayloadError as error:
                self._damaged.append(checkpoint)
                self._put_aside(checkpoint, error.reason)
                return False
            except RefusedByLayerError as error:
                if _lies_elsewhere(error):
                    raise
                failure: Exception = error
            except (CheckpointStoreError, MemoryError, OSError):
                raise
            except Exception as error:
                failure = error
            else:
                return True
            if last:
                self._failed.append((checkpoint, failure))
            # Once may have been chance: a device that was out of memory for a moment.
        return False

    def _put_aside(self, checkpoint: Checkpoint, reason: str) -> None:
        where = "stepped over"
        if self._locked is not None:
            with self._locked():
                now = self._manifest.get(checkpoint.version)
                if now is not None and now.state == "complete":
                    withdraw(self._layout, self._manifest, checkpoint, reason)
            where = f"put aside in {self._layout.quarantine}"
        warnings.warn(f"version {checkpoint.version} is {where}: {reason}", stacklevel=2)

    def _conclude(self, checkpoint: Checkpoint, lost: set[int]) -> None:
        for failed, error in self._failed:
            self._put_aside(failed, f"loading it raises {type(error).__name__}: {error}")
        newer = sorted(version for version in lost if version > checkpoint.version)
        if newer:
            shown = ", ".join(map(str, newer))
            warnings.warn(f"stepped over, since missing or damaged: version {shown}", stacklevel=2)
        if self._locked is None or self._attempts is None:
            return
        detail = {
            "epoch": checkpoint.epoch,
            "batch": checkpoint.batch,
            "damaged": [one.version for one in self._damaged],
            "failed": [one.version for one, _ in self._failed],
            "lost": newer,
            "stepped_over": [version for version in self._stepped_over if version != checkpoint.version],
        }
        with self._locked():
            self._manifest.add_event("resumed", run=checkpoint.run, version=checkpoint.version, detail=detail)
