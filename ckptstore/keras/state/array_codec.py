"""Codec for numpy arrays of any dtype: arrays that every payload can hold, and back, bit for bit.

A payload stores numbers, little-endian. Text, times, long doubles, records and all others are stored as bytes, with a
JSON description of their dtype. `tree` uses this for the arrays of a nested state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ckptstore.system.arrays import Array

# Stored unchanged. The types of ml_dtypes are not among them, since all of their bits must come back.
_NUMBERS = {
    np.dtype(code)
    for code in (
        "?",
        "i1",
        "<i2",
        "<i4",
        "<i8",
        "u1",
        "<u2",
        "<u4",
        "<u8",
        "<f2",
        "<f4",
        "<f8",
        "<c8",
        "<c16",
    )
}


def encode(array: Array) -> tuple[Array, dict[str, Any]] | None:
    """Return an array to store and the facts needed to decode it; None if its elements are Python objects.

    Example:
        >>> encode(np.array([1.5]))
        (array([1.5]), {})
        >>> encode(np.array("ab"))
        (array([97,  0,  0,  0, 98,  0,  0,  0], dtype=uint8), {'dtype': '<U2', 'shape': []})
    """
    values = np.asarray(array, order="C")
    if values.dtype in _NUMBERS:
        return values, {}
    dtype = dtype_to_json(values.dtype)
    if dtype is None:
        return None
    flat = values.reshape(-1)
    raw = flat.view(np.uint8) if flat.nbytes else np.empty(0, np.uint8)
    return raw, {"dtype": dtype, "shape": list(values.shape)}


def decode(array: Array, facts: Mapping[str, Any]) -> Array:
    """Return the array that was encoded; always a writable copy.

    Raises:
        ValueError: The array and the facts do not belong together.
        TypeError: This numpy does not have the dtype.
    """
    if not facts:
        return np.array(array, order="C", copy=True)
    found: Array = np.empty(tuple(facts["shape"]), dtype_from_json(facts["dtype"]))
    if found.nbytes:
        found.reshape(-1).view(np.uint8)[...] = array
    return found


def dtype_to_json(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as JSON, or None if its elements are Python objects.

    Example:
        >>> dtype_to_json(np.dtype(ml_dtypes.bfloat16)), dtype_to_json(np.dtype(">f4")), dtype_to_json(np.dtype(object))
        ('bfloat16', '>f4', None)
    """
    # Kind T: text of any length, which numpy keeps outside the array.
    if dtype.hasobject or dtype.kind == "T":
        return None
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": dtype_to_json(base), "shape": list(shape)}
    if dtype.fields is not None and dtype.names is not None:
        # A field: dtype, offset and sometimes a title, which is a second name for it.
        fields = [[name, dtype_to_json(dtype[name]), *dtype.fields[name][1:]] for name in dtype.names]
        return {"fields": fields, "itemsize": dtype.itemsize}
    extended = getattr(ml_dtypes, dtype.name, None)
    return dtype.name if extended is not None and np.dtype(extended) == dtype else dtype.str


def dtype_from_json(dtype: Any) -> np.dtype[Any]:
    """Return the dtype for what `dtype_to_json` returned.

    Raises:
        TypeError: This numpy, or this ml_dtypes, does not have it.
    """
    if isinstance(dtype, str):
        return np.dtype(getattr(ml_dtypes, dtype, dtype))
    if "base" in dtype:
        return np.dtype((dtype_from_json(dtype["base"]), tuple(dtype["shape"])))
    fields = dtype["fields"]
    return np.dtype(
        {
            "names": [field[0] for field in fields],
            "formats": [dtype_from_json(field[1]) for field in fields],
            "offsets": [field[2] for field in fields],
            "titles": [field[3] if len(field) > 3 else None for field in fields],
            "itemsize": dtype["itemsize"],
        }
    )
