"""Building of a model's layers in another process, as they were built in the process that saved the model.

A layer without a known input shape has no variables until it is called. `build_record` tells how each such layer was
built; `build_from_record` builds it again from there, without data. `trace_step` builds whatever a training step uses.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from ckptstore.keras.private.global_state import names_kept

Path = tuple[int, ...]


def build_record(model: Any) -> str:
    """Return how the layers of a model were built, as JSON: pairs of a layer's place and its build configuration.

    Empty for a model that is built when it is made: one of Keras' functional models.
    """
    records = []
    for place, layer in _layers(model, ()):
        config = _build_config(layer)
        if config is not None:
            records.append([place, config])
    return json.dumps(records) if records else ""


def build_from_record(model: Any, record: str) -> None:
    """Build the layers that are not built yet as a record tells; leaves out those that cannot be built so."""
    for place, config in json.loads(record) if record else ():
        layer = _at(model, place)
        if layer is None or layer.built:
            continue
        try:
            with warnings.catch_warnings(), names_kept():
                # Keras warns where a model cannot be built from here.
                warnings.simplefilter("ignore")
                layer.build_from_config(keras.saving.deserialize_keras_object(config))
        except Exception:
            # Any error of a layer's own code. The caller sees which variables are missing.
            continue


def all_layers_built(model: Any) -> bool:
    """Return True if every layer in a model is built; the model itself is not looked at."""
    return all(layer.built for layer in model._flatten_layers(include_self=False))


def trace_step(model: Any, batch: Any, batch_size: int | None) -> None:
    """Build whatever one training step uses, without a change of any value (TensorFlow).

    The step is traced, not run. If it only runs eagerly, it is run on zeros, and the caller restores all values.

    Args:
        model: A compiled model.
        batch: The specification of a batch.
        batch_size: The number of rows for the zeros, or None.

    Raises:
        Exception: What the step raises.
    """
    tensorflow: Any = sys.modules["tensorflow"]

    def step(data: Any) -> Any:
        return model.distribute_strategy.run(model.train_step, args=(data,))

    try:
        with names_kept():
            tensorflow.function(step, autograph=False).get_concrete_function(batch)
    except Exception:
        if not model.run_eagerly:
            raise
        plain = {
            name: value for name, value in vars(model).items() if isinstance(value, bool | int | float | str)
        }
        shapes = keras.tree.map_structure(lambda spec: _zeros(tensorflow, spec, batch_size or 2), batch)
        with names_kept():
            step(shapes)
        vars(model).update(plain)


def _zeros(tensorflow: Any, spec: Any, rows: int) -> Any:
    first, *rest = spec.shape
    return tensorflow.zeros([first or rows, *(size or 1 for size in rest)], spec.dtype)


def _layers(layer: Any, place: Path) -> Iterator[tuple[Path, Any]]:
    if hasattr(layer, "_operations_by_depth"):
        return
    yield place, layer
    if not isinstance(layer, keras.Sequential) or not layer.built:
        for index, inner in enumerate(getattr(layer, "_layers", ())):
            yield from _layers(inner, (*place, index))


def _build_config(layer: Any) -> Any:
    if not layer.built:
        return None
    try:
        config = layer.get_build_config()
        if config is None:
            return None
        plain = keras.saving.serialize_keras_object(config)
        json.dumps(plain)
    except Exception:
        # Any error of a layer's own code: such a layer is not part of the record.
        return None
    return plain


def _at(model: Any, place: list[int]) -> Any:
    layer = model
    for index in place:
        layers = getattr(layer, "_layers", ())
        if index >= len(layers):
            return None
        layer = layers[index]
    return layer
