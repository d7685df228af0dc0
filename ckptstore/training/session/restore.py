"""Restores a running fit from its resume point: when its first epoch begins, or at its end if no epoch is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptstore.keras.private import FitLoop, synced
from ckptstore.keras.state import callbacks
from ckptstore.keras.state.user_state import UserState
from ckptstore.training.data.replay import DataReplay
from ckptstore.training.data.replay_target import ReplayResult
from ckptstore.training.session import messages
from ckptstore.training.session.resumed_run import ResumedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class FitToRestore:
    """The parts of a running fit that are restored.

    Attributes:
        model: Its model.
        loop: Keras' loop.
        replay: Reaches the position in the data again.
        user_state: What the user's code keeps outside of Keras' variables, or None.
    """

    model: Any
    loop: FitLoop
    replay: DataReplay
    user_state: UserState | None

    def begin_epoch(
        self,
        resumed: ResumedRun,
        others: Callable[..., None],
        epoch: int,
        logs: Any,
        *,
        on_replayed: Callable[[ReplayResult], None],
    ) -> None:
        """Restore everything in ``on_epoch_begin`` of the first epoch: all callbacks have reset themselves by then.

        Args:
            resumed: What the fit is resumed from.
            others: Calls the hook of all callbacks.
            epoch: The epoch that Keras begins.
            logs: What Keras passes to the hook.
            on_replayed: Called when the position in the data is reached.
        """
        self.loop.restore_initial_epoch()
        resumed.refuse_other_epoch(epoch)
        if resumed.batches:
            # Those that keep no state of their own are new, and have to see the epoch begin.
            for callback in self.loop.others:
                if not callbacks.has_own_state(callback):
                    callback.on_epoch_begin(epoch, logs)
        self._restore(resumed, on_replayed)
        if not resumed.batches:
            others(epoch, logs)

    def _restore(self, resumed: ResumedRun, on_replayed: Callable[[ReplayResult], None]) -> None:
        resumed.restore_model(synced(self.model))
        messages.warn_user_state(resumed.restore_user_state(self.user_state))
        if resumed.begins_new_fit(self.loop.initial_epoch):
            return
        messages.warn_not_restored(*resumed.restore_callbacks(self.loop.others))
        resumed.restore_generators()
        messages.warn_inexact(resumed.unsaved_draws())
        messages.warn_inexact(self.replay.go_to(resumed.target(on_replayed)))

    def load_finished(self, resumed: ResumedRun) -> None:
        """Restore the end of a run in ``on_train_end``, since not one epoch was left to train."""
        self.loop.restore_initial_epoch()
        resumed.load_finished(synced(self.model), behind_last_epoch=self.loop.finalize_weights)
        left = resumed.restore_callbacks(self.loop.others, ended=True)
        self.replay.end_at(resumed.position)
        if "callbacks" in resumed.values:  # or it was said that no callback saved it
            messages.warn_not_restored(*left)
        messages.warn_lost(resumed.restore_user_state(self.user_state).lost)
        resumed.restore_generators()
