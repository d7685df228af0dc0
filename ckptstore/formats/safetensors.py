"""``.safetensors`` files in one pass: eight bytes of length, a JSON header, then the tensors one after the other.

They are written here because the safetensors package needs all tensors in memory at once. The exporter checks that the
package reads the result before the file gets its final name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from ckptstore.errors import InvalidArgumentError
from ckptstore.system.arrays import Array

Layout = Mapping[str, tuple[tuple[int, ...], str]]

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "uint32": "U32", "int32": "I32",
    "uint64": "U64", "int64": "I64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_ALIGNED = 8


def header_of(layout: Layout, metadata: Mapping[str, str]) -> tuple[bytes, Sequence[str], int]:
    """Return the file's header, the tensors' names in the order of their values, and the file's size in bytes.

    Args:
        layout: Shape and dtype name of each tensor.
        metadata: Texts for the header.

    Raises:
        InvalidArgumentError: The format has no name for a dtype.

    Example:
        >>> head, order, nbytes = header_of({"a": ((2,), "int8"), "b": ((), "float32")}, {})
        >>> order, nbytes - len(head)
        (['b', 'a'], 6)
    """
    for name, (_, dtype) in layout.items():
        if dtype not in _NAMES:
            raise InvalidArgumentError(
                argument="path",
                value=name,
                reason=f"is {dtype}, which .safetensors has no name for",
                hint="export it as .weights.h5",
            )
    # The largest elements first, so that each tensor is aligned to its own.
    order = sorted(layout, key=lambda name: -_element_size(layout[name][1]))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        shape, dtype = layout[name]
        end = position + int(np.prod(shape, dtype=np.int64)) * _element_size(dtype)
        entries[name] = {"dtype": _NAMES[dtype], "shape": [*shape], "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    head = struct.pack("<Q", len(text)) + text
    return head, order, len(head) + position


def bytes_of(array: Array) -> memoryview:
    """Return a tensor's bytes as stored in the file: C order, little-endian."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).data


def _element_size(dtype: str) -> int:
    if dtype == "bool":
        return 1
    return int("".join(char for char in _NAMES[dtype].split("_")[0] if char.isdigit())) // 8
