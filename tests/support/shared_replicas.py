"""Replicas of a model in several processes of torch or TensorFlow: saved by all, and restored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared_models import digest, in_turn, said, save

BACKEND = os.environ["KERAS_BACKEND"]
# The part of an epoch that each process trains on before a save, and after it.
_STEPS = 3


def made(rank: int, seed: int) -> Any:
    """Return a compiled model with a frozen layer, and what differs from process to process."""
    import keras

    keras.utils.set_random_seed(seed)
    frozen = keras.layers.Dense(8, name="frozen")
    frozen.trainable = False
    model = keras.Sequential(
        [
            keras.Input((4,)),
            frozen,
            keras.layers.Dense(16, "relu", name="hidden"),
            keras.layers.BatchNormalization(name="normalised"),
            keras.layers.Dropout(0.5, seed=100 + rank, name="dropped"),
            keras.layers.Dense(2, name="last"),
        ],
        name="replica",
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def values_of(model: Any) -> list[list[str]]:
    from ckptstore.keras.state.arrays import host_array

    variables = [*model.variables, *model.optimizer.variables]
    return [[variable.path.partition("/")[2], digest([host_array(variable)])] for variable in variables]


class Torch:
    """Training by torch's DistributedDataParallel."""

    def __init__(self, model: Any) -> None:
        from torch.nn.parallel import DistributedDataParallel

        self._model = model
        self._parallel = DistributedDataParallel(model)

    def train(self, batches: Sequence[np.ndarray]) -> None:
        import torch

        for batch in batches:
            inputs = torch.tensor(batch)
            loss = ((self._parallel(inputs, training=True) - inputs[:, :2]) ** 2).mean()
            self._model.zero_grad()
            loss.backward()
            variables = self._model.trainable_variables
            with torch.no_grad():
                self._model.optimizer.apply([one.value.grad for one in variables], variables)


class TensorFlow:
    """Training by a strategy; a step of each replica is traced once."""

    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        strategy = model.distribute_strategy

        def replica(inputs: Any) -> None:
            variables = model.trainable_variables
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(inputs, training=True) - inputs[:, :2]) ** 2)
            gradients = tape.gradient(loss, [one.value for one in variables])
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
            model.optimizer.apply(gradients, variables)

        self._step = tf.function(lambda inputs: strategy.run(replica, args=(inputs,)))

    def train(self, batches: Sequence[np.ndarray]) -> None:
        import tensorflow as tf

        for batch in batches:
            self._step(tf.constant(batch))


def save_and_resume(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Train, save, train on; then restore into another model, and train on from there."""
    from ckptstore.keras.model.adapter import adapter
    from ckptstore.keras.private import find_job

    training = Torch if BACKEND == "torch" else TensorFlow
    batches = np.random.default_rng(rank).random((2 * _STEPS, 8, 4), np.float32)
    with scope:
        model, other = made(rank, 1), made(rank, 2)
    trained = training(model)
    trained.train(batches[:_STEPS])
    job = find_job(BACKEND, model)
    snapshots = adapter.snapshots(job)
    with in_turn(folder, "taken", rank):
        snapshot = snapshots.take(model, format="sharded")
        copies = [np.empty(variable.shape, variable.dtype) for variable in snapshot.variables]
        if snapshot.copy is not None:
            snapshot.copy(copies)
        assert digest(snapshot.values()) == digest(copies)
    checkpoint = save(snapshot, folder / "store")
    before = values_of(model)
    trained.train(batches[_STEPS:])
    after = values_of(model)
    trained = training(other)
    with in_turn(folder, "restored", rank):
        warned = said(adapter.restore, other, checkpoint, generators=True)
    same = values_of(other) == before
    trained.train(batches[_STEPS:])
    assert snapshot.state is not None
    return {
        "owned": len(copies),
        "same": same,
        "exact": values_of(other) == after != before,
        "warned": warned,
        "values": before,
        "own": snapshot.state.document.get("own"),
        "file": by_hand(rank, folder, other),
    }


def by_hand(rank: int, folder: Path, model: Any) -> Any:
    """Have process 0 alone save a file in torch, and all restore it."""
    import ckptstore

    if BACKEND != "torch":
        return None
    with in_turn(folder, "by-hand", rank):
        if rank == 0:
            with ckptstore.CheckpointStore(folder / "by-hand") as store:
                store.save(model, epoch=0)
                store.save(model, epoch=1, format="sharded")
        with ckptstore.CheckpointStore(folder / "by-hand", read_only=True) as store:
            return [said(store.restore, 1, model), said(store.restore, 2, model)]
