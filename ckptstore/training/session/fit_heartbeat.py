"""Tells a run's heartbeat what Keras' hooks tell: where a fit stands, and in which phase it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ckptstore.keras.private import FitLoop
from ckptstore.storage.heartbeat import Heartbeat, all_alive
from ckptstore.training.session.hooks import tell_first
from ckptstore.training.session.position import BatchPosition


class FitHeartbeat:
    """The heartbeat of one fit.

    Args:
        heartbeat: The run's heartbeat.
        position: The position of the fit, counted by its owner before this is told of a batch.
        params: What Keras tells a callback of the fit.
        is_by_hand: True in a loop that is not Keras' own: nobody tells of a validation, and a silence tells nothing.

    Attributes:
        heartbeat: The run's heartbeat.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        position: BatchPosition,
        params: Mapping[str, Any] | None,
        *,
        is_by_hand: bool,
    ) -> None:
        self.heartbeat = heartbeat
        self._position = position
        heartbeat.sparse = is_by_hand
        heartbeat.epochs = _number(params, "epochs")
        heartbeat.batches = _number(params, "steps")

    def watch(self, loop: FitLoop, *, is_skipping: Callable[[], bool]) -> None:
        """Listen to the hooks of all callbacks of a fit, until the loop is released.

        The logs are passed over, since they may still be on a device; `logs_arrived` takes those of single callbacks.

        Args:
            loop: Keras' loop.
            is_skipping: Returns True while batches are skipped that were trained before.
        """
        self.heartbeat.batches = loop.data.batches_per_epoch
        for name, tell in (
            ("on_epoch_begin", lambda epoch, logs=None: self.epoch_begins(epoch)),
            ("on_epoch_end", lambda epoch, logs=None: self.epoch_ends(None)),
            ("on_test_begin", lambda logs=None: self.test_begins()),
            ("on_test_batch_begin", lambda batch, logs=None: self.alive()),
            ("on_test_end", lambda logs=None: self.test_ends()),
        ):
            loop.wrap_method(loop.callbacks, name, tell_first(tell))
        loop.wrap_method(
            loop.callbacks, "on_train_batch_end", partial(partial, self._batch_ends, is_skipping)
        )

    def _batch_ends(
        self, is_skipping: Callable[[], bool], others: Callable[..., None], batch: int, logs: Any = None
    ) -> None:
        skipped = is_skipping()
        others(batch, logs)
        if skipped:
            all_alive()
        else:
            self.batch_ends(None)

    def logs_arrived(self, logs: Mapping[str, Any] | None) -> None:
        """Take note of the logs that Keras gave a callback; it may do so in another thread."""
        self.heartbeat.tell(logs)

    # --- the hooks -----------------------------------------------------------------------------------

    def epoch_begins(self, epoch: int) -> None:
        """Tell that an epoch begins."""
        heartbeat = self.heartbeat
        heartbeat.enter("starting" if heartbeat.phase == "starting" else "paused", epoch=epoch)

    def batch_ends(self, logs: Mapping[str, Any] | None) -> None:
        """Tell that a train batch has ended."""
        position = self._position
        self.heartbeat.beat(position.epoch, position.batch, position.step, logs)

    def epoch_ends(self, logs: Mapping[str, Any] | None) -> None:
        """Tell that an epoch has ended, with the logs that Keras gives then."""
        heartbeat = self.heartbeat
        if heartbeat.batches is None:
            heartbeat.batches = self._position.batches or None
        heartbeat.tell(logs)
        heartbeat.enter("paused")
        heartbeat.alive()

    def test_begins(self) -> None:
        """Tell that a validation begins."""
        self.heartbeat.enter("validating")

    def alive(self) -> None:
        """Tell that a batch of a validation has begun."""
        all_alive()

    def test_ends(self) -> None:
        """Tell that a validation has ended."""
        self.heartbeat.enter("paused")


def _number(params: Mapping[str, Any] | None, name: str) -> int | None:
    found = (params or {}).get(name)
    return found if isinstance(found, int) else None
