"""The state of the last train step on JAX, which Keras puts into the variables only when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import keras

from ckptstore.formats.snapshot import VariableKinds
from ckptstore.keras.private.variables import variables_by_kind

_VARIABLES = ("trainable_variables", "non_trainable_variables", "metrics_variables")
_OPTIMIZER = "optimizer_variables"
_GROUPS = frozenset((_OPTIMIZER, *_VARIABLES))


def wait_for_step(callback: Any) -> None:
    """Wait until the last train step is computed; a device may be some steps behind.

    Args:
        callback: In the middle of a fit; its `model` need not be asked for before.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        state = getattr(getattr(callback, "_model", None), "_jax_state", None) or {}
        # One computation makes all of them: to ask a thousand one by one takes most of a millisecond.
        jax.block_until_ready([values[-1] for values in state.values() if values])
    elif backend == "torch":
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


@contextmanager
def synced_train_state(callback: Any, *, keep: bool = False) -> Iterator[VariableKinds | None]:
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

    Yields:
        The model's variables of each kind, where they had to be looked for.
    """
    model: Any = getattr(callback, "_model", None)
    state = getattr(model, "_jax_state", None)
    synced = _sync(model, state)
    yield synced.kinds if synced else None
    if synced and not keep and model._jax_state is state and model._jax_state_synced:
        for variable, value in zip(synced.variables, synced.before, strict=True):
            variable._value = value
        model._jax_state_synced = False


# One tuple for each of a thousand variables would be a noticeable part of the time that this takes.
@dataclass(frozen=True, slots=True)
class _Synced:
    """Variables that were given their values; what they held, and those of each kind that the model has.

    While Keras trains they hold nothing, unless somebody has assigned to one, which Keras takes no notice of.
    """

    variables: list[Any]
    before: list[Any]
    kinds: VariableKinds


def _sync(model: Any, state: Any) -> _Synced | None:
    """Give the variables their values; None where it is left to Keras."""
    if not state or getattr(model, "_jax_state_synced", True) or not _GROUPS.issuperset(state):
        return None
    kinds = variables_by_kind(model)
    found = dict(zip(_VARIABLES, kinds, strict=True))
    variables: list[Any] = []
    values: list[Any] = []
    for group, ones in state.items():
        if ones:
            variables += model.optimizer.variables if group == _OPTIMIZER else found[group]
            values += ones
            if len(variables) != len(values):
                return None
    if not _fit(model, variables, values):
        return None
    before = list(map(attrgetter("_value"), variables))
    for variable, value in zip(variables, values, strict=True):
        variable._direct_assign(value)
    model._jax_state_synced = True
    return _Synced(variables, before, kinds)


# Of each model, the train step and the variables whose values were found to fit.
_fitting: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


def _fit(model: Any, variables: list[Any], values: list[Any]) -> bool:
    """Look at the values that a compiled train step first returns alone: those to come have their shapes and dtypes."""
    key = id(getattr(model, "train_function", None)), hash(tuple(map(id, variables)))
    if getattr(model, "run_eagerly", True) or _fitting.get(model) != key:
        if not all(map(_fits, variables, values)):
            return False
        _fitting[model] = key
    return True


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
