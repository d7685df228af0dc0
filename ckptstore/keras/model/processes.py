"""Detection of several processes that train one model together; asks no other process, and so waits for none."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import keras

from ckptstore.errors import SeveralProcessesError


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that train together.

    Attributes:
        by: What connects them.
        processes: Their number, more than one.
        process: The number of this one.
    """

    by: str
    processes: int
    process: int


def refuse_fit_in_several_processes(callback: object, model: Any) -> None:
    """Refuse a callback in a fit that several processes run together, before it makes or reads anything.

    Raises:
        SeveralProcessesError: There are several.
    """
    group = process_group(model)
    if group is not None:
        _refuse(type(callback).__name__, group)


def refuse_shared_arrays(operation: str, model: Any) -> None:
    """Refuse to save or restore a model whose arrays may belong to several processes together.

    On torch each process has tensors of its own, and one may save.

    Raises:
        SeveralProcessesError: There are several.
    """
    group = None if keras.backend.backend() == "torch" else process_group(model)
    if group is not None:
        _refuse(operation, group)


def process_group(model: Any) -> ProcessGroup | None:
    """Return the processes that train a model together, or None if this one trains it alone.

    Example:
        >>> process_group(None) is None
        True
    """
    backend = keras.backend.backend()
    found = {"jax": _of_jax, "torch": _of_torch, "tensorflow": _of_tensorflow}.get(backend, _of_none)(model)
    return found if found is not None and found.processes > 1 else None


def _refuse(operation: str, group: ProcessGroup) -> None:
    raise SeveralProcessesError(
        operation=operation, by=group.by, processes=group.processes, process=group.process
    )


def _of_none(model: Any) -> None:
    return None


def _of_jax(model: Any) -> ProcessGroup:
    import jax

    return ProcessGroup("jax.distributed", jax.process_count(), jax.process_index())


def _of_torch(model: Any) -> ProcessGroup | None:
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return ProcessGroup("torch.distributed", distributed.get_world_size(), distributed.get_rank())


def _of_tensorflow(model: Any) -> ProcessGroup | None:
    strategy = getattr(model, "distribute_strategy", None)
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None:
        return None
    jobs = resolver.cluster_spec().as_dict()
    processes = sum(len(jobs.get(job, ())) for job in ("chief", "worker"))
    return ProcessGroup(type(strategy).__name__, processes, resolver.task_id or 0)
