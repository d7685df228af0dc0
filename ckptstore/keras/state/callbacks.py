"""States of a fit's callbacks: reading them for a save and setting them at a resume.

Settings always come from the code; only values that change while training runs are state. The attributes of Keras' own
callbacks are known; any other callback takes part with two methods, ``get_state()`` and ``set_state(state)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ckptstore.keras.private import run_time_attributes, set_attribute, start_epoch_clock
from ckptstore.keras.state.callback_inspection import seems_stateful
from ckptstore.keras.state.csv_log import is_csv_logger, restore_rows, rows_written

# Keys of a callback's entry.
_ATTRIBUTES, _STATE, _LOG = "attributes", "state", "log"


def callback_keys(callbacks: Sequence[Any]) -> list[str]:
    """Return a key for each callback: the name of its class, and its number among those of that name.

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
    """Return the states of the callbacks that have any, by key, for `ckptstore.keras.state.tree.pack`.

    Lists and arrays (EarlyStopping's best weights) are the callbacks' own: pack them before training continues.

    Args:
        callbacks: All callbacks of the fit, in order.

    Raises:
        Exception: An error of a callback's ``get_state``; NotImplementedError means that it has no state.

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
    if is_csv_logger(callback) and (rows := rows_written(callback)) is not None:
        entry[_LOG] = rows
    if _takes_part(callback):
        try:
            entry[_STATE] = callback.get_state()
        except NotImplementedError:
            return entry
    return entry


def set_states(callbacks: Sequence[Any], saved: Mapping[str, Any], *, ended: bool = False) -> list[str]:
    """Restore the callbacks' states; call it after ``on_train_begin`` of all, since many reset themselves there.

    Arrays are copied; nothing of `saved` is shared with the callbacks.

    Args:
        callbacks: All callbacks of the fit, in order.
        saved: The states from `get_states`, perhaps through `ckptstore.keras.state.tree`.
        ended: True if nothing is left to train.

    Returns:
        The keys of callbacks that seem to have state that was not, or not completely, restored. These continue as
        they are.

    Raises:
        StorageError: The file of a `keras.callbacks.CSVLogger` cannot be written.
        Exception: An error of a callback's ``set_state``.
    """
    left = []
    for key, callback in zip(callback_keys(callbacks), callbacks, strict=True):
        start_epoch_clock(callback)
        if not _applied(callback, saved.get(key, {}), ended=ended) or seems_stateful(callback):
            left.append(key)
    return left


def _applied(callback: Any, entry: Mapping[str, Any], *, ended: bool) -> bool:
    """Restore one callback; return True if all of its state was there."""
    names = run_time_attributes(type(callback))
    attributes = entry.get(_ATTRIBUTES, {})
    for name in names:
        if name in attributes:
            set_attribute(callback, name, _owned(attributes[name]))
    if _takes_part(callback) and _STATE in entry:
        callback.set_state(_owned(entry[_STATE]))
    if is_csv_logger(callback):
        if _LOG not in entry:
            return False
        restore_rows(callback, entry[_LOG], ended=ended)
    return set(names) <= set(attributes) and (_STATE in entry or not _takes_part(callback))


def has_own_state(callback: Any) -> bool:
    """Return True if a callback has ``get_state`` and ``set_state``, and so need not see earlier batches again.

    Example:
        >>> import keras
        >>> has_own_state(keras.callbacks.EarlyStopping())
        False
    """
    return _takes_part(callback)


def would_continue(callbacks: Sequence[Any], saved: Mapping[str, Any], *, more_epochs: bool) -> bool:
    """Return True if training that was stopped early would continue with the callbacks' present settings.

    This is so if every `keras.callbacks.EarlyStopping` that stopped it has a longer patience now. If a user's callback
    stopped it, the reason is unknown: then it is so if the fit has more epochs now.

    Args:
        callbacks: All callbacks of the fit, in order.
        saved: The states from `get_states` when training was stopped.
        more_epochs: True if the fit has more epochs now.

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
        callback.patience > entry["wait"]
        for key, callback in zip(callback_keys(callbacks), callbacks, strict=True)
        if isinstance(callback, keras.callbacks.EarlyStopping)
        and (entry := saved.get(key, {}).get(_ATTRIBUTES, {})).get("stopped_epoch", 0) > 0
    ]
    return all(stopped) if stopped else more_epochs


def _takes_part(callback: Any) -> bool:
    return callable(getattr(callback, "get_state", None)) and callable(getattr(callback, "set_state", None))


def _owned(value: Any) -> Any:
    """Return a copy of lists, dicts and arrays; arrays of a payload may be views of its file."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: _owned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_owned(item) for item in value)
    return value
