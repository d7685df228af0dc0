"""Inner modules of Keras; each is None in a Keras with another layout."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(name: str) -> Any:
    """Return an inner module of Keras, or None."""
    try:
        return import_module(f"keras.src.{name}")
    except ImportError:
        return None


saving_lib = optional("saving.saving_lib")
keras_saveable = optional("saving.keras_saveable")
global_state = optional("backend.common.global_state")
legacy_h5 = optional("legacy.saving.legacy_h5_format")
stateless_scope = optional("backend.common.stateless_scope")
io_utils = optional("utils.io_utils")
seed_generator = optional("random.seed_generator")
