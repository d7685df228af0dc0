"""Cost of the training state within a save and within a load, measured inside one process.

Only ckptstore is measured: the share of the functions that capture the state of a fit (position, other callbacks,
random generators, variables that Keras leaves out), and of those that restore it.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

import ckptstore
from bench import loading, workloads
from bench.workloads import Workload
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.keras.model import adapter
from ckptstore.keras.model.adapter import KerasAdapter
from ckptstore.keras.state import training_state
from ckptstore.training.session import fit_saver, restore, resumed_run, session

# Functions of a whole save or load, and those among them that serve the training state alone.
SAVE = ((session.FitSession, "_save"),)
CAPTURE = ((fit_saver.FitSaver, "_state"), (training_state, "collect"))
LOAD = ((session, "load_resume_point"), (restore.FitToRestore, "_restore"))
APPLY = (
    (Hdf5Payload, "state"),
    (training_state, "fit_values"),
    (training_state, "plan_assignments"),
    (adapter, "assign"),
    (adapter, "assign_atomically"),
    (KerasAdapter, "track_assignments"),
    (resumed_run, "first_not_finite"),
    (restore.FitToRestore, "_restore"),
)
LOADS = 4


class Stopwatch:
    """The total time of some functions in seconds; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return inner(*arguments, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        return timed


@contextlib.contextmanager
def watched(places: tuple[tuple[Any, str], ...]) -> Iterator[Stopwatch]:
    """Time functions for the block."""
    watch = Stopwatch()
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    try:
        for owner, name, inner in before:
            setattr(owner, name, watch.around(inner))
        yield watch
    finally:
        for owner, name, inner in before:
            setattr(owner, name, inner)


def siblings() -> list[Any]:
    """Return other callbacks that have state."""
    return [
        keras.callbacks.EarlyStopping("loss", patience=1000),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1000),
    ]


def measure(workload: Workload, folder: Path) -> dict[str, Any]:
    """Save every second batch of a fit, then resume from the last save several times."""
    model = workloads.build(workload)
    # The last one is trained after the last save.
    batches = 2 * workload.saves + 1
    workloads.fit(model, workload, batches=3)
    saves: list[tuple[float, float]] = []
    loads: list[tuple[float, float]] = []

    class Each(keras.callbacks.Callback):  # type: ignore[misc]
        """Records the time of each save."""

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if whole.seconds:
                saves.append((whole.seconds, part.seconds))
            whole.seconds = part.seconds = 0.0

    callback = loading.saves_inside_an_epoch(folder / "fit", background=False)
    with watched(SAVE) as whole, watched(CAPTURE) as part:
        workloads.fit(model, workload, [callback, *siblings(), Each()], batches=batches)
    for _ in range(LOADS):
        os.sync()
        resume = ckptstore.StoreCheckpoint(
            folder / "fit",
            monitor="loss",
            run="default",
            resume="must",
            save_on_exception=False,
            background=False,
        )
        with (
            watched(LOAD) as whole,
            watched(APPLY) as part,
            contextlib.suppress(loading.ReachedError),
        ):
            callbacks = [resume, *siblings(), loading.FirstBatch()]
            workloads.fit(model, workload, callbacks, batches=batches)
        loads.append((whole.seconds, part.seconds))
    return {"capture": _medians(saves[1:]), "apply": _medians(loads[1:])}


def _medians(found: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "whole_s": statistics.median(whole for whole, _ in found),
        "state_s": statistics.median(part for _, part in found),
        "share": statistics.median(part / whole for whole, part in found),
    }
