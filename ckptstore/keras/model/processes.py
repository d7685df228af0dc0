"""The processes that train one model together: which there are, and what they cannot do; waits for no other process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from ckptstore.distributed.job import Job
from ckptstore.errors import ModelNotReadyError, SeveralProcessesError
from ckptstore.formats.registry import by_name
from ckptstore.keras.private import find_job, raw_values
from ckptstore.keras.private.capture import CapturedValue
from ckptstore.keras.state.shards import spans_processes
from ckptstore.records import Format

_BY_ALL = (
    'StoreCheckpoint in the fit of every process saves with all of them, in the format "sharded"; a loop by hand opens '
    "its store with ckptstore.open_in_job on every process: ckptstore guide several-processes"
)


def job_of(model: Any) -> Job | None:
    """Return the processes that train a model together with this one; None if this is the only one."""
    job = find_job(keras.backend.backend(), model)
    return job if job is not None and job.has_others else None


def refuse_fit_in_several_processes(callback: object, model: Any) -> None:
    """Refuse a callback in a fit that several processes run together, before it makes or reads anything.

    Raises:
        SeveralProcessesError: There are several.
    """
    job = job_of(model)
    if job is not None:
        _refuse(type(callback).__name__, job)


def refuse_shared_arrays(operation: str, model: Any) -> None:
    """Refuse an operation of one process on a model whose arrays may belong to several processes together.

    On torch each process has tensors of its own, and one may save.

    Raises:
        SeveralProcessesError: There are several.
    """
    job = None if keras.backend.backend() == "torch" else job_of(model)
    if job is not None:
        _refuse(operation, job, _BY_ALL)


def refuse_save_by_all(model: Any, format: Format, job: Job) -> None:
    """Refuse what a save by several processes cannot hold, before anything is written.

    Raises:
        SeveralProcessesError: The format is one that a single process writes.
        ModelNotReadyError: Each process trains weights of its own, which nothing keeps equal.
    """
    if not by_name(format).has_shards:
        _refuse(f"a save in the format {format!r}", job, _BY_ALL)
    if job.kind == "jax" and not any(map(spans_processes, raw_values(model.weights))):
        raise ModelNotReadyError(
            model=model.name,
            missing="distributed over the processes",
            hint="each process has weights of its own, so that only those of one could be saved; call "
            "keras.distribution.set_distribution(keras.distribution.DataParallel()) before the model is made, or do "
            "not call jax.distributed.initialize and give each process a run of its own",
        )


def refuse_forms_of_layers(entries: Iterable[CapturedValue], job: Job) -> None:
    """Refuse a model of JAX with a layer that saves its variables in a form of its own, such as with LoRA.

    To load these, its own code assigns what it computes, and JAX would have all processes wait for each other.

    Args:
        entries: What Keras would write for the model.
        job: The processes that share it.

    Raises:
        SeveralProcessesError: There is such a layer.
    """
    own = None if job.kind != "jax" else next((entry for entry in entries if not entry.is_variable), None)
    if own is not None:
        hint = "save and restore such a model in one process, on as many devices as it has"
        _refuse(f"{own.path}, which its layer saves in a form of its own,", job, hint)


def _refuse(operation: str, job: Job, hint: str = "") -> None:
    raise SeveralProcessesError(
        operation=operation, by=job.by, processes=job.processes, process=job.process, hint=hint
    )
