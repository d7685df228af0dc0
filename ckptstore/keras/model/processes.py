"""Refuses what several processes that train one model together cannot do; asks no other process, waits for none."""

from __future__ import annotations

from typing import Any

import keras

from ckptstore.distributed.job import Job
from ckptstore.errors import SeveralProcessesError
from ckptstore.keras.private import find_job


def refuse_fit_in_several_processes(callback: object, model: Any) -> None:
    """Refuse a callback in a fit that several processes run together, before it makes or reads anything.

    Raises:
        SeveralProcessesError: There are several.
    """
    job = find_job(keras.backend.backend(), model)
    if job is not None and job.has_others:
        _refuse(type(callback).__name__, job)


def refuse_shared_arrays(operation: str, model: Any) -> None:
    """Refuse to save or restore a model whose arrays may belong to several processes together.

    On torch each process has tensors of its own, and one may save.

    Raises:
        SeveralProcessesError: There are several.
    """
    job = None if keras.backend.backend() == "torch" else find_job(keras.backend.backend(), model)
    if job is not None and job.has_others:
        _refuse(operation, job)


def _refuse(operation: str, job: Job) -> None:
    raise SeveralProcessesError(operation=operation, by=job.by, processes=job.processes, process=job.process)
