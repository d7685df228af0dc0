"""`FitStore`: what a fit asks of the store that it saves to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from ckptstore.records import Checkpoint, EndReason, FinishedEpoch, Mode
from ckptstore.retention import Policy
from ckptstore.storage.heartbeat import Heartbeat

if TYPE_CHECKING:
    from ckptstore.background.save_queue import Backpressure, SaveQueue
    from ckptstore.commit.request import SaveRequest
    from ckptstore.formats.snapshot import Snapshot
    from ckptstore.store.model_adapter import Snapshots
    from ckptstore.store.writer import SaveOptions


class FitRecorder(Protocol):
    """Records the attempts of a fit; see `ckptstore.store.attempts.recorder.AttemptRecorder`."""

    def begin(self, run: str, *, otherwise: EndReason = "finished") -> int | None:
        """Begin an attempt, unless one has begun."""

    def plan(self, run: str, reason: EndReason, **detail: Any) -> None:
        """Note the reason of the end to come."""

    def failed(self, error: BaseException, run: str | None = None) -> None:
        """Note that an exception has ended the training."""


class FitStore(Protocol):
    """The store of a fit: a `ckptstore.store.store.CheckpointStore`, whose methods these are, or a `JoinedStore`."""

    @property
    def path(self) -> Path:
        """Its directory, absolute."""

    @property
    def recorder(self) -> FitRecorder:
        """Records attempts."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it, and note what has ended its attempts."""

    def close(self) -> None:
        """Close it."""

    # --- saving ---

    def prepare(
        self, model: Any, *, epoch: int, snapshots: Snapshots | None = None, **options: Unpack[SaveOptions]
    ) -> tuple[Snapshot, SaveRequest]:
        """Take a snapshot."""

    def commit(self, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        """Save a snapshot, and wait for it."""

    def open_save_queue(self, run: str, *, backpressure: Backpressure = "replace") -> SaveQueue:
        """Return the queue that saves in the background."""

    def retain(self, run: str, policy: Policy) -> list[int]:
        """Remove what a policy does not keep."""

    # --- the run ---

    def claim(self, run: str) -> None:
        """Own a run."""

    def begin(self, run: str) -> int:
        """Begin a run again."""

    def heartbeat(self, run: str) -> Heartbeat:
        """Return the run's heartbeat."""

    def record_epochs(self, run: str, epochs: Collection[FinishedEpoch]) -> None:
        """Record the metrics of epochs that were not saved."""

    def roll_back(
        self,
        run: str,
        load: Callable[[Checkpoint], bool] | None,
        *,
        sound_step: int,
        detail: Mapping[str, Any],
    ) -> Checkpoint | None:
        """Go back to the newest sound checkpoint."""

    def record_bad_loss(self, run: str, detail: Mapping[str, Any]) -> None:
        """Record a loss that went bad."""

    # --- what there is ---

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest resume point."""

    def checkpoint_without_state(self, run: str | None = None) -> Checkpoint | None:
        """Return a checkpoint that cannot be resumed from, where there is no other."""

    def load_newest_resume_point(
        self, load: Callable[[Checkpoint], object], run: str | None = None, *, count_starts: bool = True
    ) -> Checkpoint | None:
        """Load the newest resume point that can be loaded."""

    def best(self, metric: str, *, mode: Mode | None, run: str) -> Checkpoint | None:
        """Return the best checkpoint, or None."""
