"""Models that several processes of JAX share: saved, restored, and trained on; run by `process_groups`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ckptstore.errors import CheckpointStoreError
from ckptstore.formats import payload
from ckptstore.formats.sharded.shards import member_of
from ckptstore.records import Checkpoint
from ckptstore.storage.payloads.at import payload_of
from shared_models import checkpoint_at, digest, in_turn, said, save

LAYOUTS: dict[str, Any] = {
    "data": None,
    "columns": ((8,), (None, "model")),
    "both": ((2, 4), ("batch", "model")),
}


def distribution(name: str) -> Any:
    import jax
    import keras

    devices = keras.distribution.list_devices("cpu")
    if LAYOUTS[name] is None:
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    shape, kernel = LAYOUTS[name]
    assert len(devices) == 8 == jax.device_count()
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model")[-len(shape) :], devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*/first/kernel"] = kernel
    layout[".*/first/bias"] = (kernel[1],)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name=mesh.axis_names[0], auto_shard_dataset=False
    )


def own_layer() -> Any:
    """Return a layer with saving and loading code of its own."""
    import keras

    @keras.saving.register_keras_serializable(package="shared_jax_models")
    class Scaled(keras.layers.Layer):
        fails = False

        def build(self, input_shape: Any) -> None:
            self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.scale

        def save_own_variables(self, store: Any) -> None:
            store["mine"] = self.scale

        def load_own_variables(self, store: Any) -> None:
            self.scale.assign(store["mine"])
            if self.fails:
                raise ValueError("will not have it")

    return Scaled(name="scaled")


def made(name: str, seed: int, *, rank: int | None = None) -> Any:
    """Return a model, trained for an epoch by a process's number; without one its optimizer is not built."""
    import keras

    keras.backend.clear_session()  # forgets the distribution too
    keras.distribution.set_distribution(None if name == "alone" else distribution(name))
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(64, name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            own_layer(),
            keras.layers.Dense(8, name="last", dtype="bfloat16"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    if rank is not None:
        train(model, rank)
    return model


def train(model: Any, rank: int) -> None:
    """Train for an epoch with this process's share of the data."""
    import jax

    data = np.random.default_rng(0).random((32, 8), np.float32)
    processes = jax.process_count()
    share = data[rank * len(data) // processes : (rank + 1) * len(data) // processes]
    model.fit(share, share, batch_size=16 // processes, verbose=0)


def state_of(model: Any) -> list[Any]:
    """Return the sharding of each variable but the metrics', and a digest of what this process holds of it."""
    found = []
    for variable in [*model.variables, *model.optimizer.variables]:
        value = variable.value
        shards = [np.asarray(shard.data) for shard in value.addressable_shards]
        found.append([variable.path, str(value.sharding.spec), digest(shards)])
    return found


def equals(model: Any, checkpoint: Checkpoint) -> int:
    """Compare what this process holds of a model with a payload; return the number of variables."""
    from ckptstore.keras.private import capture_model

    entries = capture_model(model).entries
    with payload.open_payload(payload_of(checkpoint)) as found:
        variables = found.variables()
        for entry in entries:
            whole = variables[entry.path]
            for shard in entry.value.value.addressable_shards:
                assert np.asarray(shard.data).tobytes() == whole[shard.index].tobytes(), entry.path
    return len(entries)


def raised(action: Callable[[], Any]) -> list[str]:
    try:
        action()
    except CheckpointStoreError as error:
        return [type(error).__name__, str(error)]
    return []


# --- what is run -----------------------------------------------------------------------------------


def save_and_resume(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Save with each layout; restore into other models of the same layout, and train on."""
    import keras

    from ckptstore.keras.model.adapter import adapter
    from ckptstore.keras.private import find_job

    found: dict[str, Any] = {"layouts": {}}
    for name in ("data", "both"):
        model = made(name, 1, rank=rank)
        snapshots = adapter.snapshots(find_job("jax"))
        with in_turn(folder, f"taken-{name}", rank):
            snapshot = snapshots.take(model, format="sharded")
            copies = [np.empty(variable.shape, variable.dtype) for variable in snapshot.variables]
            snapshot.copy(copies)
            for read in (snapshot.values(), (variable.read() for variable in snapshot.variables)):
                assert digest(read) == digest(copies)
            split = [one.value for one in model.variables if not one.value.is_fully_replicated]
            assert all(array._npy_value is None for array in split)
            assert snapshots.take(model, format="sharded").shards is snapshot.shards
        checkpoint = save(snapshot, folder / name)
        before = state_of(model)
        train(model, rank)
        after = state_of(model)
        other = made(name, 2, rank=rank)
        with in_turn(folder, f"restored-{name}", rank):
            warned = said(adapter.restore, other, checkpoint, generators=True)
        same = state_of(other) == before
        train(other, rank)
        found["layouts"][name] = {
            "owned": sum(copy.nbytes for copy in copies),
            "whole": sum(variable.value.nbytes for variable in [*model.weights, *model.optimizer.variables]),
            "same": same,
            "exact": state_of(other) == after != before,
            "warned": warned,
            "plan": digest([repr(snapshot.shards.variables).encode()]),
        }
    before, other.get_layer("scaled").fails = state_of(other), True
    with in_turn(folder, "refused", rank):
        found["layer"] = [raised(lambda: adapter.restore(other, checkpoint)), state_of(other) == before]
    other.get_layer("scaled").fails = False
    found["damage"] = damaged(rank, folder, other, adapter)
    found["refused"] = refused(model, adapter, find_job("jax"))
    keras.distribution.set_distribution(None)
    alone = made("alone", 1)
    found["refused"].append(raised(lambda: adapter.snapshots(find_job("jax")).take(alone, format="sharded")))
    return found


def damaged(rank: int, folder: Path, model: Any, adapter: Any) -> list[Any]:
    """Restore a payload with a flipped byte in a part that process 1 alone holds."""
    checkpoint = checkpoint_at(folder / "both")
    checkpoint = replace(checkpoint, path=folder / "damaged" / "checkpoints" / checkpoint.path.name)
    if rank == 0:
        shutil.copytree(folder / "both", folder / "damaged")
        with payload.open_payload(payload_of(checkpoint)) as opened:
            path = "layers/dense/vars/0"
            part = next(part for part in opened.described.variables[path].grid.parts() if part.owner == 1)
            offset = opened.dataset(path, part)[1].offset
        file = checkpoint.path / member_of(1)
        file.chmod(0o644)
        data = bytearray(file.read_bytes())
        data[offset] ^= 1
        file.write_bytes(data)
    before = state_of(model)
    with in_turn(folder, "damaged", rank):
        error = raised(lambda: adapter.restore(model, checkpoint))
    return [error, state_of(model) == before]


def refused(model: Any, adapter: Any, job: Any) -> list[list[str]]:
    """Return the errors of what is not supported, each raised by this process alone."""
    import keras

    from ckptstore.keras.state.arrays import host_array

    tuned = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="tuned")])
    tuned.layers[0].enable_lora(2)
    tuned.compile("sgd", "mse")
    return [
        raised(lambda: adapter.snapshots().take(model, format="sharded")),
        raised(lambda: adapter.snapshots(job).take(model, format="keras")),
        raised(lambda: host_array(model.layers[0].kernel)),
        raised(lambda: adapter.snapshots(job).take(tuned, format="sharded")),
    ]


def restore_elsewhere(rank: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Restore what another number of processes has saved, with other layouts; then save and restore again."""
    from ckptstore.keras.model.adapter import adapter
    from ckptstore.keras.private import find_job

    found: dict[str, Any] = {}
    stores = {name: Path(path) for name, path in json.loads((folder / "stores.json").read_text()).items()}
    for saved, name in (("data", "both"), ("both", "data"), ("both", "columns")):
        model = made(name, 3)
        with in_turn(folder, f"{saved}-{name}", rank):
            checkpoint = checkpoint_at(stores[saved])
            warned = said(adapter.restore, model, checkpoint)
        found[f"{saved} to {name}"] = [equals(model, checkpoint), warned]
    for saved in ("keras", "weights", "sharded"):
        checkpoint, fresh = checkpoint_at(stores[saved]), made("both", 4)
        with in_turn(folder, f"file-{saved}", rank):
            if saved == "weights":
                warned = said(adapter.load_weights, checkpoint, fresh)
            else:
                warned = said(adapter.restore, fresh, checkpoint)
        found[saved] = [equals(fresh, checkpoint), warned]
    snapshot = adapter.snapshots(find_job("jax")).take(model, format="sharded")
    checkpoint = save(snapshot, folder / "four")
    before, other = state_of(model), made("columns", 5)
    with in_turn(folder, "four", rank):
        warned = said(adapter.restore, other, checkpoint)
    found["four"] = [state_of(other) == before, warned]
    return found
