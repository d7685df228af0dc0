"""`open_in_job`: a store that several processes save to together, in a training loop written by hand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ckptstore.keras.model.processes import job_of
from ckptstore.store.store import CheckpointStore
from ckptstore.training.job.fit_job import FitJob
from ckptstore.training.job.joined_store import JoinedStore
from ckptstore.training.job.leading_store import LeadingStore

if TYPE_CHECKING:
    from ckptstore.distributed.job import Job


def open_in_job(path: str | os.PathLike[str], model: Any = None) -> CheckpointStore | JoinedStore:
    """Open a store on every process of a job, for a loop written by hand: each calls the same, in the same order.

    `save`, `resume` and `restore` then work as those of `CheckpointStore`, with all processes: one checkpoint holds
    what each has, also its random generators and its `objects`, and all resume from the same one. Its format is
    always ``"sharded"``. On torch (`DistributedDataParallel`) the replicas are equal, and process 0 writes the model
    and the optimizers.

    Process 0 owns the run and the manifest. The store of the others has `save`, `resume`, `restore`, `beat` and
    `close`, and no queries. A process by itself gets a `CheckpointStore`.

    Args:
        path: The directory, which all processes see; as for `CheckpointStore`.
        model: The model; TensorFlow's knows its strategy. None inside of `strategy.scope()`, and on JAX and torch.

    Returns:
        The store; a context manager.

    Raises:
        JobIncompleteError: Not all processes have come here: process 0 waits for 300 s, and the others for it 600 s.
        MessagesLostError: The framework connects the processes, and has no service for messages.
        CheckpointStoreError: As `CheckpointStore`; the others then raise `PeerFailedError`.

    Example:
        >>> import tempfile, keras
        >>> with open_in_job(tempfile.mkdtemp()) as store:  # on every process
        ...     store.resume(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), run="default")
    """
    job = job_of(model)
    return CheckpointStore(path) if job is None else _opened(path, job)


def _opened(path: str | os.PathLike[str], job: Job) -> CheckpointStore | JoinedStore:
    met = FitJob.meet(job, "store")
    try:
        # The others find nothing to open: what they do first waits for process 0.
        return LeadingStore(path, met) if met.is_leader else JoinedStore(path, met)
    except BaseException as error:
        met.give_up(error)
        met.close()
        raise
