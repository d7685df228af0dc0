"""Loading of Keras' older whole-model HDF5 format (``.h5``): its arrays and a model's variables, in loading order.

The names in it differ from model to model: only the order tells which array belongs to which variable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import ml_dtypes

from ckptstore.formats.payload_format import OpenPayload
from ckptstore.keras.model import compatibility
from ckptstore.keras.state.training_state import Assignment
from ckptstore.system.arrays import Array

OPTIMIZER = "optimizer_weights"
_WEIGHTS, _TOP = "model_weights", "top_level_model_weights"


def assignments(
    model: Any,
    found: OpenPayload,
    optimizer: Any,
    *,
    with_optimizer: bool = True,
    any_dtype: bool = False,
) -> list[Assignment]:
    """Return the assignments that load a payload of this format; arrays and variables are matched by order.

    Args:
        model: The model.
        found: The payload.
        optimizer: An optimizer that the model does not know.
        with_optimizer: False to leave the optimizer out.
        any_dtype: True to allow other dtypes, which are converted.

    Raises:
        ModelMismatchError: A pair differs, or one side has more.
    """
    live_optimizer = (optimizer or getattr(model, "optimizer", None)) if with_optimizer else None
    live = list(variables(model, live_optimizer))
    with found.hdf5() as file:
        saved = [
            (path, _original_dtype(dataset[()]))
            for path, dataset in arrays(file)
            if with_optimizer or not path.startswith(OPTIMIZER)
        ]
    return compatibility.match_in_order(live, saved, any_dtype=any_dtype)


def optimizer_values(found: OpenPayload) -> list[Array]:
    """Return the optimizer's variables in a payload of this format, in their order."""
    with found.hdf5() as file:
        return [_original_dtype(dataset[()]) for path, dataset in arrays(file) if path.startswith(OPTIMIZER)]


def arrays(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Yield (path, dataset) of every array in the file."""
    weights = file[_WEIGHTS]
    for layer in [*_names(weights, "layer_names"), _TOP]:
        if layer in weights:
            for name in _names(weights[layer], "weight_names"):
                yield f"{_WEIGHTS}/{layer}/{name}", weights[layer][name]
    if OPTIMIZER in file:
        for name in _names(file[OPTIMIZER], "weight_names"):
            yield f"{OPTIMIZER}/{name}", file[OPTIMIZER][name]


def variables(model: Any, optimizer: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, variable) of all variables of a model and its optimizer that the format holds."""
    in_layers: set[int] = set()
    for layer in model.layers:
        for variable in (*layer.trainable_weights, *layer.non_trainable_weights):
            in_layers.add(id(variable))
            yield f"{_WEIGHTS}/{layer.name}/{variable.path}", variable
    for variable in (*model.trainable_weights, *model.non_trainable_weights):
        if id(variable) not in in_layers:
            yield f"{_WEIGHTS}/{_TOP}/{variable.path}", variable
    if optimizer is not None:
        for variable in optimizer.variables:
            yield f"{OPTIMIZER}/{variable.path}", variable


def _names(group: Any, attribute: str) -> list[str]:
    if attribute in group.attrs:
        found = list(group.attrs[attribute])
    else:  # a list too long for one attribute is split over several
        parts: list[Any] = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
        found = [name for part in parts for name in part]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]


def _original_dtype(value: Array) -> Array:
    """Return an array with its original dtype: the format stores bfloat16, and nothing else, as raw bytes."""
    return value.view(ml_dtypes.bfloat16) if value.dtype.kind == "V" and value.dtype.itemsize == 2 else value
