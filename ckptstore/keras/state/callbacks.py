"""What the callbacks of a fit have learned so far, taken out of them and given back.

Settings come from the code, always; only what changes while training runs is kept. Keras' own callbacks are known by
their attributes; any other takes part by two methods, ``get_state()`` and ``set_state(state)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ckptstore.keras.private import run_time_attributes, set_attribute, start_epoch_clock
from ckptstore.keras.state.callback_inspection import seems_stateful

# What a callback's entry is made of.
_ATTRIBUTES, _STATE = "attributes", "state"


def callback_keys(callbacks: Sequence[Any]) -> list[str]:
    """Return what each callback is called: its class' name, and its number among those of that name.

    Example:
        >>> import keras
        >>> callback_keys([keras.callbacks.History(), keras.callbacks.TerminateOnNaN(), keras.callbacks.History()])
        ['History:0', 'TerminateOnNaN:0', 'History:1']
    """
    seen: Counter[str] = Counter()
    keys = []
    for callback in callbacks:
        name = type(callback).__name__
        keys.append(f"{name}:{seen[name]}")
        seen[name] += 1
    return keys


def get_states(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Return the state of the callbacks that have some, by key; for `state_tree.pack`, and soon.

    Lists and arrays (EarlyStopping's best weights) are the callbacks' own, not copies.

    Args:
        callbacks: All callbacks of the fit, in order.

    Raises:
        Exception: What a callback's ``get_state`` raises; NotImplementedError says that it has no state.

    Example:
        >>> import keras
        >>> stopping = keras.callbacks.EarlyStopping(patience=3)
        >>> stopping.on_train_begin()
        >>> get_states([stopping])["EarlyStopping:0"]["attributes"]["wait"]
        0
    """
    found = {}
    for key, callback in zip(callback_keys(callbacks), callbacks, strict=True):
        entry = _captured(callback)
        if entry:
            found[key] = entry
    return found


def _captured(callback: Any) -> dict[str, Any]:
    held = vars(callback)
    attributes = {name: held[name] for name in run_time_attributes(type(callback)) if name in held}
    entry: dict[str, Any] = {_ATTRIBUTES: attributes} if attributes else {}
    if _takes_part(callback):
        try:
            entry[_STATE] = callback.get_state()
        except NotImplementedError:
            return entry
    return entry


def set_states(callbacks: Sequence[Any], saved: Mapping[str, Any]) -> list[str]:
    """Give the callbacks their state back: after ``on_train_begin`` of all, since many start anew there.

    Arrays are copied; nothing of `saved` is shared with the callbacks.

    Args:
        callbacks: All callbacks of the fit, in order.
        saved: What `get_states` returned, perhaps through `state_tree`.

    Returns:
        The keys of callbacks that seem to have state of which nothing, or not everything, is known to be restored. They
        go on as they are.

    Raises:
        Exception: What a callback's ``set_state`` raises.
    """
    left = []
    for key, callback in zip(callback_keys(callbacks), callbacks, strict=True):
        start_epoch_clock(callback)
        if not _applied(callback, saved.get(key, {})) or seems_stateful(callback):
            left.append(key)
    return left


def _applied(callback: Any, entry: Mapping[str, Any]) -> bool:
    """Return whether everything was there that the callback keeps."""
    names = run_time_attributes(type(callback))
    attributes = entry.get(_ATTRIBUTES, {})
    for name in names:
        if name in attributes:
            set_attribute(callback, name, _owned(attributes[name]))
    if _takes_part(callback) and _STATE in entry:
        callback.set_state(_owned(entry[_STATE]))
    return set(names) <= set(attributes) and (_STATE in entry or not _takes_part(callback))


def has_own_state(callback: Any) -> bool:
    """Return whether a callback keeps its state itself, and so need not see again what it has seen.

    Example:
        >>> import keras
        >>> has_own_state(keras.callbacks.EarlyStopping())
        False
    """
    return _takes_part(callback)


def would_continue(callbacks: Sequence[Any], saved: Mapping[str, Any], *, more_epochs: bool) -> bool:
    """Return whether training that was stopped early would not be so with the callbacks' present settings.

    That is where every `keras.callbacks.EarlyStopping` that had stopped it has a longer patience by now. Of a user's
    callback nobody knows why it stopped: then it is where more epochs are asked for.

    Args:
        callbacks: All callbacks of the fit, in order.
        saved: What `get_states` returned when it was stopped.
        more_epochs: Whether the fit has more epochs by now.

    Example:
        >>> import keras
        >>> def stopping(patience: int) -> list[keras.callbacks.Callback]:
        ...     return [keras.callbacks.EarlyStopping(patience=patience)]
        >>> before = stopping(2)
        >>> before[0].on_train_begin()
        >>> before[0].wait, before[0].stopped_epoch = 2, 7
        >>> [would_continue(stopping(patience), get_states(before), more_epochs=True) for patience in (2, 5)]
        [False, True]
    """
    stopped = [
        one.patience > entry["wait"]
        for key, one in zip(callback_keys(callbacks), callbacks, strict=True)
        if isinstance(one, keras.callbacks.EarlyStopping)
        and (entry := saved.get(key, {}).get(_ATTRIBUTES, {})).get("stopped_epoch", 0) > 0
    ]
    return all(stopped) if stopped else more_epochs


def _takes_part(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


def _owned(value: Any) -> Any:
    """Return a copy of lists, dicts and arrays: those of a payload may be views of its file's memory."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: _owned(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_owned(one) for one in value)
    return value
