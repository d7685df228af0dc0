"""Saves a fit: its model, and the state of everything around it, as it is now or as it was a moment ago."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptstore.formats.snapshot import FitState, VariableKinds
from ckptstore.keras.private import FitLoop, synced, synced_train_state, wait_for_step
from ckptstore.keras.state.user_state import UserState
from ckptstore.metrics import scalar
from ckptstore.training.data.replay import DataReplay
from ckptstore.training.saving.save_point import SavePoint
from ckptstore.training.saving.saves import Saves
from ckptstore.training.session.fit_state import BeforeValidation, EpochEnd, logs_of, plain_logs, values_of
from ckptstore.training.session.loss_guard import LossGuard
from ckptstore.training.session.position import BatchPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class FitParts:
    """The parts of a fit by Keras' own loop that are saved with the model.

    Attributes:
        loop: The loop, with the other callbacks.
        replay: Position in its data.
        user_state: What the user's code keeps outside of Keras' variables, or None.
    """

    loop: FitLoop
    replay: DataReplay
    user_state: UserState | None


class FitSaver:
    """Saves one fit, each position once.

    Args:
        model: Its model.
        saves: Saves.
        losses: Watches its losses.
        fingerprint: Its fingerprint, as JSON.
        parts: What else is saved; None in a loop that is not Keras' own.

    Attributes:
        epoch_end: The state at the last epoch's end, until the first batch of the next epoch begins; else None.
        before_validation: Copies of what the running validation changes; else None.
    """

    def __init__(
        self, model: Any, saves: Saves, losses: LossGuard, fingerprint: str, parts: FitParts | None = None
    ) -> None:
        self._model = model
        self._saves = saves
        self._losses = losses
        self._fingerprint = fingerprint
        self._parts = parts
        self._saved: tuple[int, int | None] | None = None
        self.epoch_end: EpochEnd | None = None
        self.before_validation: BeforeValidation | None = None

    def epoch_begins(self, position: BatchPosition) -> None:
        """Keep the state at the end of the epoch before, since the callbacks are about to see the next one begin."""
        assert self._parts is not None
        self.epoch_end = EpochEnd.of(
            synced(self._model), position, self._parts.loop.others, self._parts.replay
        )

    def validation_begins(self) -> None:
        """Copy what a validation is about to change."""
        self.before_validation = BeforeValidation.of(synced(self._model))

    def is_saved(self, position: BatchPosition, batch: int | None) -> bool:
        """Return True if this batch of the position's epoch, or with None its end, was the last thing saved."""
        return self._saved == (position.epoch, batch)

    def save(
        self,
        position: BatchPosition,
        *,
        batch: int | None,
        logs: Mapping[str, Any] | None,
        before: BeforeValidation | None = None,
        end: bool = False,
        last: bool = False,
    ) -> None:
        """Save the fit; a crash after this returns leaves it saved, as `Saves.save` says.

        Args:
            position: Its position.
            batch: Zero-based index of the last finished batch, or None at the epoch's end.
            logs: Keras' logs.
            before: Copies of what a validation has changed, if one is running.
            end: True if the fit ends with it.
            last: True at the end of the last epoch.

        Raises:
            CheckpointStoreError: As `Saves.save`.
        """
        with synced_train_state(self._model, keep=end) as kinds:
            # Until here a device may still compute. The time that a save takes is measured from here.
            wait_for_step(self._model)
            numbers = plain_logs(logs or {})
            loss = scalar(numbers.get("loss"))
            point = SavePoint(
                epoch=position.epoch,
                batch=batch,
                step=position.step,
                logs=numbers,
                fit=self._state(batch, numbers, before or BeforeValidation(), kinds),
                resumable=loss is None or math.isfinite(loss),
                droppable=batch is not None and not end,
                expires=not self._losses.may_go_back,
                rollbacks=self._losses.rollbacks,
                finishes=last,
            )
            if self._saves.save(self._model, point):
                self._saved = (position.epoch, batch)

    def release(self) -> None:
        """Release the data and the callbacks, and the copies of states."""
        self._parts = self.epoch_end = self.before_validation = None

    def _state(
        self,
        batch: int | None,
        logs: Mapping[str, Any],
        before: BeforeValidation,
        kinds: VariableKinds | None,
    ) -> FitState:
        values: dict[str, Any] = {"fingerprint": self._fingerprint, "logs": logs_of(self._model, logs)}
        parts = self._parts
        if parts is not None:
            values["losses"] = self._losses.state()
            values["saver"] = self._saves.state(logs)
            values |= values_of(self._model, parts.loop.others, parts.replay, in_epoch=batch is not None)
            values["user"] = {} if parts.user_state is None else parts.user_state.capture()
        if self.epoch_end is not None:
            values |= self.epoch_end.values
            before = BeforeValidation(generators=self.epoch_end.generators)
        return before.state(values, kinds)
