"""Optimizers that are saved with a model, and their variables without copies."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras

# Longer containers of a model hold data (a replay buffer, a vocabulary); of private ones, what Keras keeps itself.
_MAX_ITEMS, _MAX_PRIVATE_ITEMS = 1000, 20


def optimizers_of(model: Any, optimizer: Any = None) -> list[Any]:
    """Return the optimizers that are saved with a model, wrapped ones after their wrappers.

    They are attributes of the model, or in lists, tuples and dicts of its attributes; after these come those of the
    models in it.

    Args:
        model: The model.
        optimizer: One that the model does not know.
    """
    found: list[Any] = []
    seen = {id(model)}
    owners, extra = deque([model]), [optimizer]
    while owners:
        waiting = deque([*_attributes(owners.popleft()), *extra])
        extra = []
        while waiting:
            value = waiting.popleft()
            if not isinstance(value, _HOLDERS) or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, keras.optimizers.Optimizer):
                found.append(value)
                waiting.append(getattr(value, "inner_optimizer", None))
            elif isinstance(value, keras.Layer):
                if value._layers:  # else nothing in it is compiled
                    owners.append(value)
            else:
                waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


_HOLDERS = (keras.optimizers.Optimizer, keras.Layer, list, tuple, dict)


def _attributes(owner: Any) -> Iterator[Any]:
    for name, value in vars(owner).items():
        if name == "_layers":
            yield from [layer for layer in value if layer._layers]
        elif not isinstance(value, list | tuple | dict):
            yield value
        elif name.startswith("_"):
            # What TensorFlow tracks refers to all that there is.
            if len(value) <= _MAX_PRIVATE_ITEMS and not name.startswith("_self_"):
                yield value
        elif len(value) <= _MAX_ITEMS:
            yield value


def variables_trained_by(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for, in its order; empty if that is unknown."""
    return list(getattr(optimizer, "_trainable_variables", ()))


def build_optimizer(optimizer: Any, variables: Any, *, in_scope: bool) -> None:
    """Build an optimizer that has made no step.

    Args:
        optimizer: The optimizer.
        variables: What it trains.
        in_scope: True to build it as its first step does: then the paths of a wrapped one's slots begin with its name.
    """
    with keras.name_scope(optimizer.name, caller=optimizer) if in_scope else nullcontext():
        optimizer.build(variables)


def builds_in_scope(optimizer: Any) -> bool:
    """Return True if an optimizer built the one that it wraps in its own name scope."""
    inner: Any = getattr(optimizer, "inner_optimizer", None)
    if not isinstance(inner, keras.optimizers.Optimizer):
        return False
    return any(str(slot.path).startswith(f"{optimizer.name}/{inner.name}/") for slot in inner.variables)


@contextmanager
def left_unbuilt(optimizer: Any) -> Iterator[None]:
    """Make Keras build no optimizer of a model for the block."""
    if not isinstance(optimizer, keras.optimizers.Optimizer) or optimizer.built:
        yield
        return
    optimizer.built = True
    try:
        yield
    finally:
        optimizer.built = False


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
