"""Checks of arrays on eight devices of one process: a program, since JAX counts its devices when it starts.

Prints a line of JSON: for each check, what it raised, or null.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import h5py
import jax
import keras
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import ckptstore
from ckptstore.formats import payload
from ckptstore.formats.sharded.owners import Placement, plan_owners
from ckptstore.keras import private
from ckptstore.keras.model.copy import Copier
from ckptstore.keras.model.snapshots import Snapshots
from ckptstore.keras.state.arrays import host_array, host_arrays, independent_copies
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.shards import holders_of
from ckptstore.training.fingerprint import devices, fingerprint
from shared_targets import shared_targets

CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def mesh(*shape: int, first: int = 0) -> Mesh:
    chosen = np.array(jax.devices()[first : first + int(np.prod(shape))])
    return Mesh(chosen.reshape(shape), ("batch", "model")[-len(shape) :])


def placements() -> Iterator[Any]:
    """All ways to place an array of two dimensions: whole, in parts, on other meshes, in another kind of memory."""
    both = mesh(2, 4)
    specs = [
        P(),
        P("batch"),
        P(None, "model"),
        P("batch", "model"),
        P("model", "batch"),
        P(None, ("batch", "model")),
    ]
    for spec in specs:
        yield NamedSharding(both, spec)
    yield NamedSharding(mesh(8), P("model"))
    yield NamedSharding(mesh(4, first=4), P(None, "model"))
    yield NamedSharding(mesh(1), P("model"))
    yield SingleDeviceSharding(jax.devices()[3])
    if "pinned_host" in {memory.kind for memory in jax.devices()[0].addressable_memories()}:
        yield NamedSharding(both, P("batch"), memory_kind="pinned_host")


DTYPES: list[Any] = [np.float32, np.float16, np.bool_, np.int32]
DTYPES += [ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn]


def values(seed: int) -> list[Any]:
    """Small and large arrays of each dtype, placed in each way, and one that nobody has placed."""
    draw = np.random.default_rng(seed)
    found = [jax.numpy.asarray(draw.random((24, 16), np.float32))]
    for placement in placements():
        for dtype in DTYPES:
            found.append(jax.device_put(draw.integers(0, 2, (24, 16)).astype(dtype), placement))
        for dtype in (np.float32, ml_dtypes.bfloat16):
            found.append(jax.device_put(draw.random((1024, 1536), np.float32).astype(dtype), placement))
    return found


def assert_equal(targets: list[Any], arrays: list[Any]) -> None:
    for target, array in zip(targets, arrays, strict=True):
        assert target.dtype == array.dtype
        assert target.tobytes() == np.asarray(array).tobytes(), (array.shape, array.dtype, array.sharding)


@check
def every_sharding_is_copied_to_its_place() -> None:
    for make in (shared_targets, lambda arrays: [np.zeros(array.shape, array.dtype) for array in arrays]):
        arrays = values(1)
        targets = make(arrays)
        copier = Copier(arrays)
        copier.prepare(targets)
        copier(targets)
        assert_equal(targets, arrays)
        copier.values = tuple(values(2))
        copier(targets)
        assert_equal(targets, list(copier.values))


@check
def other_shardings_are_noticed() -> None:
    whole = np.arange(1 << 19, dtype="float32").reshape(512, 1024)
    copier, targets = Copier([whole]), [np.zeros_like(whole)]
    for placement in placements():
        copier.values = (jax.device_put(whole, placement),)
        copier(targets)
        assert_equal(targets, [whole])
        targets[0][...] = 0


@check
def no_whole_array_is_made_of_the_shards() -> None:
    """JAX would keep it until the array is deleted, and the state would be in memory once more."""
    arrays = values(1)
    Copier(arrays)(shared_targets(arrays))
    list(host_arrays(arrays))
    sharded = [array for array in arrays if not array.is_fully_replicated]
    assert len(sharded) > 20
    assert all(array._npy_value is None for array in sharded)


@check
def values_are_read_whole() -> None:
    arrays = values(1)
    for read in (
        list(host_arrays(arrays)),
        [host_array(array) for array in arrays],
        list(map(as_numpy, arrays)),
    ):
        assert all(array.flags.c_contiguous for array in read)
        assert_equal(read, arrays)


@check
def a_deleted_array_is_refused() -> None:
    for placement in placements():
        for shape in ((16, 16), (1024, 1024)):
            array = jax.device_put(np.ones(shape, "float32"), placement)
            copier, targets = Copier([array]), [np.zeros(shape, "float32")]
            copier(targets)
            array.delete()
            try:
                copier(targets)
            except RuntimeError as error:
                assert "deleted" in str(error)
            else:
                raise AssertionError(f"{placement} is copied after it was deleted")


@check
def a_step_may_take_the_memory_of_what_was_copied() -> None:
    """The copy holds no array, so that a step that an array was donated to writes into its memory."""
    step = jax.jit(lambda array: array + 1, donate_argnums=0)
    array = jax.device_put(np.zeros((1024, 1024), "float32"), NamedSharding(mesh(2, 4), P("batch", "model")))
    targets = [np.zeros((1024, 1024), "float32")]
    copier = Copier([array])
    for number in range(3):
        copier.values = (array,)
        copier(targets)
        assert (targets[0] == number).all()
        array = step(array)
        assert copier.values[0].is_deleted()


@check
def copies_of_arrays_on_several_meshes_are_independent() -> None:
    placed = [jax.device_put(np.full((8, 8), 2.0, "float32"), placement) for placement in placements()]
    variables = [keras.Variable(np.zeros((8, 8), "float32")) for _ in placed]
    for variable, array in zip(variables, placed, strict=True):
        variable._value = array
    copies = independent_copies(variables)
    for array in placed:
        array.delete()
    assert [float(np.asarray(copy).sum()) for copy in copies] == [128.0] * len(placed)


# --- models --------------------------------------------------------------------------------------


def distribution(*shape: int, kernel: Any = ("batch", "model")) -> Any:
    chosen = keras.distribution.list_devices("cpu")[: int(np.prod(shape))]
    devices_ = keras.distribution.DeviceMesh(shape, ("batch", "model")[: len(shape)], chosen)
    layout = keras.distribution.LayoutMap(devices_)
    layout[".*/first/kernel"] = kernel
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


def made(distributed: Any, seed: int = 1) -> Any:
    keras.backend.clear_session()  # forgets the distribution too
    keras.distribution.set_distribution(distributed)
    keras.utils.set_random_seed(seed)
    inner = [
        keras.layers.Dense(16, name="first"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
    ]
    model = keras.Sequential([keras.Input((8,)), *inner, keras.layers.Dense(8, name="last")])
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    draw = np.random.default_rng(seed).random((16, 8), np.float32)
    model.fit(draw, draw, batch_size=8, verbose=0)
    return model


def variables_of(model: Any) -> list[Any]:
    return [*model.variables, *model.optimizer.variables, *model.metrics_variables]


def bytes_of(model: Any) -> list[bytes]:
    return [np.asarray(variable.value).tobytes() for variable in variables_of(model)]


@check
def a_restore_leaves_every_variable_where_it_is() -> None:
    eight = distribution(2, 4)
    for first, second in [(eight, distribution(4, 2)), (eight, None), (None, eight)]:
        with tempfile.TemporaryDirectory() as folder, ckptstore.CheckpointStore(folder) as store:
            saved = made(first)
            store.save(saved, epoch=1)
            expected = bytes_of(saved)
            model = made(second, seed=2)
            before = [variable.value.sharding for variable in variables_of(model)]
            assert second is None or any(len(sharding.device_set) == 8 for sharding in before)
            store.restore("latest", model)
            assert bytes_of(model) == expected
            assert [variable.value.sharding for variable in variables_of(model)] == before
            made(second, seed=3)


@check
def what_a_script_has_placed_itself_stays_there() -> None:
    split, other = NamedSharding(mesh(2, 4), P("batch", "model")), SingleDeviceSharding(jax.devices()[5])
    with tempfile.TemporaryDirectory() as folder, ckptstore.CheckpointStore(folder) as store:
        model = made(None)
        kernel, bias = model.layers[0].kernel, model.layers[0].bias
        for variable, sharding in ((kernel, split), (bias, other)):
            variable.assign(jax.device_put(variable.value, sharding))
        objects = {
            "trees": {"a": jax.device_put(np.ones((8, 8), "float32"), split)},
            "key": jax.device_put(jax.random.split(jax.random.key(3), 8), NamedSharding(mesh(8), P("model"))),
            "half": jax.device_put(np.ones((8, 8), ml_dtypes.bfloat16), split),
        }
        keys = jax.random.key_data(objects["key"])
        store.save(model, epoch=1, objects=objects)
        expected = bytes_of(model)
        for variable in (kernel, bias):
            variable.assign(variable.value * 0)
        objects["trees"]["a"] = objects["trees"]["a"] * 0
        objects["half"] = objects["half"] * 0
        placed = jax.tree_util.tree_map(lambda array: array.sharding, objects)
        store.restore("latest", model, objects=objects)
        assert bytes_of(model) == expected
        assert kernel.value.sharding.is_equivalent_to(split, 2)
        assert bias.value.sharding.is_equivalent_to(other, 1)
        with private.kept_placements([kernel]):
            kernel.assign(np.ones(kernel.shape, "float32"))
            # At once: the default device need not have room for all that is spread over several.
            assert kernel.value.sharding.is_equivalent_to(split, 2)
        assert kernel._layout is None
        assert jax.tree_util.tree_map(lambda array: array.sharding, objects) == placed
        assert np.asarray(objects["trees"]["a"]).all()
        assert np.asarray(objects["half"]).all()
        assert (jax.random.key_data(objects["key"]) == keys).all()


def contents_of(path: Path) -> dict[str, Any]:
    """Return all datasets of a payload with their types, and its configuration; not when it was made."""
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith("ckptstore/"):
            found[name] = str(node.dtype), node.shape, dict(node.attrs), np.array(node).tobytes()

    with zipfile.ZipFile(path) as archive:
        # Numbers of shared objects are addresses in memory.
        config = re.sub(r'"shared_object_id": \d+', "", archive.read("config.json").decode())
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            file.visititems(visit)
    assert len(found) > 20
    return found | {"config.json": config}


@check
def a_payload_is_that_of_one_device() -> None:
    with tempfile.TemporaryDirectory() as folder, ckptstore.CheckpointStore(folder) as store:
        sharded = made(distribution(2, 4))
        arrays = [np.asarray(variable.value) for variable in variables_of(sharded)]
        there = contents_of(store.save(sharded, epoch=1).path)
        plain = made(None)
        for variable, array in zip(variables_of(plain), arrays, strict=True):
            variable.assign(array)
        assert contents_of(store.save(plain, epoch=1).path) == there


@check
def a_payload_of_shards_says_how_they_lie_and_is_read_shard_by_shard() -> None:
    with tempfile.TemporaryDirectory() as folder, ckptstore.CheckpointStore(folder) as store:
        saved = made(distribution(2, 4))
        checkpoint = store.save(saved, epoch=1, format="sharded")
        expected = bytes_of(saved)
        with payload.open_checkpoint(checkpoint) as found:
            division = found.division()
            assert division is not None and division.parts["layers/dense/vars/0"] == 1
            axes = {"batch": 2, "model": 4}
            assert division.shardings["layers/dense/vars/0"] == {"axes": axes, "spec": ["batch", "model"]}
            assert division.shardings["layers/dense/vars/1"] == {"axes": axes, "spec": [None]}
            live = next(one for one in saved.variables if one.path.endswith("first/kernel")).value
            parts = []
            for shard in live.addressable_shards:
                bounds = [part.indices(size)[:2] for part, size in zip(shard.index, live.shape, strict=True)]
                out = np.empty(shard.data.shape, live.dtype)
                found.read_region(
                    "layers/dense/vars/0", [first for first, _ in bounds], [last for _, last in bounds], out
                )
                parts.append(jax.device_put(out, shard.device))
            again = jax.make_array_from_single_device_arrays(live.shape, live.sharding, parts)
            assert np.asarray(again).tobytes() == np.asarray(live).tobytes()
        for other in (distribution(4, 2), None):
            model = made(other, seed=2)
            store.restore(checkpoint, model)
            assert bytes_of(model) == expected


@check
def the_division_is_described_again_where_a_script_has_changed_it() -> None:
    model = made(distribution(2, 4))
    snapshots = Snapshots()
    first, same = (snapshots.take(model, format="sharded", resumable=False).shards for _ in range(2))
    assert first is same and first is not None
    kernel = next(variable for variable in model.variables if variable.path.endswith("last/kernel"))
    kernel._value = jax.device_put(kernel.value, NamedSharding(mesh(2, 4), P(("batch", "model"))))
    changed = snapshots.take(model, format="sharded", resumable=False).shards
    assert changed is not None and changed is not first
    found = {variable.path: variable.sharding for variable in changed.variables}
    assert found["layers/dense_1/vars/0"] == {
        "axes": {"batch": 2, "model": 4},
        "spec": [["batch", "model"], None],
    }
    assert snapshots.take(model, format="keras", resumable=False).shards is None


@check
def owners_are_planned_from_the_live_arrays() -> None:
    array = jax.device_put(np.zeros((8, 16), np.float32), NamedSharding(mesh(2, 4), P("batch", "model")))
    copies = jax.device_put(np.zeros((8, 16), np.float32), NamedSharding(mesh(2, 4), P(None, "model")))
    scalar = jax.device_put(np.float32(1), NamedSharding(mesh(2, 4), P()))
    placements_ = [
        Placement(path=str(one.shape), shape=one.shape, itemsize=4, holders=holders_of(one))
        for one in (array, copies, scalar)
    ]
    grids = plan_owners(placements_)
    assert [grid.cuts for grid in grids] == [
        ((0, 4, 8), (0, 4, 8, 12, 16)),
        ((0, 8), (0, 4, 8, 12, 16)),
        (),
    ]
    assert all(set(grid.owners) == {0} for grid in grids)


# --- the fingerprint -------------------------------------------------------------------------------


def lines(saved: Any, live: Any) -> list[str]:
    return fingerprint.check(fingerprint.take(saved), fingerprint.take(live))


@check
def other_devices_are_one_line() -> None:
    data = keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))
    spread, parallel, fewer = made(distribution(2, 4)), made(data), made(distribution(2, 2))
    alone, columns = made(None), made(distribution(2, 4, kernel=(None, "model")))
    assert lines(spread, spread) == lines(alone, alone) == []
    for saved, live, expected in [
        (spread, fewer, "devices 8 (batch 2, model 4) -> 4 (batch 2, model 2) ("),
        (spread, alone, "devices 8 (batch 2, model 4) -> 1 ("),
        (alone, parallel, "devices 1 -> 8 (batch 8) ("),
        (spread, columns, "other variables are split over the 8 (batch 2, model 4) devices"),
    ]:
        (line,) = lines(saved, live)
        assert line.startswith(expected), line
        assert "not promised to be exact" in line
    taken = fingerprint.take(alone)
    del taken[devices.PART]  # as an earlier version wrote it
    assert fingerprint.check(taken, fingerprint.take(spread)) == []


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    assert len(jax.devices()) == 8
    outcome: dict[str, str | None] = {}
    for name, function in CHECKS.items():
        outcome[name] = None
        try:
            function()
        except Exception:
            outcome[name] = traceback.format_exc()
        finally:
            keras.distribution.set_distribution(None)
    json.dump(outcome, sys.stdout)
