"""Fits of two processes that do not see equally many batches, as users write them.

    python unequal_fits.py FOLDER

imports the backend once, and forks two processes for each case, which train together into a store of the case's name.
Each leaves the interpreter as a script does, so that JAX's own wait at the exit is part of it. The output is JSON: of
each process the exit code, None if it had to be killed, and what it has printed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCHES, BATCH = 4, 8
# For both processes of each case the batches of a training of one epoch, whose number Keras cannot know, and of a
# validation; or after which batch one of them sets `stop_training`, or fails: process, epoch, batch.
CASES: dict[str, dict[str, Any]] = {
    "equal": {"validation": (2, 2)},
    "1 has a batch more": {"training": (4, 5)},
    "0 validates on a batch more": {"training": (4, 4), "validation": (3, 2)},
    "1 stops": {"stops": (1, 1, 1)},
    "1 fails": {"fails": (1, 1, 1)},
}
# JAX's own end of a process comes after 100 to 300 s.
LIMIT_S = 90.0


def endless(rank: int) -> Iterator[Any]:
    """Yield this process's share of batch after batch."""
    rng = np.random.default_rng(rank)
    while True:
        yield rng.normal(size=(BATCH, 8)).astype("float32"), rng.normal(size=(BATCH, 4)).astype("float32")


def some(rank: int, batches: int) -> Iterator[Any]:
    """Yield so many; Keras cannot know how many."""
    source = endless(rank)
    for _ in range(batches):
        yield next(source)


def train(rank: int, case: str, store: Path) -> None:
    """Run one process's part of a fit."""
    import keras

    import ckptstore
    from ckptstore.training.job import leaving

    leaving.STUCK_S = 1.0
    chosen = CASES[case]
    devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse", steps_per_execution=4 if case == "equal" else 1)

    class Acts(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            here = (rank, self.epoch, batch)
            if here == chosen.get("stops"):
                self.model.stop_training = True
            if here == chosen.get("fails"):
                raise ZeroDivisionError("its own fault")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if case == "equal" and rank == epoch == 0:
                time.sleep(2.5)

    fit: dict[str, Any] = {"x": endless(rank), "epochs": 2, "steps_per_epoch": BATCHES}
    if "training" in chosen:
        fit = {"x": some(rank, chosen["training"][rank])}
    if "validation" in chosen:
        fit["validation_data"] = some(rank, chosen["validation"][rank])
    if case == "equal":
        fit["steps_per_epoch"] = 6
    callback = ckptstore.StoreCheckpoint(store, "loss", save_freq="epoch")
    model.fit(**fit, verbose=0, callbacks=[callback, Acts()])


def _child(rank: int, port: int, case: str, folder: Path) -> None:
    import jax

    log = os.open(_log(folder, case, rank), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    train(rank, case, folder / case)


def _log(folder: Path, case: str, rank: int) -> Path:
    return folder / f"{case}.{rank}.log"


def _ends(children: list[int]) -> list[int | None]:
    found: dict[int, int | None] = {}
    give_up = time.monotonic() + LIMIT_S
    while len(found) < len(children) and time.monotonic() < give_up:
        for child in children:
            pid, status = (0, 0) if child in found else os.waitpid(child, os.WNOHANG)
            if pid:
                found[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    for child in children:
        if child not in found:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return [found.get(child) for child in children]


def main() -> None:
    """Run the cases, all at a time."""
    import jax  # noqa: F401
    import keras  # noqa: F401

    import ckptstore.training.store_checkpoint  # noqa: F401

    folder = Path(sys.argv[1])
    children = []
    for case in CASES:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        for rank in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                return _child(rank, port, case, folder)
    ends = iter(_ends(children))
    found = {
        case: [
            {"code": next(ends), "log": _log(folder, case, rank).read_text(errors="replace")}
            for rank in range(2)
        ]
        for case in CASES
    }
    print(json.dumps(found))
    return None


if __name__ == "__main__":
    main()
