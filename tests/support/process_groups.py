"""Runs a function in several processes that belong together, as a backend connects them.

    python process_groups.py FOLDER MODULE:FUNCTION PROCESSES

imports the backend once, forks the processes, and connects them: by jax.distributed, torch.distributed with gloo, or
TensorFlow's MultiWorkerMirroredStrategy. Each calls the function with its number, the folder, and the scope in which a
model is to be made. The output is a line of JSON for each process, with what the function has returned, and one with
the names of the files in the folder.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

BACKEND = os.environ["KERAS_BACKEND"]


def results_of(
    backend: str, folder: Path, function: str, *, processes: int = 2, devices: int = 1
) -> list[Any]:
    """Return what a function has returned in each process, and the names of the files that there are then.

    Args:
        backend: Keras' backend.
        folder: An empty folder, which the processes share.
        function: The module and the function.
        processes: The number of processes.
        devices: The devices of JAX that each has.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, folder, function, str(processes)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _connect(rank: int, ports: list[int]) -> Any:
    """Connect this process with the others; return what the model is to be made in."""
    from contextlib import nullcontext

    if BACKEND == "jax":
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # the default since JAX 0.5
        jax.distributed.initialize(f"127.0.0.1:{ports[0]}", len(ports), rank)
    elif BACKEND == "torch":
        import torch

        address = f"tcp://127.0.0.1:{ports[0]}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=len(ports))
    else:
        workers = [f"127.0.0.1:{port}" for port in ports]
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
        os.environ["TF_CONFIG"] = json.dumps(cluster)
        import tensorflow as tf

        return tf.distribute.MultiWorkerMirroredStrategy().scope()
    return nullcontext()


def _child(rank: int, ports: list[int], folder: Path, function: str) -> None:
    result = folder / f"{rank}.json"
    try:
        module, _, name = function.partition(":")
        found = getattr(import_module(module), name)(rank, folder, _connect(rank, ports))
    except BaseException:
        found = {"error": traceback.format_exc()}
    (folder / f"{rank}.tmp").write_text(json.dumps(found))
    (folder / f"{rank}.tmp").rename(result)
    # The first is the one that the others depend on.
    others = [folder / f"{number}.json" for number in range(1, len(ports))]
    while rank == 0 and not all(other.exists() for other in others):
        time.sleep(0.02)
    os._exit(0)


def main() -> None:
    """Run the processes."""
    import keras  # noqa: F401

    import ckptstore.training.store_checkpoint  # noqa: F401

    folder, count = Path(sys.argv[1]), int(sys.argv[3])
    servers = [socket.socket() for _ in range(count)]
    for server in servers:
        server.bind(("127.0.0.1", 0))
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    children = []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            os.dup2(2, 1)
            _child(rank, ports, folder, sys.argv[2])
    for child in children:
        os.waitpid(child, 0)
    for rank in range(count):
        print((folder / f"{rank}.json").read_text())
    print(json.dumps(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    main()
