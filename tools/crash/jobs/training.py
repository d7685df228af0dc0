"""One process of a training, forked from a server that has imported everything."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from ckptstore.commit.joined_save import JoinedSave
from ckptstore.commit.led_save import LedSave
from ckptstore.commit.request import SaveRequest
from ckptstore.distributed.session import JobSession
from ckptstore.formats.snapshot import Snapshot
from ckptstore.records import Checkpoint
from crash.invariants import Saved
from crash.jobs.disturbance import Action, Disturbance
from crash.jobs.planted import plant
from crash.jobs.points import Points

EPOCHS, BATCHES, BATCH, FEATURES = 2, 6, 8, 8
SAVE_FREQ = 3
# The save at whose steps a process is disturbed: one is there before it, and others follow.
DISTURBED_SAVE = 2
HEARTBEAT_S = 30
# In 0.4.38, programs from JAX' cache corrupt the memory of the process; this version was seen to work.
_COMPILED_SINCE = (0, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training, as one of its processes carries it out.

    Attributes:
        folder: Where each process leaves its reports.
        compiled: Where programs are kept for all trainings.
        store: The store.
        port: Of the coordinator.
        processes: Their number; one is not connected.
        limit_s: The limit for the steps of a save, in seconds.
        victim: The process that is disturbed.
        action: What disturbs it.
        point: The step at which that happens, as `Points` labels it.
        fault: A planted fault.
        pace_s: Seconds that each step takes at least.
        epochs: To how many it trains.
        layout: ``"2d"`` for variables that are divided between processes, or ``"data"``.
    """

    folder: Path
    compiled: Path
    store: Path
    port: int = 0
    processes: int = 2
    limit_s: float = 10.0
    victim: int = -1
    action: Action = "record"
    point: str = ""
    fault: str = ""
    pace_s: float = 0.0
    epochs: int = EPOCHS
    layout: str = "2d"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of one process's training, as it reports it; JSON."""

    error: tuple[str, str] | None = None
    digest: str = ""
    history: dict[str, list[float]] | None = None
    resumed: int | None = None
    began_with: str = ""


def work(rank: int, plan: Plan) -> None:
    """Train, report, and wait to be killed."""
    log = os.open(plan.folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        end = _train(rank, plan)
    except BaseException as error:
        traceback.print_exc()
        end = End(error=(type(error).__name__, str(error)))
    sys.stderr.flush()
    report = plan.folder / f"{rank}.end"
    report.with_suffix(".tmp").write_text(json.dumps(asdict(end)))
    report.with_suffix(".tmp").rename(report)
    time.sleep(600)  # its service is that of the others


def _train(rank: int, plan: Plan) -> End:
    import jax
    import keras

    import ckptstore

    jax.config.update("jax_platforms", "cpu")
    _keep_compiled(plan.compiled / f"{plan.layout}-{plan.processes}-{rank}")
    plant(plan.fault)
    _limit_saves(plan.limit_s)
    _record_claims(plan.folder / f"{rank}.claims")
    if plan.processes > 1:
        connect = jax.distributed.initialize
        limits = {"heartbeat_timeout_seconds": HEARTBEAT_S}
        known = {name: limits[name] for name in limits if name in signature(connect).parameters}
        connect(f"127.0.0.1:{plan.port}", plan.processes, rank, **known)
    model = made_model(plan.layout)
    callback = ckptstore.StoreCheckpoint(plan.store, "loss", save_freq=SAVE_FREQ, run="default")
    began: list[str] = []
    note = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs=None: began.append(
            "" if callback.resumed_from is None else values_of(model, plan.folder / f"{rank}.npz")
        ),
        on_train_batch_end=lambda batch, logs=None: time.sleep(plan.pace_s),
    )
    (plan.folder / f"{rank}.ready").touch()
    points = Points(DISTURBED_SAVE, Disturbance(plan.action, plan.point, plan.folder / f"{rank}.points"))
    with points.installed() if rank == plan.victim else nullcontext():
        history = model.fit(
            share_of_data(rank),
            epochs=plan.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[callback, note],
        )
    return End(
        digest=values_of(model),
        history=history.history,
        resumed=None if callback.resumed_from is None else callback.resumed_from.step,
        began_with=began[0],
    )


