"""Attributes of a Keras object that Keras' own classes do not hold: those of the user's code.

Keras' names are those that the methods of its classes assign, and those of a new layer and model. Of the same kind are
the names of the backend's base classes.
"""

from __future__ import annotations

import dis
import inspect
import types
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import keras

from ckptstore.keras.private.global_state import names_kept

# Roots of the modules of the classes whose attributes are not the user's.
_FRAMEWORKS = ("keras", "tensorflow", "torch", "jax", "builtins", "wrapt")
# Set by Keras from outside of the classes that hold them.
_FROM_OUTSIDE = {"history", "__orig_class__"}


def is_keras_object(value: Any) -> bool:
    """Return True if the value is an instance of one of Keras' classes, or of a class derived from one."""
    return any(base.__module__.partition(".")[0] == "keras" for base in type(value).__mro__)


def layers_of(model: Any) -> list[Any]:
    """Return a model and all layers in it, at any depth, in a stable order."""
    flatten = getattr(model, "_flatten_layers", None)
    return [model, *model.layers] if flatten is None else list(flatten())


def user_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of a Keras object that the user's code has set, in the order of their names.

    Example:
        >>> layer = keras.layers.Dense(2)
        >>> layer.calls = 0
        >>> user_attributes(layer)
        {'calls': 0}
    """
    kind: Any = type(value)
    names = _names_of_frameworks(kind)
    held = vars(value)
    found = {name: held[name] for name in held if name not in names}
    # On torch a layer is a module, which keeps its tensors apart.
    for group in ("_parameters", "_buffers"):
        found |= {name: tensor for name, tensor in (held.get(group) or {}).items() if name not in names}
    return dict(sorted(found.items()))


@cache
def _names_of_frameworks(kind: type) -> frozenset[str]:
    names = set(_FROM_OUTSIDE) | _names_of_new_objects()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _FRAMEWORKS:
            names |= _assigned_by(base)
    return frozenset(names)


@cache
def _names_of_new_objects() -> frozenset[str]:
    names: set[str] = set()
    with names_kept():
        for new in (keras.layers.Layer(), keras.Model(), keras.Sequential()):
            names |= vars(new).keys()
    return frozenset(names)


def names_read_by(kind: type) -> set[str]:
    """Return the attributes that the methods of a user's class read from anything, but for its constructor's.

    Example:
        >>> class Scaled(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return inputs * self.factor
        >>> "factor" in names_read_by(Scaled)
        True
    """
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in _FRAMEWORKS:
            methods = [function for function in _functions(base) if function.__name__ != "__init__"]
            found |= _names(methods, ("LOAD_ATTR", "LOAD_METHOD"))
    return found


@cache
def _assigned_by(kind: type) -> frozenset[str]:
    """Return the attributes that the methods of a class assign to anything."""
    return frozenset(_names(_functions(kind), ("STORE_ATTR",)))


def _names(functions: Iterable[types.FunctionType], operations: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = [function.__code__ for function in functions]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        found |= {
            instruction.argval
            for instruction in dis.get_instructions(code)
            if instruction.opname in operations
        }
    return found


def _functions(kind: type) -> Iterator[types.FunctionType]:
    for value in vars(kind).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (value,)
        for part in parts:
            plain = getattr(part, "__func__", part)
            function = inspect.unwrap(plain) if callable(plain) and not isinstance(plain, type) else None
            if isinstance(function, types.FunctionType):
                yield function
