"""Messages within one process: for a job of one process, and for tests, where threads stand for processes."""

from __future__ import annotations

import threading
from collections.abc import Sequence


class MemoryService:
    """A key-value service in memory; see `ckptstore.distributed.messages.KeyValueClient`.

    Example:
        >>> service = MemoryService()
        >>> service.put_once("a", "1"), service.put_once("a", "2"), service.fetch(["a", "b"])
        ('1', '1', {'a': '1'})
    """

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self._lock = threading.Lock()

    def put_once(self, key: str, value: str) -> str:
        """Write a value if there is none; returns what is there now."""
        with self._lock:
            return self.values.setdefault(key, value)

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of those keys that there are now."""
        with self._lock:
            return {key: self.values[key] for key in keys if key in self.values}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        with self._lock:
            for key in keys:
                self.values.pop(key, None)
