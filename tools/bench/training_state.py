"""What the training state costs of the save, and of the load, that it goes with: looked at from inside one process.

Ours alone are measured: the share of the functions that take the state of a fit (position, other callbacks, random
generators, variables that Keras leaves out), and of those that bring it back.
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
from bench.workloads import Work
from ckptstore.formats.payload import OpenPayload
from ckptstore.keras.model import adapter
from ckptstore.keras.model.adapter import KerasAdapter
from ckptstore.keras.state import training_state
from ckptstore.training.session import resumed_run, session

# What is a whole save, and what of it is there for the training state alone.
SAVE = ((session.FitSession, "_save"),)
CAPTURE = ((session.FitSession, "_state"), (training_state, "collect"))
LOAD = ((session, "load_resume_point"), (session.FitSession, "_put_back"))
APPLY = (
    (OpenPayload, "state"),
    (training_state, "fit_values"),
    (training_state, "plan_assignments"),
    (adapter, "assign"),
    (adapter, "assign_atomically"),
    (KerasAdapter, "track_assignments"),
    (resumed_run, "first_not_finite"),
    (session.FitSession, "_put_back"),
)
LOADS = 4


class Watch:
    """The seconds that some functions take together; one inside another counts once."""

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
def watched(places: tuple[tuple[Any, str], ...]) -> Iterator[Watch]:
    """Time functions for the block."""
    watch = Watch()
    before = [(owner, name, getattr(owner, name)) for owner, name in places]
    try:
        for owner, name, inner in before:
            setattr(owner, name, watch.around(inner))
        yield watch
    finally:
        for owner, name, inner in before:
            setattr(owner, name, inner)


def siblings() -> list[Any]:
    """Return other callbacks with a state of their own."""
    return [
        keras.callbacks.EarlyStopping("loss", patience=1000),
        keras.callbacks.ReduceLROnPlateau("loss", patience=1000),
    ]


def measure(work: Work, folder: Path) -> dict[str, Any]:
    """Save every second batch of a fit, and go on from the last save again and again."""
    model = workloads.build(work)
    workloads.fit(model, work, batches=3)
    saves: list[tuple[float, float]] = []
    loads: list[tuple[float, float]] = []

    class Each(keras.callbacks.Callback):  # type: ignore[misc]
        """Notes what the save of a batch has taken."""

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if whole.seconds:
                saves.append((whole.seconds, part.seconds))
            whole.seconds = part.seconds = 0.0

    callback = ckptstore.StoreCheckpoint(folder / "fit", monitor="loss", save_freq=2, background=False)
    with watched(SAVE) as whole, watched(CAPTURE) as part, _no_save_at_the_end(callback):
        workloads.fit(model, work, [callback, *siblings(), Each()], batches=2 * work.saves + 1)
    for _ in range(LOADS):
        os.sync()
        resume = ckptstore.StoreCheckpoint(
            folder / "fit", monitor="loss", resume="must", save_on_exception=False, background=False
        )
        with (
            watched(LOAD) as whole,
            watched(APPLY) as part,
            contextlib.suppress(loading.ReachedError),
        ):
            callbacks = [resume, *siblings(), loading.FirstBatch()]
            workloads.fit(model, work, callbacks, batches=2 * work.saves + 3)
        loads.append((whole.seconds, part.seconds))
    return {"capture": _medians(saves[1:]), "apply": _medians(loads[1:])}


@contextlib.contextmanager
def _no_save_at_the_end(callback: Any) -> Iterator[None]:
    callback.due_at_epoch_end = lambda logs, *, last: False
    yield


def _medians(found: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "whole_s": statistics.median(whole for whole, _ in found),
        "state_s": statistics.median(part for _, part in found),
        "share": statistics.median(part / whole for whole, part in found),
    }
