"""One exchange between process 0 and the others: an offer of 0, an answer of each other process, a decision of 0.

Each method is one call of `Messages`, so that a process can die before or behind every one of them, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ckptstore.distributed.messages import Messages


class Exchange:
    """The messages of one exchange, JSON objects below one prefix.

    Args:
        messages: The messages of this process.
        prefix: Begins their keys, without a ``/`` at its end.

    Example:
        >>> from ckptstore.distributed.memory import MemoryService
        >>> from ckptstore.distributed.service import ServiceMessages
        >>> service = MemoryService()
        >>> leader, other = (
        ...     Exchange(ServiceMessages(service, process=process, service="memory"), "save/1") for process in (0, 1)
        ... )
        >>> leader.offer({"version": 7})
        >>> other.offered()
        {'version': 7}
        >>> other.answer({"nbytes": 4})
        >>> leader.answers([1, 2])
        {1: {'nbytes': 4}}
    """

    def __init__(self, messages: Messages, prefix: str) -> None:
        self._messages = messages
        self._prefix = prefix

    @property
    def process(self) -> int:
        """The number of this process."""
        return self._messages.process

    def offer(self, value: Mapping[str, Any]) -> None:
        """Tell the others what this is about; by process 0."""
        self._put("offer", value)

    def offered(self) -> dict[str, Any] | None:
        """Return what process 0 has offered, or None."""
        return self._look("offer")

    def offered_or_decided(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return what process 0 has offered and decided, each or None, by one look."""
        keys = [f"{self._prefix}/offer", f"{self._prefix}/decision"]
        found = self._messages.present(keys)
        offered, decided = (json.loads(found[key]) if key in found else None for key in keys)
        return offered, decided

    def answer(self, value: Mapping[str, Any]) -> None:
        """Answer the offer; by each other process."""
        self._put(f"answer/{self.process}", value)

    def answers(self, processes: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Return the answers that there are, of these processes."""
        keys = {f"{self._prefix}/answer/{process}": process for process in processes}
        found = self._messages.present([*keys])
        return {keys[key]: json.loads(text) for key, text in found.items()}

    def decide(self, value: Mapping[str, Any]) -> None:
        """Tell the others how it ends; by process 0."""
        self._put("decision", value)

    def decision(self) -> dict[str, Any] | None:
        """Return what process 0 has decided, or None."""
        return self._look("decision")

    def keys(self, processes: Iterable[int]) -> list[str]:
        """Return all keys of this exchange, to delete them."""
        names = ["offer", "decision", *(f"answer/{process}" for process in processes)]
        return [f"{self._prefix}/{name}" for name in names]

    def _put(self, name: str, value: Mapping[str, Any]) -> None:
        self._messages.put(f"{self._prefix}/{name}", json.dumps(value, sort_keys=True))

    def _look(self, name: str) -> dict[str, Any] | None:
        key = f"{self._prefix}/{name}"
        text = self._messages.present([key]).get(key)
        return None if text is None else dict(json.loads(text))
