"""Loads a run's newest usable resume point: falls back past damaged ones and past those that keep crashing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

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
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.store.verify import unacknowledged
from ckptstore.system import messages

# Verifies a checkpoint's payload, then brings it into a model; raises what `restore` raises.
Load = Callable[[Checkpoint], object]
Locked = Callable[[], AbstractContextManager[None]]
FactsOfResume = Callable[[str, int, int | None], tuple[int, dict[Any, Any]] | None]

# Starts without a save in between after which a checkpoint is skipped: it may be what ends the process.
MAX_STARTS = 3


class ResumePointLoader:
    """One search through a run's resume points, newest first.

    A payload that does not match its digest is quarantined at once. One that matches but cannot be loaded
    (a layer's own code raises, for example) is quarantined once an older one has been loaded: if none loads, the cause
    lies elsewhere and all stay. Another architecture, or a disk that cannot be read, is raised.

    A checkpoint that was started from `max_starts` times without a save since is skipped: older ones come first. If all
    of them were, the newest is tried again. Checkpoints of the run's earlier beginnings are never considered.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        run: The run; None for the newest resume point of all runs.
        locked: Takes the store's lock; None in a store open for reading, where nothing is quarantined or recorded.
        max_starts: Starts without a save before a checkpoint is skipped; None to neither count nor record starts.
        facts: Returns the number of the attempt at a run, and what to record with it, of run, version and step.
    """

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        *,
        run: str | None,
        locked: Locked | None,
        max_starts: int | None = MAX_STARTS,
        facts: FactsOfResume | None = None,
    ) -> None:
        self._layout = layout
        self._manifest = manifest
        self._run = run
        self._locked = locked
        self._max_starts = max_starts
        self._facts = facts
        self._damaged: list[Checkpoint] = []
        self._failed: list[tuple[Checkpoint, Exception]] = []
        self._skipped: list[int] = []
        self._first_versions: dict[str, int] = {}

    def load(self, load: Load) -> Checkpoint | None:
        """Load the newest resume point that can be loaded, record the start, and return it; None where a run has none.

        A crash meanwhile leaves all checkpoints where they are, or a damaged one in quarantine.

        Raises:
            NoUsableCheckpointError: There are resume points, and all are damaged or missing.
            StorageError: One cannot be read, which does not mean that it is damaged.
            ModelMismatchError: The newest undamaged one does not fit the model.
            Exception: The error that `load` raised for the newest, where it raised one for each.
        """
        lost = {
            checkpoint.version for checkpoint in unacknowledged(self._manifest) if self._is_of_run(checkpoint)
        }
        for checkpoint in self._candidates():
            self._record_start(checkpoint)
            if self._can_load(checkpoint, load):
                self._conclude(checkpoint, lost)
                return checkpoint
        if self._failed:
            raise self._failed[0][1]
        lost.update(checkpoint.version for checkpoint in self._damaged)
        if lost:
            versions = tuple(sorted(lost, reverse=True))
            raise NoUsableCheckpointError(run=self._run, store=self._layout.root, versions=versions)
        known = [
            *self._manifest.checkpoints.in_state("missing"),
            *self._manifest.checkpoints.in_state("damaged"),
        ]
        lost_before = sum(map(self._is_of_run, known))
        if lost_before:
            messages.warn(f"the run starts over: all its {lost_before} resume points are damaged or missing")
        return None

    def _record_start(self, checkpoint: Checkpoint) -> None:
        """Count the start before it is made: loading itself may be what ends the process."""
        if self._locked is not None and self._max_starts is not None:
            with self._locked():
                self._manifest.events.add("resuming", run=checkpoint.run, version=checkpoint.version)

    def _is_of_run(self, checkpoint: Checkpoint) -> bool:
        """True if a checkpoint is, or was, a resume point of the run's newest beginning."""
        run = checkpoint.run
        if not checkpoint.resumable or self._run not in (None, run):
            return False
        if run not in self._first_versions:
            self._first_versions[run] = self._manifest.beginnings.first_version(run)
        return checkpoint.version >= self._first_versions[run]

    def _candidates(self) -> Iterator[Checkpoint]:
        """Yield resume points, newest first, those that keep crashing last."""
        if self._max_starts is None:
            yield from self._manifest.checkpoints.resume_points(self._run)
            return
        starts = self._manifest.events.resumes_without_progress(self._run)
        crashing: list[Checkpoint] = []
        for checkpoint in self._manifest.checkpoints.resume_points(self._run):
            if starts.get(checkpoint.version, 0) < self._max_starts:
                yield checkpoint
            else:
                crashing.append(checkpoint)
                self._skip(checkpoint, starts[checkpoint.version])
        max_starts = self._max_starts
        yield from sorted(crashing, key=lambda checkpoint: starts[checkpoint.version] // max_starts)

    def _skip(self, checkpoint: Checkpoint, starts: int) -> None:
        self._skipped.append(checkpoint.version)
        messages.warn(
            f"version {checkpoint.version} is skipped: started from {starts} times without a save since"
        )

    def _can_load(self, checkpoint: Checkpoint, load: Load) -> bool:
        """Load a checkpoint, twice if need be: a device may be out of memory for a moment."""
        for is_last in (False, True):
            try:
                load(checkpoint)
            except CorruptPayloadError as error:
                self._damaged.append(checkpoint)
                self._quarantine(checkpoint, error.reason)
                return False
            except RefusedByLayerError as error:
                if _is_environmental(error):
                    raise
                failure: Exception = error
            except (CheckpointStoreError, MemoryError, OSError):
                raise
            except Exception as error:
                failure = error
            else:
                return True
            if is_last:
                self._failed.append((checkpoint, failure))
        return False

    def _quarantine(self, checkpoint: Checkpoint, reason: str) -> None:
        done = "skipped"
        if self._locked is not None:
            with self._locked():
                now = self._manifest.checkpoints.get(checkpoint.version)
                if now is not None and now.state == "complete":
                    withdraw(self._layout, self._manifest, checkpoint, reason)
            done = f"put aside in {payloads_at(self._layout).quarantine_place}"
        messages.warn(f"version {checkpoint.version} is {done}: {reason}")

    def _conclude(self, checkpoint: Checkpoint, lost: set[int]) -> None:
        for failed, error in self._failed:
            self._quarantine(failed, f"loading it raises {type(error).__name__}: {error}")
        newer = sorted(version for version in lost if version > checkpoint.version)
        if newer:
            shown = ", ".join(map(str, newer))
            messages.warn(f"skipped, since missing or damaged: version {shown}")
        if self._locked is None or self._max_starts is None:
            return
        detail = {
            "epoch": checkpoint.epoch,
            "batch": checkpoint.batch,
            "damaged": [damaged.version for damaged in self._damaged],
            "failed": [failed.version for failed, _ in self._failed],
            "lost": newer,
            "stepped_over": [version for version in self._skipped if version != checkpoint.version],
        }
        run, version = checkpoint.run, checkpoint.version
        attempt = None if self._facts is None else self._facts(run, version, checkpoint.step)
        with self._locked():
            self._manifest.record_resumed(run, version, detail, attempt=attempt)


def _is_environmental(error: BaseException | None) -> bool:
    """True if an error, or one of its causes, comes from memory or the system rather than from the payload."""
    while error is not None:
        if isinstance(error, MemoryError | OSError):
            return True
        error = error.__cause__ or error.__context__
    return False
