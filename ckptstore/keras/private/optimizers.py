"""The optimizers that are saved with a model, and their variables in the place of copies."""

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
        one = waiting.pop(0)
        if isinstance(one, keras.optimizers.Optimizer) and not any(one is other for other in found):
            found.append(one)
            waiting.append(getattr(one, "inner_optimizer", None))
    return found


def variables_trained_by(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for, in its order; none where that cannot be told."""
    return list(getattr(optimizer, "_trainable_variables", ()))


@contextmanager
def variables_by_reference(optimizers: Iterable[Any]) -> Iterator[None]:
    """Let optimizers that save in Keras' own way hand over their variables instead of copies of them."""
    own_way = keras.optimizers.Optimizer.save_own_variables
    changed = [one for one in optimizers if type(one).save_own_variables is own_way]
    for one in changed:
        # Straight into the instance, past the optimizer's own tracking of attributes.
        one.__dict__["save_own_variables"] = functools.partial(_hand_over, one)
    try:
        yield
    finally:
        for one in changed:
            one.__dict__.pop("save_own_variables", None)


def _hand_over(optimizer: Any, store: dict[str, Any]) -> None:
    for index, variable in enumerate(optimizer.variables):
        store[str(index)] = variable
