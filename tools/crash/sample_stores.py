"""Small snapshots without Keras, saved into stores, for tests of everything below Keras."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ckptstore.commit.committer import Committer
from ckptstore.commit.request import SaveRequest
from ckptstore.formats.registry import by_name
from ckptstore.formats.sharded.grid import whole
from ckptstore.formats.sharded.shards import ShardedVariable, Shards
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.records import Checkpoint, Format
from ckptstore.store.store import CheckpointStore


def values_of(seed: int) -> dict[str, np.ndarray]:
    """Return the variables of the snapshot of a seed."""
    generator = np.random.default_rng(seed)
    return {
        "layers/dense/vars/0": generator.normal(size=(7, 5)).astype("float32"),
        "layers/dense/vars/1": generator.normal(size=(5,)).astype("float32"),
        "optimizer/vars/0": np.array(seed, "int64"),
    }


def snapshot_of(seed: int, *, format: Format = "keras", state: bool = True) -> Snapshot:
    """Return a snapshot whose every byte follows from `seed`."""
    variables = tuple(
        Variable(path=path, shape=value.shape, dtype=value.dtype, read=partial(np.asarray, value))
        for path, value in values_of(seed).items()
    )
    documents = {"metadata.json": b"{}", "config.json": b'{"seed": %d}' % seed}
    return Snapshot(
        format=format,
        variables=variables,
        attributes={"layers/dense/vars": {"name": "dense"}},
        documents=documents if by_name(format).has_documents else {},
        state=TrainingState(document={"seed": seed}, arrays={"seed": np.array([seed])}) if state else None,
    )


def shards_of(seed: int, *, processes: int) -> list[Snapshot]:
    """Return the snapshot of a seed as each process of a job has it: every variable is owned by one of them."""
    whole_one = snapshot_of(seed, format="sharded")
    variables = tuple(
        ShardedVariable(path=one.path, dtype=one.dtype, grid=whole(one.shape, owner=position % processes))
        for position, one in enumerate(whole_one.variables)
    )
    return [
        replace(
            whole_one,
            variables=whole_one.variables[process::processes],
            shards=Shards(variables=variables, process=process, processes=processes),
        )
        for process in range(processes)
    ]


def committer_of(store: CheckpointStore) -> Committer:
    """Return the committer of an open store, which takes snapshots; `CheckpointStore.save` takes models only."""
    return store._committer


def save(store: CheckpointStore, seed: int, *, run: str = "default", **request: object) -> Checkpoint:
    """Save the snapshot of `seed` at epoch `seed`."""
    format = request.pop("format", "keras")
    state = request.pop("state", True)
    request.setdefault("metrics", {"loss": float(seed)})
    store.claim(run)
    return committer_of(store).commit(
        snapshot_of(seed, format=format, state=state),  # type: ignore[arg-type]
        SaveRequest(run=run, epoch=seed, **request),  # type: ignore[arg-type]
    )


def is_seed(path: Path, seed: int) -> bool:
    """Return True if a payload holds the snapshot of `seed`, byte for byte."""
    from ckptstore.formats import payload

    with payload.open_variables(path) as variables:
        expected = values_of(seed)
        return set(variables) == set(expected) and all(
            variables[name].dtype == value.dtype and variables[name].tobytes() == value.tobytes()
            for name, value in expected.items()
        )
