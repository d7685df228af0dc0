"""The session of a loop that is not Keras' own: the hooks of our callback, which the loop calls, do the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.training.session.session import FitSession


class SessionByHand(FitSession):
    """A session that is told of epochs and batches by its own callback alone; it knows no other callbacks."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Begin an epoch."""
        self.position.begin_epoch(epoch)
        self._heartbeat.epoch_begins(epoch)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Save if a save is due."""
        super().on_train_batch_end(batch, logs)
        self._batch_ends(lambda *_: None, batch, logs)
        self._heartbeat.batch_ends(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Save if a save is due."""
        super().on_epoch_end(epoch, logs)
        self._heartbeat.epoch_ends(logs)
        self._epoch_ended(epoch, logs or {})

    def on_train_end(self) -> None:
        """Release everything."""
        self._train_ends(lambda *_: None)
