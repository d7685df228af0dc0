"""Does before trainings are forked from a process what each of them would do first, as far as forks allow it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def warm_up() -> None:
    """Import what JAX imports late, and look through Keras' most usual classes; JAX itself must not start here."""
    import keras

    if keras.backend.backend() != "jax":
        return
    for module in ("jaxlib.mlir.dialects.mhlo", "jaxlib.mlir.dialects.builtin"):
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    attributes: Any = importlib.import_module("ckptstore.keras.private.user_attributes")
    for kind in (
        keras.Model,
        keras.Sequential,
        keras.layers.BatchNormalization,
        keras.layers.Dense,
        keras.layers.Dropout,
        keras.layers.InputLayer,
        keras.optimizers.Adam,
    ):
        attributes._names_of_frameworks(kind)
    assert not importlib.import_module("jax._src.xla_bridge")._backends, "JAX has started before the fork"
