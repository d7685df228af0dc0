"""One subject of the save benchmark, in a process of its own: builds the state, and saves when told to.

A line on standard input names a file and asks for one save. Each, and the start, is answered by a line of
JSON on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Save = Callable[[Path], None]


def build(layers: int, width: int) -> Any:
    """Return a compiled stack of Dense layers whose Adam has all its slots."""
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((width,)), *(keras.layers.Dense(width) for _ in range(layers))])
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        if len(variable.shape) > 1:
            variable.assign(keras.random.normal(variable.shape))
    return model


def raw_write(model: Any) -> Save:
    """Return what a durable save costs at the least: the bytes, and an fsync."""

    def save(path: Path) -> None:
        variables = [*model.variables, *model.optimizer.variables]
        with path.open("xb", buffering=0) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, sum(host_array(one).nbytes for one in variables))
            for variable in variables:
                data = memoryview(host_array(variable)).cast("B")
                while data:
                    data = data[file.write(data) :]
            os.fsync(file.fileno())

    return save


def host_array(variable: Any) -> Any:
    """Return a variable's values in host memory, without a copy where the backend allows that."""
    import keras
    import numpy as np

    return np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value))


def ours(model: Any, folder: Path, format: Any) -> Save:
    """Return a durable save into a store that is already open."""
    import ckptstore

    store = ckptstore.CheckpointStore(folder / f"store-{format}")
    epochs = iter(range(1_000_000))

    def save(path: Path) -> None:
        store.save(model, epoch=next(epochs), metrics={"loss": 0.5}, format=format)

    return save


def subject(name: str, model: Any, folder: Path) -> Save:
    """Return the save that a subject's name stands for."""
    if name == "raw write + fsync":
        return raw_write(model)
    if name == "ckptstore .keras":
        return ours(model, folder, "keras")
    if name == "ckptstore .weights.h5":
        return ours(model, folder, "weights")
    if name == "keras .keras":
        return lambda path: model.save(path.with_suffix(".keras"))
    if name == "keras .weights.h5":
        return lambda path: model.save_weights(path.with_suffix(".weights.h5"))
    raise ValueError(name)


def reset_peak() -> None:
    """Let the peak of the memory begin at what is in use now, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process in bytes; where there is no /proc, the peak for both."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def measured(save: Save, path: Path) -> dict[str, float]:
    """Save once; returns seconds and the bytes that the peak was above what was in use before."""
    reset_peak()
    before = memory("VmRSS")
    began = time.perf_counter()
    save(path)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "extra_bytes": max(0, memory("VmHWM") - before)}


def main() -> None:
    """Serve one subject until standard input ends."""
    name, layers, width, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    model = build(layers, width)
    save = subject(name, model, folder)
    variables = [*model.variables, *model.optimizer.variables]
    nbytes = sum(host_array(variable).nbytes for variable in variables)
    print(json.dumps({"state_bytes": nbytes, "variables": len(variables)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(save, folder / line.strip())), flush=True)


if __name__ == "__main__":
    main()
