"""A fit in several processes that cannot be saved: each process refuses it at once, and before it makes a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from process_groups import results_of

BACKEND = keras.backend.backend()
CALLBACKS = ("ModelCheckpoint", "BackupAndRestore")
# What becomes of a fit with StoreCheckpoint on every process, and on the first alone. Here JAX' processes have weights
# of their own, and torch's fit adds up no gradients. TensorFlow's strategy keeps replicas equal; its loop only begins.
STORE = {
    "jax": ("ModelNotReadyError", "ModelNotReadyError"),
    "torch": ("SeveralProcessesError", "SeveralProcessesError"),
    "tensorflow": (None, "JobIncompleteError"),
}


def test_a_fit_in_several_processes_is_refused_in_each(tmp_path: Path) -> None:
    *processes, made = results_of(BACKEND, tmp_path, "several_process_fits:attempts")
    for number, found in enumerate(processes):
        assert "error" not in found, found["error"]
        names = ["StoreCheckpoint", "alone"] if number == 0 else ["StoreCheckpoint"]
        for name, kind in zip(names, STORE[BACKEND], strict=False):
            error, seconds = found[name]
            assert (error and error[0]) == kind, name
            assert seconds < 60
        for name in CALLBACKS:
            error, seconds = found[name]
            assert error is not None, name
            kind, text, process = error
            assert (kind, process) == ("SeveralProcessesError", number)
            assert f"this is process {number} of 2" in text
            assert "ckptstore guide several-processes" in text
            # It waits for nothing; the first builds the model.
            assert seconds < 60
    error, _ = processes[0]["save"]
    # On torch each process has tensors of its own.
    assert error is None if BACKEND == "torch" else error[0] == "SeveralProcessesError"
    assert not {"models", "backup", *(() if BACKEND == "tensorflow" else ("store",))} & set(made)


@contextmanager
def group_of_one() -> Iterator[Any]:
    """Connect this process with itself, as a script does that may also be started by a launcher."""
    if BACKEND == "torch":
        import torch.distributed

        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
    else:
        import tensorflow as tf

        with tf.distribute.MultiWorkerMirroredStrategy().scope():
            yield


@pytest.mark.skipif(BACKEND == "jax", reason="see test_preemption_service")
@pytest.mark.filterwarnings("ignore")  # TensorFlow's and gloo's own
def test_a_group_of_one_process_trains_as_without(tmp_path: Path) -> None:
    data = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    with group_of_one():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        callback = ckptstore.StoreCheckpoint(tmp_path / "store")
        model.fit(*data, verbose=0, batch_size=4, callbacks=[callback])
        with ckptstore.CheckpointStore(tmp_path / "by-hand") as store:
            store.save(model, epoch=0)
    assert callback.last is not None
