"""Trains in two processes that belong together; prints how each of its attempts to save ended.

    python process_groups.py FOLDER

imports the backend once, forks two processes, and connects them as the backend does: jax.distributed, torch.distributed
with gloo, or TensorFlow's MultiWorkerMirroredStrategy. The output is a line of JSON for each process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

BACKEND = os.environ["KERAS_BACKEND"]


def attempts_of(backend: str, folder: Path) -> list[dict[str, Any]]:
    """Return what the attempts came to, of each process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _connect(rank: int, ports: list[int]) -> Any:
    """Connect this process with the other; return what the model is to be made in."""
    from contextlib import nullcontext

    if BACKEND == "jax":
        import jax

        jax.distributed.initialize(f"127.0.0.1:{ports[0]}", 2, rank)
    elif BACKEND == "torch":
        import torch

        address = f"tcp://127.0.0.1:{ports[0]}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    else:
        workers = [f"127.0.0.1:{port}" for port in ports]
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
        import tensorflow as tf

        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    return nullcontext()


def _attempt(rank: int, ports: list[int], folder: Path) -> dict[str, Any]:
    import keras
    import numpy as np

    import ckptstore

    with _connect(rank, ports):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
    callbacks = {
        "StoreCheckpoint": lambda: ckptstore.StoreCheckpoint(folder / "store"),
        "ModelCheckpoint": lambda: ckptstore.ModelCheckpoint(folder / "models" / "best.keras"),
        "BackupAndRestore": lambda: ckptstore.BackupAndRestore(folder / "backup"),
    }
    data = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    found: dict[str, Any] = {}

    def attempt(name: str, action: Any) -> None:
        began = time.monotonic()
        try:
            action()
            error = None
        except Exception as raised:
            error = [type(raised).__name__, str(raised), getattr(raised, "process", None)]
        found[name] = [error, time.monotonic() - began]

    def train(callback: Any) -> None:
        if BACKEND == "tensorflow":
            # Keras' own fit fails there before it calls a callback, with or without one; other loops call them.
            keras.callbacks.CallbackList([callback], model=model).on_train_begin()
        model.fit(*data, verbose=0, batch_size=4, callbacks=[callback])

    for name, made in callbacks.items():
        attempt(name, lambda made=made: train(made()))
    if rank == 0:
        # The other process takes no part in these.
        attempt("alone", lambda: train(callbacks["StoreCheckpoint"]()))
        with ckptstore.CheckpointStore(folder / "by-hand") as store:
            attempt("save", lambda: store.save(model, epoch=0))
    return found


def _child(rank: int, ports: list[int], folder: Path) -> None:
    result = folder / f"{rank}.json"
    try:
        found = _attempt(rank, ports, folder)
    except BaseException:
        found = {"error": traceback.format_exc()}
    (folder / f"{rank}.tmp").write_text(json.dumps(found))
    (folder / f"{rank}.tmp").rename(result)
    # The first is the one that the other depends on.
    while rank == 0 and not (folder / "1.json").exists():
        time.sleep(0.02)
    os._exit(0)


def main() -> None:
    """Run both processes."""
    import keras  # noqa: F401

    import ckptstore.training.store_checkpoint  # noqa: F401

    folder = Path(sys.argv[1])
    servers = [socket.socket() for _ in range(2)]
    for server in servers:
        server.bind(("127.0.0.1", 0))
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.dup2(2, 1)
            _child(rank, ports, folder)
    for child in children:
        os.waitpid(child, 0)
    for rank in range(2):
        print((folder / f"{rank}.json").read_text())
    print(json.dumps(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    main()
