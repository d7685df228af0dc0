"""Restores of what a job has saved: by all its processes on the same layout, and by one process with one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ckptstore
from bench import process_cost, workloads
from bench.job_subjects import tree_of
from bench.workloads import Workload

Result = dict[str, Any]
# Times that each subject restores, in turns.
ROUNDS = 3


def arrays_of(state: Any) -> list[Any]:
    """Return the arrays of a train step's state that all subjects save: all but the metrics, which are the last."""
    import jax

    return list(jax.tree.leaves(state[:3]))


def digests(state: Any) -> list[list[Any]]:
    """Return number of the array, bounds and digest of each distinct part of a state that this process holds."""
    found = []
    for number, array in enumerate(arrays_of(state)):
        parts = {str(bounds(shard.index, array.shape)): shard for shard in array.addressable_shards}
        for shard in parts.values():
            found.append([number, bounds(shard.index, array.shape), workloads.digest([shard.data])])
    return found


def bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[list[int]]:
    """Return the first index, and the one after the last, of a part in each dimension."""
    return [list(part.indices(size)[:2]) for part, size in zip(index, shape, strict=True)]


def check(name: str, values: list[Any], expected: list[list[Any]]) -> None:
    """Refuse values that are not those that were saved."""
    import numpy as np

    known: dict[tuple[int, str], Any] = {}
    for number, array in enumerate(values):
        for shard in array.addressable_shards:
            known[number, str(bounds(shard.index, array.shape))] = shard.data
    for number, place, digest in expected:
        part = known.get((number, str(place)))
        if part is None:
            part = np.asarray(values[number])[tuple(slice(*pair) for pair in place)]
        assert workloads.digest([part]) == digest, f"{name}: what was restored is not what was saved"


def restorer(name: str, folder: Path, saved: Any) -> Callable[[Any], list[Any]]:
    """Return a function that restores into a model, laid out as it is, and returns the restored values."""
    if name == "ours background":
        return lambda model: _ours(model, folder, saved)
    if name == "orbax background":
        return lambda model: _keras(model, folder)
    return lambda model: _orbax(model, folder, saved)


def _ours(model: Any, folder: Path, version: int) -> list[Any]:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        store.restore(version, model)
    return _values(model)


def _keras(model: Any, folder: Path) -> list[Any]:
    model.load_weights(str(folder))
    return _values(model)


def _orbax(model: Any, folder: Path, step: int) -> list[Any]:
    import jax
    from orbax import checkpoint

    wanted = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding)
        for name, value in tree_of(model).items()
    }
    with checkpoint.CheckpointManager(folder) as manager:
        found = manager.restore(step, args=checkpoint.args.StandardRestore(wanted))
    # They are not assigned to the model: that is left out, in its favour.
    return [found[name] for name in wanted]


def _values(model: Any) -> list[Any]:
    return [variable.value for variable in workloads.variables(model)]


def _measured(name: str, model: Any, folder: Path, saved: Any) -> tuple[Result, list[Any]]:
    import jax

    restore = restorer(name, folder / name.replace(" ", "-"), saved)
    process_cost.reset_peak()
    resident, cpu = process_cost.resident_bytes(), process_cost.cpu_s()
    began = time.perf_counter()
    values = restore(model)
    jax.block_until_ready(values)
    cost = {
        "restore_s": time.perf_counter() - began,
        "cpu_s": process_cost.cpu_s() - cpu,
        "extra_bytes": max(0, process_cost.peak_bytes() - resident),
    }
    return cost, values


def _in_turns(
    model: Any,
    folder: Path,
    saved: Mapping[str, Any],
    expected: Mapping[str, list[Any]],
    begin: Callable[[str], object] = lambda name: None,
) -> Result:
    """Restore in turns; returns the cost of each restore by subject, and the errors of those that failed."""
    costs: dict[str, list[Result]] = {name: [] for name in saved}
    errors: dict[str, str] = {}
    for turn in range(ROUNDS):
        for name in saved:
            begin(f"{turn} {name}")
            if name in errors:
                continue
            try:
                cost, values = _measured(name, model, folder, saved[name])
                check(name, values, expected[name])
                costs[name].append(cost)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            values = []
    return {"costs": costs, "errors": errors}


def measure_together(
    folder: Path, model: Any, saved: Mapping[str, Any], expected: Mapping[str, list[Any]]
) -> Result:
    """Restore in turns, as one of the processes that saved; all begin each restore together."""
    from jax.experimental import multihost_utils

    return _in_turns(model, folder, saved, expected, multihost_utils.sync_global_devices)


def measure_alone(workload: Workload, folder: Path, noted: list[Result]) -> Result:
    """Restore in turns, as one process with one device.

    Args:
        workload: The workload.
        folder: The folder of the job.
        noted: What each process has noted of what was saved.
    """
    model = workloads.build(workload, distributed=False)
    expected = {
        name: [part for process in noted for part in process["digests"][name]] for name in noted[0]["saved"]
    }
    return _in_turns(model, folder, noted[0]["saved"], expected)
