"""The training that `unattended` disturbs: dropout, shuffled batches, a validation, saves every few batches.

It does what a mark in its folder asks for, once: it hangs, raises, meets a NaN, stays in a batch, or takes all memory.
What it did is written to a journal outside the store; the end is written to a file of results, exact to the bit.

    python -m crash.unattended_training FOLDER STORE EPOCHS
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ckptstore import StoreCheckpoint, keep_last
from crash.training_processes import STEPS_PER_EPOCH

SAVE_EVERY = 5
# Seconds of the batch that outlives every grace period.
LONG_BATCH_S = 60.0
_BATCH_SIZE = 8


class Marks:
    """Marks that ask for a disturbance, and the journal of what was done.

    Args:
        folder: The folder of both.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = os.open(folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def write(self, what: str) -> None:
        """Write to the journal what is about to be done."""
        facts = {"what": what, "pid": os.getpid(), "start": os.environ.get("CKPTSTORE_SUPERVISOR", "")}
        os.write(self._journal, f"{json.dumps(facts)}\n".encode())

    def take(self, name: str) -> bool:
        """Return True, once, if a mark is there."""
        path = self._folder / name
        if not path.exists():
            return False
        path.unlink()
        self.write(name)
        return True

    def pace_s(self) -> float:
        """Seconds to spend in each batch."""
        path = self._folder / "pace"
        return float(path.read_text()) if path.exists() else 0.0


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches that are made from their number, and may fail or hold a NaN once."""

    def __init__(self, marks: Marks | None, seed: int) -> None:
        super().__init__()
        self._marks, self._seed = marks, seed

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if self._marks is not None and self._marks.take("exception in the data"):
            raise ValueError(f"batch {index} cannot be decoded")
        drawn = np.random.default_rng((self._seed, index))
        inputs = drawn.normal(size=(_BATCH_SIZE, 8)).astype("float32")
        targets = inputs.sum(axis=1, keepdims=True)
        if self._marks is not None and self._marks.take("NaN"):
            targets[:] = np.nan  # of an input that is none, a fused ReLU of TensorFlow makes 0
        return inputs, targets


class Disturbed(keras.callbacks.Callback):  # type: ignore[misc]
    """Does in a batch what a mark asks for."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._marks, self._batches = marks, 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        """Look for marks."""
        if self._batches == SAVE_EVERY + 1:
            self._marks.write("training")
        self._batches += 1
        time.sleep(self._marks.pace_s())
        if self._marks.take("deadlock"):
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        if self._marks.take("long batch"):
            time.sleep(LONG_BATCH_S)
        if self._marks.take("out of memory"):
            taken = []
            while True:
                taken.append(np.ones(1 << 23))


def _model() -> Any:
    layers = keras.layers
    model = keras.Sequential([
        layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dropout(0.3), layers.Dense(1)
    ])  # fmt: skip
    model.compile("adam", "mse", metrics=["mae"])
    return model


def _digest(variables: Any) -> str:
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.asarray(variable).tobytes())
    return digest.hexdigest()


def main() -> None:
    folder, store, epochs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    marks = Marks(folder)
    alone = os.open(folder / "alone", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        marks.write("a second training")
    marks.write("start")
    keras.utils.set_random_seed(7)
    model = _model()
    saved = StoreCheckpoint(store, save_freq=SAVE_EVERY, keep=keep_last(3), on_bad_loss="stop")
    history = model.fit(
        Batches(marks, seed=1),
        epochs=epochs,
        validation_data=Batches(None, seed=2),
        verbose=0,
        callbacks=[saved, Disturbed(marks)],
    )
    result = {
        "weights": _digest(model.variables),
        "optimizer": _digest(model.optimizer.variables),
        "history": {
            name: [float(value).hex() for value in values] for name, values in history.history.items()
        },
    }
    (folder / "result.new").write_text(json.dumps(result))
    (folder / "result.new").replace(folder / "result")
    marks.write("end")


if __name__ == "__main__":
    main()
