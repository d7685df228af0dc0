"""State of a model's optimizers that is neither in its configuration nor among their variables.

- The variables that each one trains: Keras builds a model's own optimizers (a GAN's two, say) only with their first
  step, and into an optimizer that is not built nothing can be loaded.
- The learning rates that the script set: the one in the checkpoint is run-time state, and training continues with it
  even if the script sets another one now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ckptstore.keras import private
from ckptstore.keras.state.arrays import host_array

RATES = "learning_rates"
# In a fit that was resumed: the rates that the run has kept, whatever the script sets now.
RATES_IN_USE = "learning_rates_in_use"


def learning_rates(model: Any) -> list[float | None]:
    """Return the learning rate of each optimizer, or None for one with a schedule.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> model.compile(keras.optimizers.SGD(0.5), "mse")
        >>> learning_rates(model)
        [0.5]
    """
    return [_rate(optimizer) for optimizer in private.optimizers_of(model)]


def _rate(optimizer: Any) -> float | None:
    rate: Any = getattr(optimizer, "learning_rate", None)
    # The rate of a schedule is a tensor, computed from the step.
    return float(host_array(rate)) if hasattr(rate, "assign") else None


def set_learning_rates(model: Any, rates: Sequence[float | None]) -> None:
    """Set the learning rates to those that `learning_rates` returned."""
    for optimizer, rate in zip(private.optimizers_of(model), rates, strict=False):
        if rate is not None and _rate(optimizer) != rate:
            optimizer.learning_rate = rate


def rates_in_use(fingerprint: Mapping[str, Any]) -> list[float | None]:
    """Return the learning rates that a run began with, from the fingerprint of any fit of it.

    A script that was changed since sets others at each start, and each resume has to report that they are not used.
    """
    rates: list[float | None] = fingerprint.get(RATES_IN_USE, fingerprint.get(RATES, []))
    return rates


def changed_learning_rates(
    begun: Sequence[float | None], live: Sequence[float | None], saved: Sequence[float | None]
) -> list[str]:
    """Return a short line for each learning rate that the script changed, and that is not used.

    Args:
        begun: The rates that the script set when the run began.
        live: The rates that it sets now.
        saved: The rates at the save.

    Example:
        >>> changed_learning_rates([0.1], [0.1], [0.05]), changed_learning_rates([0.1], [0.05], [0.05])
        ([], [])
        >>> changed_learning_rates([0.1], [0.2], [0.05])
        ['learning_rate 0.1 -> 0.2 (the run keeps the saved 0.05; set another in a callback)']
    """
    return [
        f"learning_rate {then:g} -> {now:g} (the run keeps the saved {kept:g}; set another in a callback)"
        for then, now, kept in zip(begun, live, saved, strict=False)
        if then is not None and now is not None and kept is not None and now not in (then, kept)
    ]


def trained_indices(model: Any) -> list[list[int]]:
    """Return, for each optimizer, the indices of the variables that it trains among all of the model's variables.

    Whether a variable is trainable may change during a step: many models freeze one part while they train another.
    """
    optimizers = private.optimizers_of(model)
    known = {id(variable): index for index, variable in enumerate(model.variables)}
    return [
        [known[id(variable)] for variable in private.variables_trained_by(optimizer) if id(variable) in known]
        for optimizer in optimizers
    ]


def build_optimizers(model: Any, trained: Sequence[Sequence[int]], in_scope: Mapping[int, bool]) -> None:
    """Build the optimizers that have made no step yet for the variables that they trained when they were saved.

    Args:
        model: The model.
        trained: What `trained_indices` returned at the save; those that trained nothing are not built.
        in_scope: By the optimizers' ids, whether they built the one that they wrap in their own name scope.
    """
    variables = model.variables
    for optimizer, places in zip(private.optimizers_of(model), trained, strict=False):
        if not optimizer.built and places and max(places) < len(variables):
            scoped = in_scope.get(id(optimizer), False)
            private.build_optimizer(optimizer, [variables[place] for place in places], in_scope=scoped)
