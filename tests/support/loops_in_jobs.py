"""Loops by hand that two processes run together, with `ckptstore.open_in_job`; run by `process_groups`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shared_replicas import TensorFlow, Torch, made, values_of

BACKEND = os.environ["KERAS_BACKEND"]
_STEPS = 3


class Jax:
    """Training by Keras, one batch after the other."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def train(self, batches: Any) -> None:
        for batch in batches:
            # Keras 3.12 distributes no batch without weights.
            self._model.train_on_batch(batch, batch[:, :2], sample_weight=np.ones(len(batch)))


TRAININGS: dict[str, Any] = {"jax": Jax, "torch": Torch, "tensorflow": TensorFlow}


def resumed(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Train and save; then resume with another model, and by a reference; return if both went on as the first did."""
    import keras

    import ckptstore

    if BACKEND == "jax":
        devices = keras.distribution.list_devices()
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        )
    batches = np.random.default_rng(rank).random((2 * _STEPS, 8, 4), np.float32)
    with scope:
        # Under JAX all processes share the layers' seeds.
        own = 0 if BACKEND == "jax" else rank
        model, other = made(own, 1), made(own, 2)
    # Before a resume, since torch's DDP begins with what process 0 has.
    trained, retrained = TRAININGS[BACKEND](model), TRAININGS[BACKEND](other)
    path = folder / "store"
    draws = {"draws": np.random.default_rng(rank)}
    with ckptstore.open_in_job(path, model) as store:
        began = store.resume(model, run="default", objects=draws)
        trained.train(batches[:_STEPS])
        saved = store.save(model, epoch=0, step=_STEPS, metrics={"loss": 0.5}, objects=draws)
        store.beat(epoch=0, step=_STEPS)
        trained.train(batches[_STEPS:])
    ends, drawn = values_of(model), draws["draws"].random()
    found: dict[str, Any] = {
        "divided": divided_optimizer(rank, folder) if BACKEND == "torch" else "",
        "began": began is None,
        "saved": [saved.version, saved.format, saved.digest],
    }
    with ckptstore.open_in_job(path, other) as store:
        draws = {"draws": np.random.default_rng(rank + 10)}
        point = store.resume(other, run="default", objects=draws)
        found["resumed"] = None if point is None else point.version
        retrained.train(batches[_STEPS:])
        found["exact"] = values_of(other) == ends
        found["draws"] = draws["draws"].random() == drawn
        found["restored"] = store.restore("best:loss", other).version
        retrained.train(batches[_STEPS:])
        found["exact again"] = values_of(other) == ends
        try:
            store.restore("no-such-tag", other)
        except ckptstore.CheckpointStoreError as error:
            found["refused"] = [type(error).__name__, str(error)]
        found["unprepared"] = []
        for process, options in ((0, {"epoch": -1}), (1, {"objects": {"draws": object()}})):
            mine = options if rank == process else {}
            began = time.monotonic()
            try:
                store.save(other, **{"epoch": 1, "objects": draws, **mine})
            except ckptstore.CheckpointStoreError as error:
                found["unprepared"].append([type(error).__name__, str(error), time.monotonic() - began])
        found["queries"] = [hasattr(store, name) for name in ("best", "latest", "save")]
        found["after"] = store.save(other, epoch=1, step=2 * _STEPS, objects=draws).version
        if rank == 1:
            # Time in which process 0, which has nothing left to do, would end, and with it its service.
            time.sleep(0.3)
            (folder / "leaves").touch()
    found["left last"] = rank == 1 or BACKEND == "jax" or (folder / "leaves").exists()
    found["closed"] = [
        refusal(call)
        for call in (
            lambda: store.save(other, epoch=1, objects=draws),
            lambda: store.resume(other, run="default", objects=draws),
            lambda: store.restore("latest", other),
        )
    ]
    try:
        with ckptstore.open_in_job(path, other) as store:
            if rank == 0:
                raise OSError("the data is gone")
            store.save(other, epoch=2)
    except (OSError, ckptstore.PeerFailedError) as error:
        found["left"] = [type(error).__name__, str(error)]
    return found


def divided_optimizer(rank: int, folder: Path) -> str:
    """Return how a run with torch's `ZeroRedundancyOptimizer` differs from the same one resumed; "" if it does not."""
    import keras
    import torch
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    import ckptstore

    class Loop:
        def __init__(self, seed: int, rate: float) -> None:
            keras.utils.set_random_seed(seed)
            dense = [keras.layers.Dense(units) for units in (8, 8, 2)]
            self.model = keras.Sequential([keras.Input((4,)), *dense])
            self.parallel = DistributedDataParallel(self.model)
            divided = ZeroRedundancyOptimizer(self.model.parameters(), torch.optim.AdamW, lr=rate)
            self.objects = {
                "optimizer": divided,
                "rates": torch.optim.lr_scheduler.ExponentialLR(divided, 0.5),
            }

        def train(self, batches: Any) -> None:
            for batch in torch.tensor(batches):
                self.objects["optimizer"].zero_grad()
                ((self.parallel(batch) - batch[:, :2]) ** 2).mean().backward()
                self.objects["optimizer"].step()
                self.objects["rates"].step()

        def ends(self) -> list[Any]:
            return [
                *map(keras.ops.convert_to_numpy, self.model.variables),
                self.objects["rates"].get_last_lr(),
            ]

    batches = np.random.default_rng(rank).random((2 * _STEPS, 8, 4), np.float32)
    first, other = Loop(1, 0.1), Loop(2, 0.7)
    with ckptstore.open_in_job(folder / "divided") as store:
        first.train(batches[:_STEPS])
        store.save(first.model, epoch=0, objects=first.objects)
        first.train(batches[_STEPS:])
    with ckptstore.open_in_job(folder / "divided") as store:
        store.resume(other.model, run="default", objects=other.objects)
        other.train(batches[_STEPS:])
    same = [np.array_equal(*values) for values in zip(first.ends(), other.ends(), strict=True)]
    return "" if all(same) else f"{same}"


def refusal(call: Callable[[], object]) -> str:
    """Return how a call on a closed store ends."""
    import ckptstore

    try:
        call()
    except ckptstore.InvalidArgumentError as error:
        return error.reason
    return "nothing"
