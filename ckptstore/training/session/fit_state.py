"""State of a fit that is saved with the model: callbacks, data, learning rates, logs, random generators.

Two copies of it are taken early. A validation changes metrics and generators, so that a save in the middle of one needs
them as they were before. And a callback that raises in ``on_epoch_begin``, or before the first batch, ends the fit when
others, and perhaps the data, have seen the epoch begin: what can be resumed from is the end of the epoch before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from ckptstore.formats.snapshot import FitState, VariableKinds
from ckptstore.keras.state import callbacks, optimizers, random_state
from ckptstore.keras.state.arrays import host_array, independent_copies
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.keras.state.replicas import replica_values
from ckptstore.metrics import scalar
from ckptstore.training.data.replay import DataReplay
from ckptstore.training.session.position import BatchPosition


def values_of(model: Any, others: Sequence[Any], replay: DataReplay, *, in_epoch: bool) -> dict[str, Any]:
    """Return the state of the parts of a fit.

    Args:
        model: The model.
        others: The callbacks of the fit but the one that saves.
        replay: Position in its data.
        in_epoch: False at an epoch's end.
    """
    return {
        "stopped": bool(model.stop_training),
        "epochs": replay.epochs,
        "callbacks": callbacks.get_states(others),
        "data": replay.position(in_epoch=in_epoch),
        optimizers.RATES: optimizers.learning_rates(model),
    }


def plain_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return logs as numbers, and as arrays where they are not single numbers."""
    numbers = {}
    for name, value in logs.items():
        number = scalar(value)
        numbers[str(name)] = (
            np.array(host_array(value)) if number is None and hasattr(value, "shape") else number
        )
    return numbers


def logs_of(model: Any, logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the logs of a save as plain numbers; where no batch has logged anything since a rollback, the metrics."""
    return dict(logs) or plain_logs(model.get_metrics_result())


@dataclass(frozen=True, slots=True)
class BeforeValidation:
    """Copies of what a validation changes, taken before it.

    Attributes:
        values: Copies of metrics and seed generators as the backend has them, by the variables' ids.
        generators: The global random generators; None for the present ones.
    """

    values: Mapping[int, Any] = field(default_factory=dict)
    generators: GlobalGenerators | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Copy what a validation of the model is about to change."""
        weights = {id(variable) for variable in model.weights}
        everything = [*model.variables, *model.metrics_variables]
        left_out = {id(variable): variable for variable in everything if id(variable) not in weights}
        replicas = {id(replica.value): replica for replica in replica_values(left_out.values())}
        changed = {**left_out, **replicas}
        copies = independent_copies(list(changed.values()))
        return cls(dict(zip(changed, copies, strict=True)), random_state.capture())

    def state(self, values: Mapping[str, Any], kinds: VariableKinds | None) -> FitState:
        """Return the state of a fit with the copies in place of the present values.

        Args:
            values: The state of the fit's parts.
            kinds: The model's variables, if they were just looked up.
        """
        arrays = {key: host_array(value) for key, value in self.values.items()}
        return FitState(values=values, overrides=arrays, generators=self.generators, variables=kinds)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnd:
    """The state of a fit at an epoch's end, before any callback has seen the next epoch begin.

    Attributes:
        position: The epoch and its batches.
        values: The state of the other callbacks, and the position in the data.
        generators: The global random generators.
        rates: The learning rates, which schedulers set when an epoch begins.
    """

    position: BatchPosition
    values: Mapping[str, Any]
    generators: GlobalGenerators
    rates: list[float | None]

    @classmethod
    def of(cls, model: Any, position: BatchPosition, others: list[Any], replay: DataReplay) -> Self | None:
        """Return the state of a fit, or None if it has not trained yet."""
        if not position.step:
            return None
        values = {"callbacks": callbacks.get_states(others), "data": replay.position(in_epoch=False)}
        return cls(
            position=replace(position),
            values=values,
            generators=random_state.capture(),
            rates=optimizers.learning_rates(model),
        )
