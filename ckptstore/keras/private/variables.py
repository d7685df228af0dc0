"""Variables of a model by kind, and their raw values as the backend holds them."""

from __future__ import annotations

from collections.abc import Iterable
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


def untrained_variables(model: Any) -> list[Any]:
    """Return the variables that a model's layers have made as not trainable, in a stable order.

    A layer itself changes these, such as a batch normalisation its moving statistics. Weights that are frozen were made
    as trainable, and are not among them.
    """
    found: dict[int, Any] = {}
    for layer in layers_of(model):
        own = getattr(layer, "_non_trainable_variables", None)
        for variable in layer.non_trainable_variables if own is None else own:
            found[id(variable)] = variable
    return list(found.values())


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
