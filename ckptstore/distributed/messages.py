"""`Messages`: small texts that the processes of a job leave for each other under keys, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Messages(Protocol):
    """The messages of one process. May be used by several threads at a time; no call outlasts its limit.

    Keys are paths such as ``"ckptstore/5f3c/save/00000003/announced"``; whoever reads knows them in advance, since not
    every service can list its keys. A message is written once and never changed, so that what two processes read is the
    same, whenever they read it.

    All methods raise `MessagesLostError` where the service does not answer within `reply_limit_s`, or refuses.

    Attributes:
        process: The number of this process, from 0.
        reply_limit_s: How long the service may take to answer, in seconds.
    """

    process: int
    reply_limit_s: float

    def put(self, key: str, value: str) -> None:
        """Write a message, for all to see when this returns. To repeat it with the same value changes nothing.

        After a `MessagesLostError` it is not known if the message was written: repeat it, or give it up.

        Args:
            key: The key.
            value: ASCII text; up to a megabyte costs some 10 ms.

        Raises:
            MessageConflictError: There is a message of this key with another value.
        """

    def get(self, key: str, limit_s: float) -> str:
        """Return a message, and wait for it.

        Args:
            key: The key.
            limit_s: The longest to wait, in seconds; 0 to look once.

        Raises:
            MessageTimeoutError: It has not come.
        """
        ...

    def present(self, keys: Sequence[str]) -> dict[str, str]:
        """Return those messages of these keys that there are now; waits for none."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete messages; keys of which there are none are passed over."""


class KeyValueClient(Protocol):
    """A framework's key-value service, as `ServiceMessages` needs it: calls that may block or fail in any way."""

    def put_once(self, key: str, value: str) -> str:
        """Write a value if there is none; returns what is there now."""
        ...

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of those keys that there are now."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
