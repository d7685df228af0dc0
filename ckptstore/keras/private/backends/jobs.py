"""The processes that train one model together, found without importing a framework, and the messages between them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.messages import KeyValueClient
from ckptstore.distributed.service import REPLY_LIMIT_S, ServiceMessages
from ckptstore.errors import MessagesLostError
from ckptstore.keras.private.backends import jax_job, tensorflow_job, torch_job


def find_job(backend: str, model: Any = None) -> Job | None:
    """Return the processes that a backend has connected, of which this is one; None if it has connected none.

    It asks no other process, and so waits for none. A program that has not imported the backend has no such job.

    Args:
        backend: Keras' name of it.
        model: The model that is trained: on TensorFlow it knows its strategy.

    Example:
        >>> find_job("numpy") is None
        True
    """
    match backend:
        case "jax":
            return jax_job.find_job()
        case "torch":
            return torch_job.find_job()
        case "tensorflow":
            return tensorflow_job.find_job(model)
    return None


def messages_of(job: Job, *, reply_limit_s: float = REPLY_LIMIT_S) -> ServiceMessages:
    """Return this process's messages to the others of its job, over the backend's own service.

    Args:
        job: From `find_job`.
        reply_limit_s: How long the service may take to answer, in seconds.

    Raises:
        MessagesLostError: This version of the backend has no service that is known here.
    """
    if job.lacks_messages is not None:
        raise MessagesLostError(process=job.process, key="", service=job.by, reason=job.lacks_messages)
    clients: dict[str, Callable[[], KeyValueClient]] = {
        "jax": jax_job.JaxClient,
        "torch": torch_job.TorchClient,
        "tensorflow": tensorflow_job.TensorflowClient,
        "memory": MemoryService,
    }
    return ServiceMessages(
        clients[job.kind](), process=job.process, service=job.by, reply_limit_s=reply_limit_s
    )


def preemption_signals(backend: str) -> tuple[signal.Signals, ...]:
    """Return the signals that the backend itself watches for, since they may announce a preemption."""
    return (signal.SIGTERM,) if backend == "jax" and jax_job.preemption_is_watched() else ()
