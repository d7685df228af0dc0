"""The variables of a model, and their values as the backend has them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from operator import attrgetter, is_
from typing import Any

import keras

from ckptstore.formats.snapshot import VariableKinds

# What Keras itself has for these: two walks over all layers, each picking from what it finds.
_OWN = (keras.Layer.trainable_variables, keras.Layer.non_trainable_variables)


def uses_trainable_flags(model: Any) -> bool:
    """Return whether the flag of each variable, and nothing else, tells if it is among those that the model trains."""
    kind = type(model)
    return (kind.trainable_variables, kind.non_trainable_variables) == _OWN and bool(model.trainable)


def variables_by_kind(model: Any) -> VariableKinds:
    """Return the trainable variables of a model, the others, and those of its metrics, each in Keras' order.

    It is asked at each save: one walk finds what Keras walks twice for. A model that answers in a way of its own is
    asked.
    """
    if not uses_trainable_flags(model):
        return model.trainable_variables, model.non_trainable_variables, model.metrics_variables
    trainable: list[Any] = []
    others: list[Any] = []
    for variable in model.variables:
        (trainable if variable.trainable else others).append(variable)
    return trainable, others, model.metrics_variables


def raw_values(values: Iterable[Any]) -> list[Any]:
    """Return the values of variables, and what is none as it is.

    `Variable.value` looks first for a stateless scope and for autocasting; of a thousand variables that takes
    milliseconds, in which a training step waits. Outside of both it returns ``Variable._value``. In a Keras without
    that, or for a variable that has no value yet, it is asked.
    """
    values = list(values)
    try:
        # A call for each, or a look at what each is, would take as long as all the rest.
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
