"""Variables of a model by kind, their raw values as the backend holds them, and the devices that these lie on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter, is_
from typing import Any

import keras

from ckptstore.formats.snapshot import VariableKinds
from ckptstore.keras.private.user_attributes import layers_of, user_attributes

# Keras' own properties: each goes through all layers and selects from what it finds.
_OWN = (keras.Layer.trainable_variables, keras.Layer.non_trainable_variables)


def uses_trainable_flags(model: Any) -> bool:
    """Return True if a variable's own flag decides whether the model trains it."""
    kind = type(model)
    return (kind.trainable_variables, kind.non_trainable_variables) == _OWN and bool(model.trainable)


def variables_by_kind(model: Any) -> VariableKinds:
    """Return a model's trainable variables, its other variables, and those of its metrics, each in Keras' order.

    This is needed for each save: one pass over the layers replaces Keras' two. A model that overrides these properties
    is asked itself.
    """
    if not uses_trainable_flags(model):
        return model.trainable_variables, model.non_trainable_variables, model.metrics_variables
    trainable: list[Any] = []
    others: list[Any] = []
    for variable in model.variables:
        (trainable if variable.trainable else others).append(variable)
    return trainable, others, model.metrics_variables


def untracked_variables(model: Any) -> list[Any]:
    """Return the variables that Keras' own layers hold and do not count among a model's, in a stable order.

    These are the states of a recurrent layer with ``stateful=True`` (Keras 3.12 to 3.15). What the user's code holds is
    not among them.
    """
    known = {id(variable) for variable in (*model.variables, *model.metrics_variables)}
    found: dict[int, Any] = {}
    for layer in layers_of(model):
        own = user_attributes(layer)
        for name, value in sorted(vars(layer).items()):
            if name not in own and isinstance(value, keras.Variable | list | tuple):
                found |= {id(item): item for item in _flat(value) if id(item) not in known}
    return list(found.values())


def _flat(value: Any) -> list[Any]:
    """Return the variables in a list or tuple of nothing else, such as a list of states; else none."""
    if isinstance(value, keras.Variable):
        return [value]
    if not isinstance(value, list | tuple):
        return []
    parts = [_flat(item) for item in value]
    return [variable for part in parts for variable in part] if all(parts) else []


def raw_values(values: Iterable[Any]) -> list[Any]:
    """Return the values of variables; anything else is returned unchanged.

    `Variable.value` first looks for a stateless scope and for autocasting. For a thousand variables that takes
    milliseconds, in which a training step waits. Outside of both it returns ``Variable._value``. It is used only in a
    Keras without that attribute, or for variables that have no value yet.
    """
    values = list(values)
    try:
        # A call for each value, or a check of each type, would take as long as all the rest.
        if all(issubclass(kind, keras.Variable) for kind in set(map(type, values))):
            found = list(map(_value_of, values))
        else:
            found = [value._value if isinstance(value, keras.Variable) else value for value in values]
    except AttributeError:
        found = [None] * len(values)
    if any(map(_is_none, found)):
        return [value.value if isinstance(value, keras.Variable) else value for value in values]
    return found


_is_none = partial(is_, None)
_value_of = attrgetter("_value")


@contextmanager
def kept_placements(variables: Iterable[Any]) -> Iterator[None]:
    """Keep values that the block assigns on the devices of those that they replace.

    Keras does so for a variable with a layout, such as one that was made under a `keras.distribution`. What a script
    has put elsewhere itself, on other devices or in another kind of memory, an assignment moves to the default device.

    Args:
        variables: The variables; each may lack a value.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    placed = list(_placed(variables))
    with_layout = [(variable, sharding) for variable, sharding in placed if hasattr(variable, "_layout")]
    for variable, sharding in with_layout:
        variable._layout = sharding
    try:
        yield
    finally:
        for variable, _ in with_layout:
            variable._layout = None
        _move(placed)


def _placed(variables: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the variables without a layout whose values a script has placed, each with the sharding of its value."""
    for variable in variables:
        if not isinstance(variable, keras.Variable) or getattr(variable, "_layout", None) is not None:
            continue
        value: Any = getattr(variable, "_value", None)
        if getattr(value, "committed", False) and hasattr(value, "sharding"):
            yield variable, value.sharding


def _move(placed: Iterable[tuple[Any, Any]]) -> None:
    """Move values that an assignment has put elsewhere all the same, as in a Keras without layouts."""
    import jax

    for variable, sharding in placed:
        value = variable.value
        if not value.sharding.is_equivalent_to(sharding, value.ndim):
            variable.assign(jax.device_put(value, sharding))


def assign_in_place(variable: Any, value: Any) -> None:
    """Assign a value to a variable of any kind; on JAX it goes where the present one lies."""
    with kept_placements([variable]):
        variable.assign(value)
