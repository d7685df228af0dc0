"""Describes what a fit trains on, so that another fit's checkpoint is recognised: sizes, shapes, digests of values.

Arrays get a digest: of all values where that is quick, else of rows spread over them. Of other data only what can be
known without reading from it, since reading may draw random numbers: a loader's dataset and its indices, the shapes
that a dataset reports, its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from ckptstore.keras.private import FitLoop
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.training.fingerprint.config import plain, qualified

# Keys that say how much is trained on, and not on what.
SIZES = ("batch_size", "batches_per_epoch", "shuffle", "class_weight")
# The key of a digest in the description of an array.
VALUES = "values"

# All values of an array up to this size, about 2 ms, and so many rows of a larger one.
_MAX_NBYTES = 16 << 20
_ROWS = 64
# Datasets that wrap datasets, and nested inputs.
_MAX_DEPTH = 6


def part(loop: FitLoop | None) -> dict[str, Any]:
    """Return the part of a fingerprint that describes a fit's data; empty in a loop that is not Keras' own."""
    return {} if loop is None else {"data": describe(loop)}


def describe(loop: FitLoop) -> dict[str, Any]:
    """Return a description of a fit's data as plain JSON, the same at every start of the same script.

    No random number is drawn, and nothing is read from a loader, a dataset or a generator.

    Args:
        loop: The fit, as it begins.
    """
    arguments = loop.arguments
    found: dict[str, Any] = {
        "batch_size": loop.data.batch_size,
        "batches_per_epoch": loop.data.batches_per_epoch,
        "shuffle": plain(arguments.get("shuffle")),
        "class_weight": plain(arguments.get("class_weight")),
    }
    for name, key in _NAMES.items():
        found |= dict(_parts(arguments.get(key), name, _MAX_DEPTH))
    return found


_NAMES = {
    "x": "x",
    "y": "y",
    "sample_weight": "sample_weight",
    "validation x": "val_x",
    "validation y": "val_y",
    "validation sample_weight": "val_sample_weight",
}


def _parts(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the arrays and other data in a value, each with its path and description."""
    if value is None or depth == 0:
        return
    if isinstance(value, Mapping):
        for key in value:
            yield from _parts(value[key], f"{path}[{key!r}]", depth - 1)
    elif isinstance(value, list | tuple) and value and not _is_number(value[0]):
        for number, item in enumerate(value):
            yield from _parts(item, f"{path}[{number}]", depth - 1)
    elif isinstance(value, list | tuple):
        yield path, _array(np.asarray(value))
    elif hasattr(value, "to_numpy") and hasattr(value, "iloc"):
        yield path, _table(value)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        yield path, _array(value)
    else:
        yield path, _other(value, depth)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _array(value: Any) -> dict[str, Any]:
    try:
        shape, dtype = shape_and_dtype(value)
    except (TypeError, ValueError):
        return {"class": qualified(type(value))}
    rows = (
        value
        if dtype.itemsize * int(np.prod(shape)) <= _MAX_NBYTES or not shape
        else _spread(value, shape[0])
    )
    return {"shape": str(shape), "dtype": dtype.name, VALUES: _digest(rows)}


def _spread(value: Any, length: int) -> list[Any]:
    """Return rows spread over an array, the first and the last among them; a slice is a view, whatever the backend."""
    return [value[int(row) : int(row) + 1] for row in np.linspace(0, length - 1, _ROWS)]


def _table(value: Any) -> dict[str, Any]:
    """Describe a table or a column of pandas."""
    length = len(value)
    rows = value if length <= _ROWS else value.iloc[[int(row) for row in np.linspace(0, length - 1, _ROWS)]]
    kinds: Any = getattr(value, "dtypes", None)
    names = [str(kind) for kind in kinds] if len(value.shape) > 1 else [str(kinds)]
    return {"shape": str(tuple(map(int, value.shape))), "dtype": names, VALUES: _digest(rows.to_numpy())}


def _digest(rows: Any) -> str | None:
    """Return a digest of an array or of rows; None for objects, whose text may differ from process to process."""
    digest = xxhash.xxh3_128()
    for row in rows if isinstance(rows, list) else [rows]:
        try:
            array = host_array(row.detach().cpu().numpy() if hasattr(row, "detach") else row)
        except (TypeError, ValueError, RuntimeError):
            # An array of another kind, which only its own package reads.
            return None
        if array.dtype.hasobject:
            items = array.reshape(-1)[: 1 << 16].tolist()
            if not all(isinstance(item, str | bytes | int | float | None) for item in items):
                return None
            digest.update(repr(items).encode())
        else:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"xxh3:{digest.hexdigest()[:16]}"


def _other(value: Any, depth: int) -> dict[str, Any]:
    """Describe a loader, a dataset or a generator without reading from it."""
    found: dict[str, Any] = {"class": qualified(type(value))}
    spec = getattr(value, "element_spec", None)
    if spec is not None:
        found["elements"] = str(spec)
    # Those of torch: a loader has a dataset, a subset has indices, and a dataset may be made of tensors.
    for name in ("dataset", "indices", "tensors"):
        held = getattr(value, name, None)
        if held is not None and not callable(held):
            found |= dict(_parts(held, name, depth - 1))
    return found
