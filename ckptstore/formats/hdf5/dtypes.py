"""Datatypes of numpy and ml_dtypes as HDF5 datatype messages and back, exactly as h5py writes them.

HDF5 has numbers, bool and complex, but no types for ml_dtypes. Keras stores bfloat16 as opaque bytes with an
attribute ``dtype`` that names it, and we do the same for all of these types except two. Keras (3.11 and newer) cannot
read float8_e4m3fn back from opaque bytes and cannot write float8_e5m2 at all, but assigns float16 values to variables
of these types without loss. So these two are stored as float16, which can represent all of their values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FIXED, _FLOAT, _STRING, _OPAQUE, _VLEN = 0x10, 0x11, 0x13, 0x15, 0x19
# Classes and their fields: "HDF5 File Format Specification", IV.A.2.d.
_FLOAT_PROPERTIES = {
    # dtype: (sign bit, (bit offset, precision, exponent at, its size, mantissa at, its size, exponent bias))
    "f2": (15, (0, 16, 10, 5, 0, 10, 15)),
    "f4": (31, (0, 32, 23, 8, 0, 23, 127)),
    "f8": (63, (0, 64, 52, 11, 0, 52, 1023)),
}
_CHARACTER = struct.pack("<BBBBIHH", _FIXED, 0, 0, 0, 1, 0, 8)
VLEN_STRING = struct.pack("<BBBBI", _VLEN, 0x01, 0x01, 0, 16) + _CHARACTER
_VLEN_STRING_ASCII = VLEN_STRING[:2] + b"\x00" + VLEN_STRING[3:]


def _integer(dtype: np.dtype[Any]) -> bytes:
    signed = 0x08 if dtype.kind == "i" else 0
    return struct.pack("<BBBBIHH", _FIXED, signed, 0, 0, dtype.itemsize, 0, 8 * dtype.itemsize)


def _float(dtype: np.dtype[Any]) -> bytes:
    sign, properties = _FLOAT_PROPERTIES[dtype.str[1:]]
    return struct.pack("<BBBBI", _FLOAT, 0x20, sign, 0, dtype.itemsize) + struct.pack("<HHBBBBI", *properties)


def _boolean() -> bytes:
    """Return an enumeration over int8 of FALSE and TRUE, which h5py reads as bool."""
    names = b"FALSE\0\0\0TRUE\0\0\0\0"
    return struct.pack("<BBBBI", 0x18, 2, 0, 0, 1) + _integer(np.dtype("i1")) + names + b"\x00\x01"


def _complex(dtype: np.dtype[Any]) -> bytes:
    """Return a compound of two floats, r and i, which h5py reads as complex."""
    half = dtype.itemsize // 2
    number = _float(np.dtype(f"f{half}"))
    members = b"".join(
        struct.pack("<8sIB3xII16x", name, offset, 0, 0, 0) + number
        for name, offset in ((b"r", 0), (b"i", half))
    )
    return struct.pack("<BBBBI", 0x16, 2, 0, 0, dtype.itemsize) + members


def _opaque(itemsize: int) -> bytes:
    return struct.pack("<BBBBI", _OPAQUE, 0, 0, 0, itemsize)


def _extended_types() -> dict[str, np.dtype[Any]]:
    kinds = (getattr(ml_dtypes, name) for name in dir(ml_dtypes) if name not in ("finfo", "iinfo"))
    dtypes = [np.dtype(kind) for kind in kinds if isinstance(kind, type) and issubclass(kind, np.generic)]
    return {dtype.name: dtype for dtype in dtypes}


_EXTENDED = _extended_types()
_FLOAT16 = np.dtype("<f2")


def _e4m3fn_to_float16(values: Array) -> Array:
    return values.astype(_FLOAT16)


def _e4m3fn_from_float16(values: Array) -> Array:
    return values.astype(_EXTENDED["float8_e4m3fn"])


# float8_e5m2 is the upper half of a float16; moving the bits keeps the payloads of NaNs too.
def _e5m2_to_float16(values: Array) -> Array:
    return (values.view(np.uint8).astype("<u2") << 8).view(_FLOAT16)


def _e5m2_from_float16(values: Array) -> Array:
    return (values.view("<u2") >> 8).astype(np.uint8).view(_EXTENDED["float8_e5m2"])


Convert = Callable[[Array], Array]
_AS_FLOAT16: dict[str, tuple[Convert, Convert]] = {
    "float8_e4m3fn": (_e4m3fn_to_float16, _e4m3fn_from_float16),
    "float8_e5m2": (_e5m2_to_float16, _e5m2_from_float16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredType:
    """Storage of one dtype in a file.

    Attributes:
        dtype: The dtype of the values; object for text of variable length.
        stored: The little-endian dtype of the bytes in the file.
        message: The datatype message, without padding.
        mark: Text of the attribute ``dtype`` that the dataset needs, or None.
        convert: Converts values (at least 1-D) to stored ones; None if the bytes are the same.
        restore: Converts stored values back.
    """

    dtype: np.dtype[Any]
    stored: np.dtype[Any]
    message: bytes
    mark: str | None = None
    convert: Convert | None = None
    restore: Convert | None = None


@lru_cache(maxsize=256)
def stored_type(dtype: np.dtype[Any]) -> StoredType | None:
    """Return the storage of a dtype, or None for those that only h5py can write (text, long double, records).

    Example:
        >>> stored_type(np.dtype(np.int8)).message.hex()
        '100800000100000000000800'
        >>> stored_type(np.dtype(ml_dtypes.bfloat16)).mark
        'bfloat16'
        >>> stored_type(np.dtype(object)) is None
        True
    """
    plain = dtype.newbyteorder("<")
    if dtype.name in _EXTENDED and dtype == _EXTENDED[dtype.name]:
        return _stored_extended(dtype)
    if dtype.kind in "iu":
        message = _integer(plain)
    elif dtype.kind == "f" and dtype.str[1:] in _FLOAT_PROPERTIES:
        message = _float(plain)
    elif dtype.kind == "c" and dtype.itemsize in (8, 16):
        message = _complex(plain)
    elif dtype.kind == "b":
        message = _boolean()
    elif dtype.kind == "S" and dtype.itemsize:
        message = struct.pack("<BBBBI", _STRING, 0x01, 0, 0, dtype.itemsize)
    else:
        return None
    return StoredType(dtype=plain, stored=plain, message=message)


def _stored_extended(dtype: np.dtype[Any]) -> StoredType:
    if dtype.name in _AS_FLOAT16:
        convert, restore = _AS_FLOAT16[dtype.name]
        return StoredType(
            dtype=dtype,
            stored=_FLOAT16,
            message=_float(_FLOAT16),
            mark=dtype.name,
            convert=convert,
            restore=restore,
        )
    return StoredType(dtype=dtype, stored=dtype, message=_opaque(dtype.itemsize), mark=dtype.name)


_SIZE_MOST = 1 << 31  # of one element, for numpy
_NUMBERS = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_KNOWN = tuple(kind for kind in (stored_type(np.dtype(name)) for name in _NUMBERS) if kind is not None)


def read_type(message: bytes, mark: str | None) -> StoredType | None:
    """Return the type of a datatype message, or None for a type that Keras does not write.

    Args:
        message: The message; bytes after its end are ignored.
        mark: Text of the dataset's attribute ``dtype``, or None.
    """
    if len(message) < 8:
        return None
    size = int.from_bytes(message[4:8], "little")
    if message[0] == _OPAQUE:
        return _read_opaque(size, mark)
    if message[0] == _STRING and 0 < size < _SIZE_MOST:
        text = np.dtype(f"S{size}")
        return StoredType(dtype=text, stored=text, message=message[:8])
    if message.startswith((VLEN_STRING, _VLEN_STRING_ASCII)):
        # A length (4 bytes), the address of a heap collection (8) and an index in it (4).
        reference = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
        return StoredType(dtype=np.dtype(object), stored=reference, message=VLEN_STRING)
    return _read_number(message, mark)


def _read_opaque(size: int, mark: str | None) -> StoredType | None:
    named = _EXTENDED.get(mark or "")
    if named is not None and named.itemsize == size and named.name not in _AS_FLOAT16:
        return _stored_extended(named)
    if not 0 < size < _SIZE_MOST:
        return None
    raw = np.dtype(f"V{size}")
    return StoredType(dtype=raw, stored=raw, message=_opaque(size))


def _read_number(message: bytes, mark: str | None) -> StoredType | None:
    big = message[0] in (_FIXED, _FLOAT) and bool(message[1] & 1)
    # The lowest bit of the class's first flag byte is the byte order.
    little = message[:1] + bytes([message[1] & ~1]) + message[2:] if big else message
    for known in _KNOWN:
        if little.startswith(known.message):
            if known.stored == _FLOAT16 and mark in _AS_FLOAT16 and not big:
                return _stored_extended(_EXTENDED[mark])
            if not big:
                return known
            swapped = known.stored.newbyteorder(">")
            return StoredType(dtype=swapped, stored=swapped, message=message[: len(known.message)])
    return None
