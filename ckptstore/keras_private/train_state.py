"""The state of the last train step on JAX, which Keras puts into the variables only when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import keras

_VARIABLES = ("trainable_variables", "non_trainable_variables", "metrics_variables")
_OPTIMIZER = "optimizer_variables"


def wait_for_step(callback: Any) -> None:
    """Wait until the last train step is computed; a device may be some steps behind.

    Args:
        callback: In the middle of a fit; its `model` need not be asked for before.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        jax.block_until_ready(getattr(getattr(callback, "_model", None), "_jax_state", None))
    elif backend == "torch":
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


@contextmanager
def train_state_in_variables(callback: Any, *, keep: bool = False) -> Iterator[None]:
    """Put the state of the last step into the variables of a callback's model for the block, in little time.

    Keras does it when a callback asks for its model, by assigning to one variable after the other with all checks, and
    asks all variables again before the next step: at a thousand variables some milliseconds each that a training step
    waits. A value that has the shape and dtype of its variable needs no checks; and where the block changes nothing,
    the state that Keras still holds is what the next step begins with. In a Keras without one of ``Callback._model``,
    ``Model._jax_state``, ``_jax_state_synced``, ``Variable._value`` and ``Variable._direct_assign``, or where something
    does not fit, nothing is done here, and Keras does it. If the block raises, the variables keep their values.

    Args:
        callback: In the middle of a fit; its `model` need not be asked for before.
        keep: True to leave the variables with their values, for what comes after the fit.
    """
    model: Any = getattr(callback, "_model", None)
    state = getattr(model, "_jax_state", None)
    before = _sync(model, state)
    yield
    if before and not keep and model._jax_state is state and model._jax_state_synced:
        for variable, value in before:
            variable._value = value
        model._jax_state_synced = False


def _sync(model: Any, state: Any) -> list[tuple[Any, Any]]:
    """Return the variables that were given their values, and what they held; none where it is left to Keras.

    While Keras trains that is nothing, unless somebody has assigned to one, which Keras takes no notice of.
    """
    if not state or getattr(model, "_jax_state_synced", True):
        return []
    pairs = _pairs(model, state)
    if pairs is None or not _fit(model, pairs):
        return []
    before = [(variable, variable._value) for variable, _ in pairs]
    for variable, value in pairs:
        variable._direct_assign(value)
    model._jax_state_synced = True
    return before


# Of each model, the train step and the variables whose values were found to fit.
_fitting: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


def _fit(model: Any, pairs: list[tuple[Any, Any]]) -> bool:
    """Look at the values that a compiled train step first returns alone: those to come have their shapes and dtypes."""
    key = id(getattr(model, "train_function", None)), hash(tuple(id(variable) for variable, _ in pairs))
    if getattr(model, "run_eagerly", True) or _fitting.get(model) != key:
        if not all(_fits(variable, value) for variable, value in pairs):
            return False
        _fitting[model] = key
    return True


def _pairs(model: Any, state: dict[str, Any]) -> list[tuple[Any, Any]] | None:
    known = {_OPTIMIZER, *_VARIABLES}
    if not known.issuperset(state):
        return None
    pairs: list[tuple[Any, Any]] = []
    for group, values in state.items():
        if values:
            owner = model.optimizer if group == _OPTIMIZER else model
            variables = owner.variables if group == _OPTIMIZER else getattr(owner, group)
            if len(variables) != len(values):
                return None
            pairs += zip(variables, values, strict=True)
    return pairs


def _fits(variable: Any, value: Any) -> bool:
    # Keras has taken the old value away for the time of the training. `Variable.dtype` looks for scopes first.
    return (
        isinstance(variable, keras.Variable)
        and hasattr(variable, "_direct_assign")
        and hasattr(variable, "_value")
        and value.shape == variable.shape
        and _name_of(value.dtype) == getattr(variable, "_dtype", None)
    )


@cache
def _name_of(dtype: Any) -> str:
    """Return the name of a numpy dtype, which numpy puts together each time."""
    return str(dtype.name)
