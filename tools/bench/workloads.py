"""Workloads to measure: models with a few large variables, with many small ones, and a real net on real digits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.names import JOB_SUBJECTS
from digits import training


class NotAvailableError(Exception):
    """A workload or a subject cannot be measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, and how it is trained.

    Attributes:
        layers: Number of dense layers of `width` units; 0 for the demonstration's convolutional net, on its digits.
        parts: What is measured: ``"save"`` (single saves, without other saves), ``"run"`` (a whole run), ``"job"``
            (saves and restores by a job of several processes).
        batches: Number of batches of a whole run.
        every: Batches from save to save in a whole run.
        saves: Number of single saves in each process; the first is reported separately.
        load: True to measure loading too.
        subjects: The subjects that take part; empty for all.
        devices: Number of devices over which JAX splits the kernels, forced on the CPU; 0 for one device. Of several
            processes, each has so many.
        processes: Number of processes that train together.
        layout: How they divide the model: ``"2d"`` splits kernels along both axes, ``"data"`` splits batches only.
    """

    name: str
    layers: int
    width: int = 0
    parts: Sequence[str] = ("save", "run")
    batches: int
    every: int
    saves: int = 4
    load: bool = True
    subjects: Sequence[str] = ()
    devices: int = 0
    processes: int = 1
    layout: str = "2d"


def _job(name: str, *, layers: int, width: int, saves: int, layout: str = "2d") -> Workload:
    return Workload(
        name=name,
        layers=layers,
        width=width,
        parts=("job",),
        batches=0,
        every=0,
        saves=saves,
        load=False,
        subjects=JOB_SUBJECTS,
        devices=4,
        processes=2,
        layout=layout,
    )


_OF_SAVES = ("memory copy", "memory copy again", "ours background", "keras .keras", "orbax background")

FULL = (
    Workload(name="large", layers=16, width=2048, batches=18, every=6),
    Workload(name="small", layers=200, width=128, batches=300, every=20, saves=8),
    Workload(
        name="sharded",
        layers=8,
        width=2048,
        parts=("save",),
        batches=18,
        every=6,
        load=False,
        subjects=_OF_SAVES,
        devices=8,
    ),
    Workload(name="digits", layers=0, parts=("run",), batches=1500, every=10, load=False),
    # Long enough for the cost of start and end to be a small part.
    Workload(
        name="digits long",
        layers=0,
        parts=("run",),
        batches=30_000,
        every=10,
        load=False,
        subjects=("ours auto", "ours idle"),
    ),
    _job("job", layers=8, width=2048, saves=5),
    # Every device has the whole state.
    _job("job data", layers=4, width=2048, saves=5, layout="data"),
)
QUICK = (
    Workload(name="large", layers=2, width=16, batches=4, every=2, saves=2),
    Workload(name="small", layers=4, width=4, batches=4, every=2, saves=2),
    Workload(
        name="sharded",
        layers=2,
        width=16,
        parts=("save",),
        batches=4,
        every=2,
        saves=2,
        load=False,
        subjects=_OF_SAVES,
        devices=8,
    ),
    Workload(name="digits", layers=0, parts=("run",), batches=20, every=10, load=False),
    Workload(
        name="digits long",
        layers=0,
        parts=("run",),
        batches=40,
        every=10,
        load=False,
        subjects=("ours auto", "ours idle"),
    ),
    _job("job", layers=2, width=16, saves=2),
    _job("job data", layers=2, width=16, saves=2, layout="data"),
)


def by_name(*, quick: bool) -> dict[str, Workload]:
    """Return the workloads by name."""
    return {workload.name: workload for workload in (QUICK if quick else FULL)}


def build(workload: Workload, *, distributed: bool = True) -> Any:
    """Return the compiled model, with all slot variables of its optimizer; on one device if not `distributed`."""
    import keras

    if workload.devices and distributed:
        distribute(workload.layout)
    keras.utils.set_random_seed(1)
    if workload.layers:
        layers = [keras.layers.Dense(workload.width) for _ in range(workload.layers)]
        model = keras.Sequential([keras.Input((workload.width,)), *layers])
        # So small that no value diverges, and every one changes.
        model.compile(optimizer=keras.optimizers.Adam(1e-6), loss="mse")
    else:
        model = digits_net()
    model.optimizer.build(model.trainable_variables)
    return model


def make_devices(workload: Workload) -> None:
    """Have JAX make the devices of a workload; before anything asks it for devices, as Orbax does.

    Raises:
        NotAvailableError: The backend is not JAX.
    """
    import keras

    if not workload.devices:
        return
    if keras.backend.backend() != "jax":
        raise NotAvailableError("keras.distribution is JAX's")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={workload.devices}"


def distribute(layout: str) -> None:
    """Have Keras divide the model over all devices, of all processes; see `Workload.layout`."""
    import keras

    names = keras.distribution.list_devices()
    if layout == "data":
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        )
        return
    # Two rows of devices.
    mesh = keras.distribution.DeviceMesh((2, len(names) // 2), ("batch", "model"), names)
    splits = keras.distribution.LayoutMap(mesh)
    splits[".*kernel"] = ("batch", "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=splits, batch_dim_name="batch", auto_shard_dataset=False)
    )


def digits_net() -> Any:
    """Return the net of the demonstration."""
    import keras

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, activation="relu", padding="same"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, activation="relu", padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(model: Any, workload: Workload, callbacks: Sequence[Any] = (), *, batches: int | None = None) -> None:
    """Train for some batches; the digits net is trained in epochs of 75 batches, with validation."""
    import numpy as np

    number = workload.batches if batches is None else batches
    if workload.layers:
        # The rows of a batch are split over the rows of the mesh, or over all devices.
        size = 2 if workload.devices else 1
        if workload.layout == "data":
            size = workload.devices
        rows = np.ones((number * size, workload.width), np.float32)
        model.fit(rows, rows, batch_size=size, epochs=1, verbose=0, shuffle=False, callbacks=[*callbacks])
        return
    images, targets = training.digits()
    per_epoch = min(75, number)
    count = per_epoch * 16
    model.fit(
        images[:count],
        targets[:count],
        validation_data=(images[1200:1500], targets[1200:1500]),
        epochs=max(1, number // per_epoch),
        batch_size=16,
        verbose=0,
        callbacks=[*callbacks],
    )


def variables(model: Any) -> list[Any]:
    """Return all variables of the state that every subject saves, in the order of a train step on JAX."""
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]


def host_arrays(model: Any) -> list[Any]:
    """Return their values in host memory, without a copy where they are there already."""
    import keras
    import numpy as np

    values = [variable.value for variable in variables(model)]
    if keras.backend.backend() == "torch":
        return [value.detach().cpu().numpy() for value in values]
    # Not convert_to_numpy of Keras, which copies.
    return [np.asarray(part) for value in values for part in parts_of(value)]


def parts_of(value: Any) -> list[Any]:
    """Return the parts of an array of JAX that lie on single devices, each once; of any other value, the value."""
    if len(getattr(value, "devices", set)()) < 2:
        return [value]
    return [shard.data for shard in value.addressable_shards if shard.replica_id == 0]


def digest(arrays: Iterable[Any]) -> str:
    """Return a digest of all values."""
    import numpy as np
    import xxhash

    found = xxhash.xxh3_128()
    for array in arrays:
        # As bytes, since buffers do not support every dtype; reshaped, since some arrays are 0-d.
        for part in parts_of(array):
            values: Any = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            found.update(values)
    return found.hexdigest()


def spoil(model: Any) -> None:
    """Set all variables to zero, so that loaded values differ from the earlier ones."""
    import keras

    for variable in variables(model):
        variable.assign(keras.ops.zeros_like(variable.value))
