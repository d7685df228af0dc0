"""The processes of TensorFlow's MultiWorkerMirroredStrategy, and the key-value service of its coordination service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ckptstore.distributed.job import Job

# How long a look for one key waits, and the share of each where there are many, in milliseconds.
_LOOK_MS = 100
_SHORTEST_LOOK_MS = 20


def find_job(model: Any) -> Job | None:
    """Return the processes of a model's strategy, or without one of the scope that is open; None where it has none."""
    tensorflow: Any = sys.modules.get("tensorflow")
    strategy = getattr(model, "distribute_strategy", None)
    if model is None and tensorflow is not None:
        strategy = tensorflow.distribute.get_strategy()
    resolver = getattr(strategy, "cluster_resolver", None)
    if tensorflow is None or resolver is None:
        return None
    is_mirrored = isinstance(strategy, tensorflow.distribute.MultiWorkerMirroredStrategy)
    jobs = resolver.cluster_spec().as_dict()
    chiefs = len(jobs.get("chief", ()))
    is_worker = resolver.task_type == "worker"
    return Job(
        kind="tensorflow",
        by="MultiWorkerMirroredStrategy" if is_mirrored else type(strategy).__name__,
        process=(resolver.task_id or 0) + chiefs * is_worker,
        # A strategy without TF_CONFIG has no cluster: it is one process.
        processes=max(1, chiefs + len(jobs.get("worker", ()))),
        found_in="the strategy's cluster (TF_CONFIG)",
        lacks_messages=_lacks_messages(tensorflow, is_mirrored=is_mirrored),
    )


def _lacks_messages(tensorflow: Any, *, is_mirrored: bool) -> str | None:
    if not is_mirrored:
        return "only a MultiWorkerMirroredStrategy starts a coordination service between its processes"
    if _context() is None:
        return f"TensorFlow {tensorflow.__version__} has its coordination service elsewhere than 2.20"
    return None


def _context() -> Any:
    try:
        from tensorflow.python.eager import context
    except ImportError:
        return None
    found = context.context()
    return found if hasattr(found, "get_config_key_value") else None


class TensorflowClient:
    """The key-value service of this process's job; see `ckptstore.distributed.messages.KeyValueClient`."""

    def __init__(self) -> None:
        self._context = _context()
        self._errors: Any = sys.modules["tensorflow"].errors

    def put_once(self, key: str, value: str) -> str:
        """Write a value if there is none; returns what is there now."""
        try:
            self._context.set_config_key_value(key, value)
        except self._errors.AlreadyExistsError:
            return str(self._context.get_config_key_value(key, 1000))
        return value

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the values of those keys that there are now; of one that is missing it takes a moment to know."""
        look_ms = max(_SHORTEST_LOOK_MS, _LOOK_MS // len(keys))
        found = {}
        for key in keys:
            try:
                found[key] = str(self._context.get_config_key_value(key, look_ms))
            except (self._errors.DeadlineExceededError, self._errors.NotFoundError):
                continue
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """Delete keys, if they are there."""
        for key in keys:
            self._context.delete_config_key_value(key)
