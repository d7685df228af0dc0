"""Counters of Keras' automatic names, such as ``dense_1``: what is made only to be looked at must not move them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.keras.private import modules

_COUNTERS = "object_name_uids"


def name_counters() -> dict[str, int]:
    """Return how often each name was given in this thread; empty in a Keras that counts elsewhere."""
    if modules.global_state is None:  # pragma: no cover - a Keras with another layout
        return {}
    return dict(modules.global_state.get_global_attribute(_COUNTERS) or {})


def set_name_counters(counters: dict[str, int]) -> None:
    """Make Keras go on from counters that `name_counters` returned."""
    live = None if modules.global_state is None else modules.global_state.get_global_attribute(_COUNTERS)
    if live is not None:
        # In place: it makes numbers for names that are new.
        live.clear()
        live.update(counters)


@contextmanager
def names_kept() -> Iterator[None]:
    """Take back the automatic names of what is made in the block, which the user never sees.

    Example:
        >>> import keras
        >>> before = name_counters()
        >>> with names_kept():
        ...     _ = keras.layers.Dense(1)
        >>> name_counters() == before
        True
    """
    before = name_counters()
    try:
        yield
    finally:
        set_name_counters(before)
