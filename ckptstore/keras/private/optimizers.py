"""Optimizers that are saved with a model, and their variables without copies."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras


def optimizers_of(model: Any, optimizer: Any = None) -> list[Any]:
    """Return the optimizers that are saved with a model, wrapped ones after their wrappers."""
    found: list[Any] = []
    waiting = [*vars(model).values(), optimizer]
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, keras.optimizers.Optimizer) and not any(value is known for known in found):
            found.append(value)
            waiting.append(getattr(value, "inner_optimizer", None))
    return found


def variables_trained_by(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for, in its order; empty if that is unknown."""
    return list(getattr(optimizer, "_trainable_variables", ()))


def schedule_of(optimizer: Any) -> Any:
    """Return the schedule that an optimizer takes its learning rate from, or None."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


@contextmanager
def variables_by_reference(optimizers: Iterable[Any]) -> Iterator[None]:
    """Make optimizers that save in Keras' own way pass their variables instead of copies, for the block."""
    keras_way = keras.optimizers.Optimizer.save_own_variables
    changed = [optimizer for optimizer in optimizers if type(optimizer).save_own_variables is keras_way]
    for optimizer in changed:
        # Directly in the instance, without the optimizer's own tracking of attributes.
        optimizer.__dict__["save_own_variables"] = functools.partial(_store_variables, optimizer)
    try:
        yield
    finally:
        for optimizer in changed:
            optimizer.__dict__.pop("save_own_variables", None)


def _store_variables(optimizer: Any, store: dict[str, Any]) -> None:
    for index, variable in enumerate(optimizer.variables):
        store[str(index)] = variable
