"""Inner modules of Keras; each is None in a Keras with another layout."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _optional(name: str) -> Any:
    try:
        return import_module(f"keras.src.{name}")
    except ImportError:
        return None


saving_lib = _optional("saving.saving_lib")
keras_saveable = _optional("saving.keras_saveable")
global_state = _optional("backend.common.global_state")
legacy_h5 = _optional("legacy.saving.legacy_h5_format")
stateless_scope = _optional("backend.common.stateless_scope")
io_utils = _optional("utils.io_utils")
seed_generator = _optional("random.seed_generator")
