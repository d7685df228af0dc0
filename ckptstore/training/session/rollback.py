"""A model that is taken back to a checkpoint while its fit runs; data, callbacks and learning rates stay."""

from __future__ import annotations

from typing import Any

from ckptstore.keras.model.adapter import adapter
from ckptstore.keras.private import synced
from ckptstore.keras.state import optimizers, training_state
from ckptstore.keras.state.arrays import first_not_finite
from ckptstore.keras.state.user_state import UserState
from ckptstore.records import Checkpoint


class Rollback:
    """One rollback of a model.

    Args:
        model: The model of the running fit.
        user_state: What the user's code keeps on it outside of Keras' variables, or None.

    Attributes:
        values: The state of the fit in the checkpoint that was loaded.
        lost: Paths of values of the user's code that could not be taken back, each with the reason.
    """

    def __init__(self, model: Any, user_state: UserState | None) -> None:
        self._model = synced(model)
        self._user_state = user_state
        self.lost: tuple[str, ...] = ()
        # Callbacks set these, and continue as they are; a schedule follows the optimizer's iterations.
        self._rates = optimizers.learning_rates(self._model)
        self.values: dict[str, Any] = {}

    def load(self, checkpoint: Checkpoint) -> bool:
        """Load a checkpoint; returns False if its weights are not finite.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
        """
        state = adapter.restore(self._model, checkpoint)
        self.values = training_state.fit_values(state)
        return first_not_finite(self._model.weights) is None

    def finish(self) -> bool:
        """Restore what else is the model's, and put the learning rates back.

        Returns:
            True if the metrics are those of the checkpoint, False if they were reset.
        """
        optimizers.set_learning_rates(self._model, self._rates)
        if self._user_state is not None:
            self.lost = self._user_state.restore(self.values.get("user", {})).lost
        if first_not_finite(self._model.metrics_variables) is None:
            return True
        self._model.reset_metrics()
        return False