def _keep_compiled(folder: Path) -> None:
    """Compile each program once for all trainings; JAX would keep only those of process 0."""
    import jax

    if jax.__version_info__ < _COMPILED_SINCE:
        return
    from jax._src import compiler, distributed

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    write = getattr(compiler, "_cache_write", None)
    if write is None:
        return

    def write_any(*arguments: Any) -> None:
        state = distributed.global_state
        rank, state.process_id = state.process_id, 0
        try:
            write(*arguments)
        finally:
            state.process_id = rank

    compiler._cache_write = write_any


def made_model(layout: str) -> Any:
    """Return a compiled model, laid out over all devices."""
    import keras

    devices = keras.distribution.list_devices()
    if layout == "data" or len(devices) == 1:
        distribution: Any = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    else:
        mesh = keras.distribution.DeviceMesh((len(devices), 1), ["batch", "model"], devices)
        rules = keras.distribution.LayoutMap(mesh)
        rules[".*kernel"] = ("batch", "model")
        distribution = keras.distribution.ModelParallel(
            layout_map=rules, batch_dim_name="batch", auto_shard_dataset=False
        )
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dropout(0.25), keras.layers.Dense(4, name="dense")]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def share_of_data(rank: int) -> Any:
    """Return a process's share of each batch."""
    import keras

    rng = np.random.default_rng(rank)
    x = rng.normal(size=(BATCHES, BATCH, FEATURES)).astype("float32")
    y = rng.normal(size=(BATCHES, BATCH, 4)).astype("float32")

    class Share(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return BATCHES

        def __getitem__(self, index: int) -> Any:
            return x[index], y[index]

    return Share()


def values_of(model: Any, path: Path | None = None) -> str:
    """Return a digest of the values that this process holds; write them to a file, with where they lie, too."""
    found, arrays = hashlib.sha256(), dict[str, Any]()
    for variable in (*model.variables, *model.optimizer.variables):
        for shard in variable.value.addressable_shards:
            data = np.asarray(shard.data)
            found.update(data.tobytes())
            where = [
                [one.start or 0, one.stop or size]
                for one, size in zip(shard.index, variable.shape, strict=True)
            ]
            arrays[json.dumps([variable.path, list(variable.shape), where])] = data
    if path is not None:
        with path.open("wb") as file:
            np.savez(file, **arrays)
    return found.hexdigest()


def _limit_saves(limit_s: float) -> None:
    begin = JobSession.__init__

    def begin_limited(session: JobSession, *arguments: Any, **options: Any) -> None:
        begin(session, *arguments, **{**options, "save_limit_s": limit_s})

    JobSession.__init__ = begin_limited  # type: ignore[method-assign, assignment]


def _record_claims(path: Path) -> None:
    """Write each checkpoint that this process has been told of to a file outside the store, at once."""
    committed, join = LedSave.committed, JoinedSave.save
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def claim(checkpoint: Checkpoint) -> None:
        saved = Saved(version=checkpoint.version, digest=checkpoint.digest, epoch=checkpoint.epoch)
        os.write(descriptor, f"{json.dumps(asdict(saved))}\n".encode())

    def committed_claimed(led: LedSave, checkpoint: Checkpoint) -> None:
        committed(led, checkpoint)
        claim(checkpoint)

    def join_claimed(joined: JoinedSave, snapshot: Snapshot, request: SaveRequest) -> Checkpoint:
        checkpoint = join(joined, snapshot, request)
        claim(checkpoint)
        return checkpoint

    LedSave.committed = committed_claimed  # type: ignore[method-assign, assignment]
    JoinedSave.save = join_claimed  # type: ignore[method-assign, assignment]
