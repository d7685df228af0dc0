"""Inspection of a user's callback for signs that it keeps state of its own.

A guess, for a warning. State is anything that its methods assign to ``self`` while training runs, and lists, dicts,
arrays and the like that its constructor made. A counter in a closure or on the model is not seen.
"""

from __future__ import annotations

import dis
import enum
import inspect
import os
import types
from collections.abc import Iterable, Iterator
from typing import Any

from ckptstore.keras.private import is_keras_class, run_time_attributes

# Attributes that these assign exist again before state is restored.
_BEFORE_TRAINING = {"__init__", "set_model", "set_params", "on_train_begin"}
_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, enum.Enum, os.PathLike, type,
    types.ModuleType,
)  # fmt: skip


def seems_stateful(callback: Any) -> bool:
    """Return True if a callback has hooks of the user's that seem to keep state, and no ``get_state``.

    Example:
        >>> import keras
        >>> seems_stateful(keras.callbacks.EarlyStopping())
        False
    """
    kinds = list(_user_kinds(type(callback)))
    hooks = [name for kind in kinds for name in vars(kind) if name.startswith("on_")]
    if not hooks:
        return False
    return bool(_assigned(callback, kinds) or _containers(callback, kinds))


def _user_kinds(kind: type) -> Iterator[type]:
    """Yield the user's classes among a callback's bases, up to the first with ``get_state``."""
    for base in kind.__mro__:
        if is_keras_class(base) or base.__module__.partition(".")[0] in ("ckptstore", "builtins"):
            return
        if "get_state" in vars(base):
            return
        yield base


def _assigned(callback: Any, kinds: list[type]) -> set[str]:
    """Return the attributes that the user's methods assign while training runs."""
    restored = set(run_time_attributes(type(callback)))
    found: set[str] = set()
    for kind in kinds:
        for function in _functions(kind):
            if function.__name__ not in _BEFORE_TRAINING:
                found |= {
                    name for name, is_self in _stores(function) if is_self or hasattr(callback, name)
                } - restored
    return found


def _containers(callback: Any, kinds: list[type]) -> list[str]:
    """Return the attributes from the user's constructor that can change without an assignment."""
    of_bases = {
        name
        for kind in type(callback).__mro__
        if kind not in kinds
        for function in _functions(kind)
        for name, _ in _stores(function)
    }
    settings = {name for kind in kinds for name in _parameters(kind)}
    return [
        name
        for name, value in vars(callback).items()
        if name not in of_bases
        and name.lstrip("_") not in settings
        and not callable(value)
        and not isinstance(value, _IMMUTABLE)
    ]


def _functions(kind: type) -> Iterable[types.FunctionType]:
    return [value for value in vars(kind).values() if isinstance(value, types.FunctionType)]


def _parameters(kind: type) -> Iterable[str]:
    made_by = vars(kind).get("__init__")
    return inspect.signature(made_by).parameters if isinstance(made_by, types.FunctionType) else ()


def _stores(function: types.FunctionType) -> Iterator[tuple[str, bool]]:
    """Yield the attributes that a function assigns, each with True if it certainly belongs to the first argument."""
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    before: Any = None
    for instruction in dis.get_instructions(function):
        if instruction.opname == "STORE_ATTR":
            # Loads of two variables at once name both.
            loaded = before[-1:] if isinstance(before, tuple) else (before,)
            yield instruction.argval, loaded == arguments[:1]
        before = instruction.argval
