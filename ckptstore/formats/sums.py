"""CRC-32, as archives have it, in a tenth of zlib's time where zlib-ng is installed."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # a platform that there is no build for: the same sums, more slowly
    from zlib import crc32

__all__ = ["crc32"]
