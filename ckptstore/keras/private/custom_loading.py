"""Detection of models with loading code of their own.

Keras' own code cannot fail after the checks that were made before; other code can. Fallback: a model is assumed to have
such code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from ckptstore.keras.private import modules
from ckptstore.keras.private.skip_sets import cached_skip_sets

_LOADING = ("load_own_variables", "load_assets")


def has_custom_loading(*saveables: Any) -> bool:
    """Return True if an object, or one inside it, is loaded by code that is not Keras' own, or if that is unknown."""
    children_of = getattr(modules.saving_lib, "_walk_saveable", None)
    saveable_type = getattr(modules.keras_saveable, "KerasSaveable", None)
    if children_of is None or saveable_type is None:
        return True
    seen: set[int] = set()
    waiting: list[Any] = [saveable for saveable in saveables if saveable is not None]
    with cached_skip_sets():
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, saveable_type):
                if any(not _is_keras_code(value, name) for name in _LOADING):
                    return True
                containers = saveable_type | list | dict | tuple | set
                waiting += [child for _, child in children_of(value) if isinstance(child, containers)]
            elif isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list | tuple | set):
                waiting += value
    return False


def copies_on_assign(variables: Iterable[Any]) -> bool:
    """Return True if assigning to these variables copies the values, on torch; False if that is unknown.

    A user's own class of variable may keep using the memory that it is given, and so does Keras for assignments within
    a `keras.StatelessScope`.
    """
    in_scope = getattr(modules.stateless_scope, "in_stateless_scope", None)
    return (
        in_scope is not None
        and not in_scope()
        and all(type(variable) is keras.Variable for variable in variables)
    )


def _is_keras_code(saveable: Any, name: str) -> bool:
    method = getattr(saveable, name, None)
    if method is None:
        return True
    # A method may also be replaced in a single object.
    return (getattr(method, "__module__", None) or "").partition(".")[0] == "keras"
