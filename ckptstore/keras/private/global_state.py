"""The global state that Keras keeps for all models of a process: counters of automatic names, and its seed.

Unseeded random operations draw from the seed. The counters number names such as ``dense_1``: what is made only to be
looked at must not move them. Fallback: the seed is unknown and stays unchanged, and so do the counters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


def global_seed(*, make: bool = False) -> Any:
    """Return the variable that unseeded operations draw from, or None; `make` creates it from Python's generator."""
    if (
        modules.global_state is None or modules.seed_generator is None
    ):  # pragma: no cover - a Keras with another layout
        return None
    found = modules.global_state.get_global_attribute("global_seed_generator")
    return getattr(
        modules.seed_generator.global_seed_generator() if found is None and make else found, "state", None
    )


def reset_global_seed() -> None:
    """Drop the seed of unseeded operations; Keras draws a new one from Python's generator at the next use."""
    if global_seed() is not None:
        modules.global_state.set_global_attribute("global_seed_generator", None)
