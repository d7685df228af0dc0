"""Snapshots of several processes of one job, and their meeting in memory, for tests of payloads of shards."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ckptstore.formats import payload
from ckptstore.formats.payload_format import OpenPayload
from ckptstore.formats.sharded.grid import Grid, whole
from ckptstore.formats.sharded.shards import Report, Reports, ShardedVariable, Shards
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.storage.payloads.interface import PayloadRef, PayloadStore

PROCESSES = 3
NAME = "00000001-run.sharded"
DOCUMENTS = {"metadata.json": b"{}", "config.json": b'{"a": 1}', "assets/layers/words.txt": b"a\nb\n"}
ARRAYS = {
    "layers/dense/vars/0": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),
    "layers/dense/vars/1": np.arange(6, dtype=np.int16),
    "layers/größe/vars/0": np.array(17.5),
    "optimizer/vars/0": np.zeros((0, 3), np.float16),
    "optimizer/vars/1": np.arange(24, dtype=np.int64).reshape(2, 3, 4),
}
GRIDS = {
    "layers/dense/vars/0": Grid(cuts=((0, 4, 8), (0, 2, 4, 6)), owners=(0, 1, 2, 2, 1, 0)),
    "layers/dense/vars/1": Grid(cuts=((0, 2, 4, 6),), owners=(0, 1, 2)),
    "layers/größe/vars/0": whole((), owner=1),
    "optimizer/vars/0": whole((0, 3), owner=2),
    "optimizer/vars/1": Grid(cuts=((0, 2), (0, 3), (0, 1, 4)), owners=(2, 0)),
}
SHARDING = {"axes": {"batch": 2, "model": 3}, "spec": ["batch", "model"]}


class InMemoryReports:
    """Implementation of `ckptstore.formats.sharded.shards.Reports` for threads."""

    def __init__(self, processes: int = PROCESSES) -> None:
        self._processes = processes
        self._posted: list[Report] = []
        self._changed = threading.Condition()

    def post(self, report: Report) -> None:
        with self._changed:
            self._posted.append(report)
            self._changed.notify_all()

    def wait(self, limit_s: float) -> Sequence[Report]:
        def is_decided() -> bool:
            failed = any(report.written is None for report in self._posted)
            return failed or len(self._posted) == self._processes - 1

        with self._changed:
            self._changed.wait_for(is_decided, limit_s)
            return tuple(self._posted)


def state_of(process: int) -> TrainingState:
    return TrainingState(document={"process": process}, arrays={"keys": np.full(3, process)})


def snapshot_of_process(
    process: int,
    reports: Reports | None = None,
    *,
    arrays: Mapping[str, np.ndarray] = ARRAYS,
    grids: Mapping[str, Grid] = GRIDS,
    limit_s: float = 30,
) -> Snapshot:
    """Return what one process has: the parts that it owns, and its state."""
    variables = tuple(
        ShardedVariable(path=path, dtype=array.dtype, grid=grids[path], sharding=SHARDING if not n else None)
        for n, (path, array) in enumerate(arrays.items())
    )
    shards = Shards(
        variables=variables, process=process, processes=PROCESSES, reports=reports, limit_s=limit_s
    )
    parts = [
        (variable.path, arrays[variable.path][tuple(map(slice, part.start, part.stop))])
        for variable, part in shards.owned()
    ]
    return Snapshot(
        format="sharded",
        variables=tuple(
            Variable(path=path, shape=part.shape, dtype=part.dtype, read=partial(np.ascontiguousarray, part))
            if part.shape
            else Variable(path=path, shape=(), dtype=part.dtype, read=partial(np.asarray, part))
            for path, part in parts
        ),
        attributes={"layers/dense/vars": {"name": "dense"}},
        documents=DOCUMENTS,
        state=state_of(process),
        shards=shards,
    )


def save_by_processes(payloads: PayloadStore, name: str = NAME, **fields: Any) -> PayloadRef:
    """Save the arrays by three threads that stand for processes, and commit."""
    reports = InMemoryReports()
    session = payloads.session()
    session.renew()
    upload = session.begin(name)
    token = upload.share()
    others = [
        threading.Thread(
            target=lambda process=process: payload.encode(
                snapshot_of_process(process, reports), fields
            ).write_to(payloads.join(token))
        )
        for process in range(1, PROCESSES)
    ]
    for thread in others:
        thread.start()
    payload.encode(snapshot_of_process(0, reports), fields).write_to(upload)
    for thread in others:
        thread.join()
    session.commit(upload)
    session.close()
    return PayloadRef(payloads, name)


@contextmanager
def opened(ref: PayloadRef) -> Iterator[OpenPayload]:
    with payload.open_payload(ref) as found:
        yield found
