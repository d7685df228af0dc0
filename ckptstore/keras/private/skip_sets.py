"""Cache for the attribute names that Keras ignores when it saves or loads an object."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from ckptstore.keras.private import modules
from ckptstore.keras.private.global_state import names_kept

_SKIPPING_TYPES = ("Operation", "Layer", "Functional", "Sequential", "Metric", "Optimizer", "Loss")


@contextmanager
def cached_skip_sets() -> Iterator[None]:
    """Save Keras from making a new Layer for each object, just to learn which attributes to ignore.

    Keras stores these sets under one name and looks for them under another. For the block they are set under the other.
    """
    try:
        sets = {f"saving_attr_skiplist_{kind}": _skip_set(kind) for kind in _SKIPPING_TYPES}
        lent = {name: skipped for name, skipped in sets.items() if skipped is not None}
        before = {name: modules.global_state.get_global_attribute(name) for name in lent}
    except (AttributeError, TypeError, ImportError):
        yield
        return
    for name, skipped in lent.items():
        modules.global_state.set_global_attribute(name, skipped)
    try:
        yield
    finally:
        for name, value in before.items():
            modules.global_state.set_global_attribute(name, value)


@functools.cache
def _skip_set(kind: str) -> Any:
    # Keras makes an optimizer for this: under a distribution over several processes they would wait for each other.
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        with names_kept():
            # To look at this one would decide it, for models that are never compiled too.
            return {*modules.saving_lib.get_attr_skipset(kind), "jit_compile"}
    except ValueError:
        return None  # a type that this Keras does not have
    finally:
        keras.distribution.set_distribution(distribution)
