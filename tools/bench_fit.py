"""Measures, in a process of its own, what the training state of a fit costs; see bench.py.

    bench_fit.py capture|resume|batches LAYERS WIDTH REPEAT FOLDER

prints one line of JSON: seconds of each subject, and facts. Subjects take turns on the same model.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_subjects
import keras
import numpy as np

import ckptstore

Seconds = dict[str, list[float]]
BATCHES = 2_000
NEVER = 10**9


class ReachedError(Exception):
    """The first batch is about to be trained on: what was to be measured is over."""


# --- the fit ---------------------------------------------------------------------------------------------


def build(layers: int, width: int) -> Any:
    """Return the model of the other benchmarks, made so that training leaves its values as they are."""
    model = bench_subjects.build(layers, width)
    model.optimizer.learning_rate = 0.0
    for variable in model.optimizer.variables:
        if len(variable.shape) > 1:
            variable.assign(keras.ops.abs(variable))  # Adam takes the root of some
    return model


def fit(model: Any, callbacks: list[Any], *, batches: int) -> None:
    """Train with the callbacks that trainings have, and ours."""
    width = model.input_shape[-1]
    rows, targets = np.ones((batches, width), np.float32), np.zeros((batches, width), np.float32)
    usual = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss"),
        keras.callbacks.EarlyStopping(monitor="loss", patience=3),
    ]
    model.fit(rows, targets, batch_size=1, epochs=1, verbose=0, callbacks=[*usual, *callbacks])


# --- a save ----------------------------------------------------------------------------------------------


class TimedSaves(ckptstore.StoreCheckpoint):
    """Saves after each batch, in turns with a save of the model alone into another store."""

    def __init__(self, folder: Path, plain: ckptstore.CheckpointStore) -> None:
        super().__init__(folder, monitor="loss", save_freq=1)
        self.seconds: Seconds = {"store.save": [], "StoreCheckpoint": []}
        self._plain = plain
        self._turn = 0
        self._began = 0.0

    def due_after(self, batches: int) -> bool:
        """Start the clock: what follows is the save, its fit state first."""
        self._turn += 1
        if self._turn % 2:
            self._save_plainly()
        os.sync()
        self._began = time.perf_counter()
        return True

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Save after batches only."""
        return False

    def save_at(self, moment: Any) -> bool:
        """Save, and stop the clock."""
        saved = super().save_at(moment)
        self.seconds["StoreCheckpoint"].append(time.perf_counter() - self._began)
        if not self._turn % 2:
            self._save_plainly()
        return saved

    def _save_plainly(self) -> None:
        os.sync()
        began = time.perf_counter()
        self._plain.save(
            self.model, epoch=0, batch=self._turn, metrics={"loss": 0.5}, monitor=("loss", "min")
        )
        self.seconds["store.save"].append(time.perf_counter() - began)


def capture(model: Any, repeat: int, folder: Path) -> dict[str, Any]:
    """Time saves with and without the state of the fit."""
    with ckptstore.CheckpointStore(folder / "plain") as plain:
        timed = TimedSaves(folder / "fit", plain)
        fit(model, [timed], batches=repeat + 1)
        assert timed.last is not None
        with ckptstore.CheckpointStore(folder / "fit", read_only=True) as store:
            newest, other = store.latest(), plain.latest()
            assert newest is not None
            assert other is not None
    # The first of each fills caches.
    seconds = {name: times[1:] for name, times in timed.seconds.items()}
    payload = {"store.save": other.nbytes, "StoreCheckpoint": newest.nbytes}
    return {"seconds": seconds, **{name: {"payload_bytes": size} for name, size in payload.items()}}


# --- a resume --------------------------------------------------------------------------------------------


class SavesInside(ckptstore.StoreCheckpoint):
    """Leaves a checkpoint of the middle of an epoch as the newest."""

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Save after batches only."""
        return False


class FirstBatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a fit when its first batch is about to be trained on."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """End it."""
        raise ReachedError


def resumed(model: Any, folder: Path) -> None:
    """Have a fit go on, up to its first batch."""
    with contextlib.suppress(ReachedError), warnings.catch_warnings():
        # Started again and again without a save in between, as nobody but a benchmark does.
        warnings.filterwarnings("ignore", message=".*is stepped over")
        callback = ckptstore.StoreCheckpoint(folder, monitor="loss", resume="must", save_on_exception=False)
        fit(model, [callback, FirstBatch()], batches=3)


def restored(model: Any, folder: Path) -> None:
    """Restore by hand, then have a fit begin, up to its first batch."""
    with ckptstore.CheckpointStore(folder) as store:
        store.restore("latest", model)
    with contextlib.suppress(ReachedError):
        fit(model, [FirstBatch()], batches=3)


def bytes_read() -> int:
    """Return how many bytes this process has read from files so far; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def resume(model: Any, repeat: int, folder: Path) -> dict[str, Any]:
    """Time resumes in the middle of an epoch beside restoring the same checkpoint."""
    fit(model, [SavesInside(folder, monitor="loss", save_freq=2)], batches=3)
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        newest = store.latest()
    assert newest is not None
    subjects: dict[str, Callable[[Any, Path], None]] = {"store.restore": restored, "resume": resumed}
    seconds: Seconds = {name: [] for name in subjects}
    read: dict[str, Any] = {}
    for turn in range(repeat + 1):
        for name in list(subjects) if turn % 2 else reversed(subjects):
            before, began = bytes_read(), time.perf_counter()
            subjects[name](model, folder)
            if turn:  # the first of each fills caches
                seconds[name].append(time.perf_counter() - began)
                read[name] = {"read_of_payload": (bytes_read() - before) / newest.nbytes}
    return {"seconds": seconds, **read}


# --- batches ---------------------------------------------------------------------------------------------


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Takes the time of an epoch's batches."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.began


def batches(model: Any, repeat: int, folder: Path) -> dict[str, Any]:
    """Time batches of a fit whose callback has nothing to save, beside Keras' own callback and none at all."""

    def callbacks(name: str) -> list[Any]:
        if name == "StoreCheckpoint":
            return [
                ckptstore.StoreCheckpoint(folder / "fit", monitor="loss", save_freq=NEVER, resume="never")
            ]
        if name == "keras ModelCheckpoint":
            return [keras.callbacks.ModelCheckpoint(str(folder / "never.keras"), save_freq=NEVER)]
        return []

    seconds: Seconds = {name: [] for name in ("plain fit", "keras ModelCheckpoint", "StoreCheckpoint")}
    for turn in range(repeat + 1):
        for name in list(seconds) if turn % 2 else reversed(seconds):
            clock = Clock()
            fit(model, [clock, *callbacks(name)], batches=BATCHES)
            if turn:  # the first compiles
                seconds[name].append(clock.seconds / BATCHES)
    return {"seconds": seconds}


def main() -> None:
    """Measure one part."""
    part, layers, width, repeat, folder = sys.argv[1:]
    model = build(int(layers), int(width))
    variables = [*model.variables, *model.optimizer.variables]
    facts = {
        "variables": len(variables),
        "state_bytes": sum(bench_subjects.host_array(v).nbytes for v in variables),
    }
    found = {"capture": capture, "resume": resume, "batches": batches}[part](model, int(repeat), Path(folder))
    print(json.dumps({"facts": facts, **found}))


if __name__ == "__main__":
    main()
