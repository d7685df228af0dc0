"""Attributes of Keras' own callbacks that change during a fit; some are private.

Tested with Keras 3.12 to 3.15. Settings (patience, min_delta, monitor) are not among them: they come from the code. An
attribute that a Keras no longer has is left out, and `ckptstore.keras.state.callbacks.set_states` names its callback.
"""

from __future__ import annotations

import time
from typing import Any

import keras

_BATCH_COUNTERS = ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch")
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "History": ("history", "epoch"),
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "ModelCheckpoint": ("best", *_BATCH_COUNTERS),
    "OrbaxCheckpoint": ("best", "_total_batches_seen", *_BATCH_COUNTERS),
    "TensorBoard": ("_global_train_batch", "_global_test_batch", "_previous_epoch_iterations"),
}

# Keras computes with these, so they must be tensors of the backend.
_TENSORS = {"_previous_epoch_iterations"}


def run_time_attributes(kind: type) -> tuple[str, ...]:
    """Return the attributes of a callback's class, or of its Keras base class, that change during a fit.

    Example:
        >>> run_time_attributes(keras.callbacks.ReduceLROnPlateau)
        ('wait', 'best', 'cooldown_counter')
    """
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "ckptstore":
            return ()  # our callbacks have get_state()
        for name, attributes in _ATTRIBUTES.items():
            if base is getattr(keras.callbacks, name, None):
                return attributes
    return ()


def set_attribute(callback: Any, name: str, value: Any) -> None:
    """Set one of the run-time attributes to a saved value."""
    setattr(callback, name, keras.ops.convert_to_tensor(value, "float32") if name in _TENSORS else value)


def is_keras_class(kind: type) -> bool:
    """Return True if a class comes from Keras itself."""
    return kind.__module__.partition(".")[0] == "keras"


def start_epoch_clock(callback: Any) -> None:
    """Set the time at which the epoch began in a callback that missed its beginning."""
    if isinstance(callback, keras.callbacks.TensorBoard) and not hasattr(callback, "_epoch_start_time"):
        callback._epoch_start_time = time.time()
