"""Whether a model loads itself by Keras' own code alone, of which nothing can fail that was checked before.

Fallback: it is taken to have code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from ckptstore.keras.private import modules
from ckptstore.keras.private.skip_sets import cached_skip_sets

_LOADING = ("load_own_variables", "load_assets")


def has_custom_loading(*saveables: Any) -> bool:
    """Return whether an object, or one inside of it, is loaded by code that is not Keras' own; True if nobody knows."""
    walk = getattr(modules.saving_lib, "_walk_saveable", None)
    kind = getattr(modules.keras_saveable, "KerasSaveable", None)
    if walk is None or kind is None:
        return True
    seen: set[int] = set()
    waiting: list[Any] = [one for one in saveables if one is not None]
    with cached_skip_sets():
        while waiting:
            one = waiting.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, kind):
                if any(not _is_keras_code(one, name) for name in _LOADING):
                    return True
                waiting += [
                    child for _, child in walk(one) if isinstance(child, kind | list | dict | tuple | set)
                ]
            else:
                waiting += (
                    one.values()
                    if isinstance(one, dict)
                    else one
                    if isinstance(one, list | tuple | set)
                    else ()
                )
    return False


def copies_on_assign(variables: Iterable[Any]) -> bool:
    """Return whether to assign to these copies the values, on torch; False if nobody knows.

    A kind of variable of the user's own may go on with the memory that it is given, as Keras does for what is assigned
    within a `keras.StatelessScope`.
    """
    in_scope = getattr(modules.stateless_scope, "in_stateless_scope", None)
    return in_scope is not None and not in_scope() and all(type(one) is keras.Variable for one in variables)


def _is_keras_code(saveable: Any, name: str) -> bool:
    method = getattr(saveable, name, None)
    if method is None:
        return True
    # Methods may be overlaid in one object too.
    return (getattr(method, "__module__", None) or "").partition(".")[0] == "keras"
