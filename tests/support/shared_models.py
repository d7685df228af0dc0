"""Models that several processes share, saved and restored in real jobs; run by `process_groups`.

Each process saves and restores at a time of its own, one after the other: an operation that waits for another process
would never end.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ckptstore.formats import payload
from ckptstore.formats.sharded.shards import Report
from ckptstore.records import Checkpoint
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at
from records import CHECKPOINT

LIMIT_S = 100.0


# --- files by which processes meet -----------------------------------------------------------------


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


def get(path: Path, limit_s: float = LIMIT_S) -> Any:
    end = time.monotonic() + limit_s
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come"
        time.sleep(0.005)
    return json.loads(path.read_text())


@contextmanager
def in_turn(folder: Path, name: str, rank: int) -> Iterator[None]:
    """Run the block in one process after the other."""
    if rank:
        get(folder / f"{name}-{rank - 1}")
    yield
    put(folder / f"{name}-{rank}", None)


class FileReports:
    """Implementation of `ckptstore.formats.sharded.shards.Reports` over files."""

    def __init__(self, folder: Path, processes: int) -> None:
        self._folder, self._processes = folder, processes

    def post(self, report: Report) -> None:
        assert report.written is not None, report.problem
        put(self._folder / f"report-{report.process}", [report.written.nbytes, report.written.digest])

    def wait(self, limit_s: float) -> Sequence[Report]:
        found = []
        for process in range(1, self._processes):
            nbytes, text = get(self._folder / f"report-{process}", limit_s)
            found.append(Report(process=process, written=Written(nbytes=nbytes, digest=text)))
        return found


# --- saving and restoring --------------------------------------------------------------------------


def save(snapshot: Any, store: Path) -> Checkpoint:
    """Write a snapshot's members, and meet the other processes; process 0 commits."""
    shards, payloads = snapshot.shards, payloads_at(Layout(store))
    name, meeting = "00000001-run.sharded", store / "meeting"
    reports = FileReports(meeting, shards.processes)
    encoded = payload.encode(replace(snapshot, shards=replace(shards, reports=reports)), {"epoch": 1})
    if shards.process:
        encoded.write_to(payloads.join(get(meeting / "upload")))
        written = get(meeting / "committed")
    else:
        for folder in ("checkpoints", "tmp", "quarantine"):
            (store / folder).mkdir(parents=True)
        session = payloads.session()
        session.renew()
        upload = session.begin(name)
        put(meeting / "upload", upload.share())
        encoded.write_to(upload)
        written = [upload.written.nbytes, upload.written.digest]
        session.commit(upload)
        session.close()
        put(meeting / "committed", written)
    return checkpoint_at(store)


def checkpoint_at(store: Path) -> Checkpoint:
    """Return the only checkpoint of a store."""
    nbytes, found = get(store / "meeting" / "committed")
    (path,) = (store / "checkpoints").iterdir()
    format = {".sharded": "sharded", ".keras": "keras", ".h5": "weights"}[path.suffix]
    return replace(CHECKPOINT, version=1, path=path, nbytes=nbytes, digest=found, format=format)


def digest(arrays: Iterable[Any]) -> str:
    found = xxhash.xxh3_128()
    for array in arrays:
        found.update(array if isinstance(array, bytes) else np.asarray(array).tobytes())
    return found.hexdigest()


def said(action: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    """Return the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action(*arguments, **options)
    return [str(one.message) for one in caught]
