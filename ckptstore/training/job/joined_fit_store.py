"""`JoinedFitStore`: what a `fit` asks of its store, in every process but 0."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from ckptstore.records import Checkpoint, EndReason, FinishedEpoch, Mode
from ckptstore.retention import Policy
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.training.job.beginning import JoinedBeginning
from ckptstore.training.job.fit_job import FitJob
from ckptstore.training.job.joined_store import JoinedStore

if TYPE_CHECKING:
    from ckptstore.background.save_queue import Backpressure, SaveQueue


class JoinedFitStore(JoinedStore):
    """Implementation of `ckptstore.training.job.fit_store.FitStore` for a fit.

    What only the store's owner does, such as retention, process 0 does for all: here it does nothing.

    Args:
        path: As for `JoinedStore`.
        job: As for `JoinedStore`.

    Attributes:
        recorder: Records nothing: the attempt is process 0's.
    """

    def __init__(self, path: str | os.PathLike[str], job: FitJob) -> None:
        super().__init__(path, job)
        self.recorder = _NoRecorder()
        self._heartbeats: dict[str, Heartbeat] = {}

    def open_save_queue(self, run: str, *, backpressure: Backpressure = "replace") -> SaveQueue:
        """Return the queue that writes this process's parts in a thread."""
        from ckptstore.background.save_queue import SaveQueue

        return SaveQueue(self.path, None, backpressure="wait", job=self._job.session)

    def begin(self, run: str) -> int:
        """Take part in the beginning of a run from scratch."""
        JoinedBeginning(self._job, self.path).load(_nothing_is_loaded)
        return 0

    def load_newest_resume_point(
        self, load: Callable[[Checkpoint], object], run: str | None = None, *, count_starts: bool = True
    ) -> Checkpoint | None:
        """Load the checkpoint that process 0 has found; None to begin without one.

        Raises:
            ResumeRefusedError: A process cannot begin; none begins.
        """
        return JoinedBeginning(self._job, self.path).load(load)

    # --- process 0's business ----------------------------------------------------------------------

    def claim(self, run: str) -> None:
        """Do nothing."""

    def heartbeat(self, run: str) -> Heartbeat:
        """Return a heartbeat that writes nothing: the run's is process 0's."""
        return self._heartbeats.setdefault(run, Heartbeat(Layout(self.path), run, 0, sparse=True))

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Do nothing."""
        return []

    def record_epochs(self, run: str, epochs: Collection[FinishedEpoch]) -> None:
        """Do nothing."""

    def record_bad_loss(self, run: str, detail: Mapping[str, Any]) -> None:
        """Do nothing."""

    def roll_back(
        self,
        run: str,
        load: Callable[[Checkpoint], bool] | None,
        *,
        sound_step: int,
        detail: Mapping[str, Any],
    ) -> Checkpoint | None:
        """Return None: a fit by several processes refuses `on_bad_loss`, and does not roll back."""

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return None; see `load_newest_resume_point`."""

    def checkpoint_without_state(self, run: str | None = None) -> Checkpoint | None:
        """Return None: process 0 warns of it."""

    def best(self, metric: str, *, mode: Mode | None, run: str) -> Checkpoint | None:
        """Return None: the manifest is process 0's, which alone decides what is saved as the best."""


class _NoRecorder:
    """Implementation of `ckptstore.training.job.fit_store.FitRecorder`."""

    def begin(self, run: str, *, otherwise: EndReason = "finished") -> int | None:
        """Do nothing."""

    def plan(self, run: str, reason: EndReason, **detail: Any) -> None:
        """Do nothing."""

    def failed(self, error: BaseException, run: str | None = None) -> None:
        """Do nothing."""


def _nothing_is_loaded(checkpoint: Checkpoint) -> None:
    raise AssertionError(f"version {checkpoint.version} was offered to a run that begins from scratch")
