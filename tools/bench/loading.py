"""Loading: restores checkpoints of ckptstore and Keras into a model, cold and warm."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

import ckptstore
from bench import process_cost, workloads
from bench.workloads import Workload
from ckptstore.training.saving.schedule import EveryBatches, SaveSchedule

WARM = 3


class ReachedError(Exception):
    """The first batch is about to be trained on: the measurement is over."""


class FirstBatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a fit when its first batch is about to be trained on."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """End it."""
        raise ReachedError


def prepare(workload: Workload, files: Path) -> dict[str, Any]:
    """Write the files to load."""
    model = workloads.build(workload)
    files.mkdir()
    workloads.fit(model, workload, [saves_inside_an_epoch(files / "fit")], batches=3)
    _restore(model, files / "fit")  # all subjects load the same
    for format in ("keras", "weights"):
        with ckptstore.CheckpointStore(files / f"store-{format}") as store:
            store.save(model, epoch=0, metrics={"loss": 0.5}, format=format)
    model.save(files / "model.keras")
    model.save_weights(files / "model.weights.h5")
    os.sync()
    return {"digest": workloads.digest(workloads.host_arrays(model))}


def saves_inside_an_epoch(folder: Path, **options: Any) -> Any:
    """Return a callback that saves every second batch, and leaves the middle of an epoch as the newest checkpoint."""

    class AfterBatches(EveryBatches):
        """Leaves out the ends of epochs, also of the best."""

        def due_at_epoch_end(self, *, last: bool, best: bool = False, saving: bool = False) -> bool:
            """Return False."""
            return False

    class SavesInside(ckptstore.StoreCheckpoint):
        """Saves after batches only."""

        def _begin_fit(self) -> SaveSchedule:
            super()._begin_fit()
            return AfterBatches(2, at_end=False)

    return SavesInside(folder, monitor="loss", **options)


def measure(workload: Workload, name: str, files: Path) -> dict[str, Any]:
    """Load once with nothing of the file in memory, then several times with all of it."""
    load, path = _loader(workload, name, files)
    model = workloads.build(workload)
    workloads.fit(model, workload, batches=2)
    # A disk may have a cache of its own, as that of a virtual machine does: all subjects find it in the same state,
    # however the file was written.
    read(path)
    drop_from_cache(path)
    seconds, cpu, extra, digests = [], [], [], set()
    for _ in range(1 + WARM):
        workloads.spoil(model)
        process_cost.reset_peak()
        before, used, began = process_cost.resident_bytes(), process_cost.cpu_s(), time.perf_counter()
        load(model)
        seconds.append(time.perf_counter() - began)
        cpu.append(process_cost.cpu_s() - used)
        extra.append(max(0, process_cost.peak_bytes() - before))
        digests.add(workloads.digest(workloads.host_arrays(model)))
    return {
        "cold_s": seconds[0],
        "warm_s": min(seconds[1:]),
        "cpu_s": min(cpu[1:]),
        "extra_bytes": max(extra[1:]),
        "file_bytes": path.stat().st_size,
        "digests": sorted(digests),
        "state_bytes": sum(array.nbytes for array in workloads.host_arrays(model)),
    }


def _loader(workload: Workload, name: str, files: Path) -> tuple[Callable[[Any], object], Path]:
    if name.startswith("keras load_weights "):
        path = files / f"model{name.removeprefix('keras load_weights ')}"
        return (lambda model: model.load_weights(path)), path
    if name.startswith("ours restore "):
        folder = files / ("store-keras" if name.endswith(".keras") else "store-weights")
        return (lambda model: _restore(model, folder)), _payload(folder)
    if name == "read the file":
        path = files / "model.weights.h5"
        return (lambda model: read(path)), path
    callback = ckptstore.StoreCheckpoint(
        files / "fit",
        monitor="loss",
        run="default",
        resume="must",
        save_on_exception=False,
        background=False,
    )
    callbacks = [callback] if name.startswith("ours") else []

    def first_batch(model: Any) -> None:
        with contextlib.suppress(ReachedError):
            workloads.fit(model, workload, [*callbacks, FirstBatch()], batches=3)

    return first_batch, _payload(files / "fit")


def _restore(model: Any, folder: Path) -> None:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        store.restore("latest", model)


def _payload(folder: Path) -> Path:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        newest = store.latest()
    assert newest is not None
    return newest.path


def read(path: Path) -> None:
    """Read a file once, into a reused buffer."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache, where the system can do so."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
