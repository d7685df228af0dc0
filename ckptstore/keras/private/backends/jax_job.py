"""The processes of `jax.distributed`, and the key-value service of its coordination service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ckptstore.distributed.job import Job

BY = "jax.distributed"
# How long a look waits that cannot be made without waiting, in milliseconds.
_LOOK_MS = 100
# Modules whose functions wait for devices.
_WAIT_FOR_DEVICES = ("jax", "keras.src.backend.jax")


def find_job() -> Job | None:
    """Return the processes, or None where JAX is not imported."""
    jax: Any = sys.modules.get("jax")
    if jax is None:
        return None
    state = _state()
    if getattr(state, "client", None) is not None:
        return Job(
            kind="jax",
            by=BY,
            process=state.process_id,
            processes=state.num_processes,
            found_in="jax.distributed.initialize",
        )
    # Without a client, or in a JAX with another layout; a process of its own has counted itself.
    return Job(
        kind="jax",
        by=BY,
        process=jax.process_index(),
        processes=jax.process_count(),
        found_in="jax.process_count()",
        lacks_messages=f"the coordination client of JAX {jax.__version__} is not where it is in 0.4.38 to 0.10.2, or "
        "jax.distributed.initialize was not called",
    )


def preemption_is_watched() -> bool:
    """Return True if JAX's preemption service has put a handler of its own on SIGTERM."""
    return getattr(_state(), "preemption_sync_manager", None) is not None


def is_in_framework(frame: FrameType) -> bool:
    """Return True if a frame is of JAX, or of what Keras does with it, such as to fetch a result."""
    module = str(frame.f_globals.get("__name__"))
    return any(module == name or module.startswith(f"{name}.") for name in _WAIT_FOR_DEVICES)


def leave_together() -> None:
    """Wait until all processes of the job are at their exits, as JAX does at this one's; may be called in any thread.

    Raises:
        RuntimeError: They have not come within JAX's limit, by default 300 s.
    """
    sys.modules["jax"].distributed.shutdown()


def _state() -> Any:
    if "jax" not in sys.modules:
        return None
    try:
        from jax._src import distributed
    except ImportError:
        return None
    return getattr(distributed, "global_state", None)


class JaxClient:
    """The key-value service of this process's job; see `ckptstore.distributed.messages.KeyValueClient`."""

    def __init__(self) -> None:
        self._client = _state().client

    def put_once(self, key: str, value: str) -> str:
        """Write a value if there is none; returns what is there now."""
        try:
            self._client.key_value_set(key, value)
        except RuntimeError as error:
            # JAX tells its errors apart by their text alone.
            if "ALREADY_EXISTS" not in str(error):
                raise
            return str(self._client.blocking_key_value_get(key, 1000))
        return value

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of those keys that there are now."""
        if len(keys) <= 2:  # in their folder there may be large reports
            looked = {key: self._look(key) for key in keys}
            return {key: value for key, value in looked.items() if value is not None}
        wanted = set(keys)
        found: dict[str, str] = {}
        for folder in dict.fromkeys(key.rpartition("/")[0] for key in keys):
            found |= {key: value for key, value in self._client.key_value_dir_get(folder) if key in wanted}
        return found

    def _look(self, key: str) -> str | None:
        try:
            if hasattr(self._client, "key_value_try_get"):
                return str(self._client.key_value_try_get(key))
            return str(self._client.blocking_key_value_get(key, _LOOK_MS))
        except RuntimeError as error:
            if "NOT_FOUND" in str(error) or "GetKeyValue() timed out" in str(error):
                return None
            raise

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        for key in keys:
            self._client.key_value_delete(key)
