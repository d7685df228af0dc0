"""State of the last train step on JAX, which Keras writes to the variables only when they are needed."""

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


def unsynced_model(callback: Any) -> Any:
    """Return a callback's model as it is; ``callback.model`` writes the state of the last step to its variables first.

    In a Keras without ``Callback._model`` that happens here too, which is slower.
    """
    model = getattr(callback, "_model", None)
    return model if hasattr(model, "jax_state_sync") else callback.model


def synced(model: Any) -> Any:
    """Return a model with the state of the last step in its variables; Keras writes it there."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return model


def wait_for_step(model: Any) -> None:
    """Wait until the last train step is computed; a device may be a few steps late.

    Args:
        model: The model of the running fit.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        state = getattr(model, "_jax_state", None) or {}
        # One computation makes all of them: asking a thousand one by one takes almost a millisecond.
        jax.block_until_ready([values[-1] for values in state.values() if values])
    elif backend == "torch":
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


@contextmanager
def synced_train_state(model: Any, *, keep: bool = False) -> Iterator[VariableKinds | None]:
    """Write the state of the last step to the variables of a model for the block, quickly.

    Keras does so when a callback accesses its model: it assigns to one variable after the other with all checks, and
    reads all variables again before the next step. With a thousand variables each takes some milliseconds, in which
    training waits. A value with the shape and dtype of its variable needs no checks; and if the block changes nothing,
    the next step begins with the state that Keras still holds. In a Keras without one of ``Model._jax_state``,
    ``_jax_state_synced``, ``Variable._value`` and ``Variable._direct_assign``, or if a value does not match its
    variable, Keras does it, as in `synced`. If the block raises, variables keep their values.

    Args:
        model: The model of the running fit.
        keep: True to leave the values in the variables, for the code after the fit.

    Yields:
        The model's variables of each kind, if they had to be collected.
    """
    state = getattr(model, "_jax_state", None)
    done = _sync(model, state)
    if done is None:
        synced(model)
    yield done.kinds if done else None
    if done and not keep and model._jax_state is state and model._jax_state_synced:
        for variable, value in zip(done.variables, done.before, strict=True):
            variable._value = value
        model._jax_state_synced = False


# Lists, because a tuple for each of a thousand variables would take a noticeable part of the time.
@dataclass(frozen=True, slots=True)
class _Synced:
    """Variables that were given their values, their values before that, and the model's variables of each kind.

    While Keras trains, variables hold nothing, unless a caller assigned to one, which Keras ignores.
    """

    variables: list[Any]
    before: list[Any]
    kinds: VariableKinds


def _sync(model: Any, state: Any) -> _Synced | None:
    """Give the variables their values; return None if it is left to Keras."""
    if not state or getattr(model, "_jax_state_synced", True) or not _GROUPS.issuperset(state):
        return None
    kinds = variables_by_kind(model)
    found = dict(zip(_VARIABLES, kinds, strict=True))
    variables: list[Any] = []
    values: list[Any] = []
    for group, group_values in state.items():
        if group_values:
            variables += model.optimizer.variables if group == _OPTIMIZER else found[group]
            values += group_values
            if len(variables) != len(values):
                return None
    if not _all_match(model, variables, values):
        return None
    before = list(map(attrgetter("_value"), variables))
    for variable, value in zip(variables, values, strict=True):
        variable._direct_assign(value)
    model._jax_state_synced = True
    return _Synced(variables, before, kinds)


# For each model, the train step and the variables whose values were found to match.
_checked: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


def _all_match(model: Any, variables: list[Any], values: list[Any]) -> bool:
    """Check the first values that a compiled train step returns; later ones have the same shapes and dtypes."""
    key = id(getattr(model, "train_function", None)), hash(tuple(map(id, variables)))
    if getattr(model, "run_eagerly", True) or _checked.get(model) != key:
        if not all(map(_matches, variables, values)):
            return False
        _checked[model] = key
    return True


def _matches(variable: Any, value: Any) -> bool:
    # Keras has removed the old value while it trains. `Variable.dtype` would look for scopes first.
    return (
        isinstance(variable, keras.Variable)
        and hasattr(variable, "_direct_assign")
        and hasattr(variable, "_value")
        and value.shape == variable.shape
        and _name_of(value.dtype) == getattr(variable, "_dtype", None)
    )


@cache
def _name_of(dtype: Any) -> str:
    """Return the name of a numpy dtype; numpy builds it again each time."""
    return str(dtype.name)
