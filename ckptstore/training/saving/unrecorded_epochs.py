"""Finished epochs of a fit whose metrics are not in the manifest yet; they go there with the next save."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime

from ckptstore.records import FinishedEpoch


class UnrecordedEpochs:
    """The finished epochs that no save is known to have brought into the manifest.

    An epoch stays here until a save that brought it, or was made at its end, is known to have succeeded. So a save that
    fails, or is replaced by a newer one while it waits, loses none: the next one brings them again, and the manifest
    leaves alone what it has already. Epochs that are here when the process is killed ended after the newest checkpoint,
    and are trained again after the resume.

    Example:
        >>> epochs = UnrecordedEpochs()
        >>> for epoch in range(3):
        ...     epochs.add(epoch, step=4 * epoch + 4, metrics={"val_loss": 0.5})
        >>> [earlier.epoch for earlier in epochs.before(2, batch=None)]  # a save at the end of epoch 2
        [0, 1]
        >>> epochs.recorded(1)
        >>> [earlier.epoch for earlier in epochs.before(3, batch=17)]
        [2]
    """

    def __init__(self) -> None:
        self._epochs: dict[int, FinishedEpoch] = {}

    def add(self, epoch: int, *, step: int | None, metrics: Mapping[str, float]) -> None:
        """Add an epoch that has just ended."""
        self._epochs[epoch] = FinishedEpoch(
            epoch=epoch, step=step, ended_at=datetime.now(UTC), metrics=dict(metrics)
        )

    def before(self, epoch: int, *, batch: int | None) -> tuple[FinishedEpoch, ...]:
        """Return those that a save at a position brings; its own epoch is recorded as the checkpoint itself."""
        own = epoch if batch is None else None
        return tuple(finished for finished in self._epochs.values() if finished.epoch != own)

    def recorded(self, last: int) -> None:
        """Forget the epochs up to `last`: a save that brought them has succeeded."""
        if self._epochs:
            self._epochs = {epoch: finished for epoch, finished in self._epochs.items() if epoch > last}

    def all(self) -> Collection[FinishedEpoch]:
        """Return all of them, in the order in which they ended."""
        return tuple(self._epochs.values())

    def replace(self, epochs: Iterable[FinishedEpoch] = ()) -> None:
        """Begin a fit: with the given epochs, which an earlier fit has left unrecorded."""
        self._epochs = {finished.epoch: finished for finished in epochs}
