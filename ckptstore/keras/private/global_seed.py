"""Keras' global seed, which unseeded random operations draw from; fallback: it is unknown and stays unchanged."""

from __future__ import annotations

from typing import Any

from ckptstore.keras.private import modules


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
