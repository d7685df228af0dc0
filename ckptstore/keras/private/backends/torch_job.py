"""The processes of `torch.distributed`'s default process group, and the store that connects them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ckptstore.distributed.job import Job

BY = "torch.distributed"
_TIMEOUT = timedelta(seconds=10)


def find_job() -> Job | None:
    """Return the processes, or None where there is no default process group."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    by_launcher = os.environ.get("TORCHELASTIC_RUN_ID") is not None
    return Job(
        kind="torch",
        by=BY,
        process=distributed.get_rank(),
        processes=distributed.get_world_size(),
        found_in="the default process group" + (", started by torchrun" if by_launcher else ""),
        lacks_messages=None
        if _has_store()
        else "the default process group's store is not where it is in torch 2.13, and MASTER_ADDR names none",
    )


def _has_store() -> bool:
    from torch.distributed import distributed_c10d

    return hasattr(distributed_c10d, "_get_default_store") or _address() is not None


def _address() -> tuple[str, int] | None:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    return (host, int(port)) if host and port.isdecimal() else None


def _store() -> Any:
    """Return a connection to the job's store; torch's own waits while another thread waits in it."""
    import torch.distributed
    from torch.distributed import distributed_c10d

    if hasattr(distributed_c10d, "_get_default_store"):
        store: Any = distributed_c10d._get_default_store()
        if not hasattr(store, "clone"):
            return store
        store = store.clone()
        store.set_timeout(_TIMEOUT)
        return store
    address = _address()
    assert address is not None
    return torch.distributed.TCPStore(*address, is_master=False, timeout=_TIMEOUT)


class TorchClient:
    """The store of this process's job; see `ckptstore.distributed.messages.KeyValueClient`."""

    def __init__(self) -> None:
        self._store = _store()

    def put_once(self, key: str, value: str) -> str:
        """Write a value if there is none; returns what is there now."""
        return str(self._store.compare_set(key, "", value).decode())

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of those keys that there are now."""
        # `get` would wait for a key that is not there.
        return {key: self._store.get(key).decode() for key in keys if self._store.check([key])}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        for key in keys:
            self._store.delete_key(key)
