"""One measurement, in its own process: trains a workload with one subject, and writes down the cost.

Started by the benchmark as `python -m bench.worker SPECIFICATION RESULT`: JSON, and the path of a file.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from bench import loading, process_cost, scale, subjects, training_state, workloads
from bench.workloads import Workload

Result = dict[str, Any]
# Batches from save to save where single saves are measured: one is trained in between.
EVERY = 2
WARM_UP = 3
# Saves during which training continues, after those that are waited for.
CONCURRENT_SAVES = 3


def block(result: Any) -> None:
    """Wait until the result of a train step is computed."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)


class Steps:
    """Replaces a model's train function, and measures when a step ends and when the next one begins.

    The time in between is what training waits for all hooks, wherever they do their work.

    Args:
        model: The model, trained before, so that it has its train function.
        save: Called after each save with its number from 1, the time at which the step before it ended, and the
            model's state. Returns True if the save is to be waited for only after the steps up to the next one.
        every: Number of batches from save to save.
        wait: Waits for what was saved.

    Attributes:
        idle_s: Times between two steps where nothing is saved.
        step_s: Times of steps with no save in the background.
        with_save_s: For each save during which training continued: the time between two steps, and the step after it.
    """

    def __init__(
        self,
        model: Any,
        save: Callable[[int, float, Any], bool],
        every: int,
        wait: Callable[[], object],
    ) -> None:
        self._inner = model.train_function
        self._save = save
        self._every = every
        self._wait = wait
        self._done = 0
        self._ended = 0.0
        self._is_concurrent = False
        self.idle_s: list[float] = []
        self.step_s: list[float] = []
        self.with_save_s: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        """Train one batch."""
        now = time.perf_counter()
        saved = self._done and not self._done % self._every
        if saved:
            # On JAX a step gets the state, which the model itself no longer has.
            state = [value for group in arguments[0][:3] for value in group] if len(arguments) > 1 else None
            self._is_concurrent = self._save(self._done // self._every, self._ended, state)
        elif self._done and not self._is_concurrent:
            self.idle_s.append(now - self._ended)
        self._done += 1
        before_save = not self._done % self._every
        if before_save:
            if self._is_concurrent:
                self._wait()
            # So that no earlier bytes are written back at the cost of this save. Before the step, not after it: what
            # the disk's threads leave in the caches would slow down everything that follows.
            os.sync()
        began = time.perf_counter()
        result = self._inner(*arguments)
        block(result)
        took = time.perf_counter() - began
        if not self._is_concurrent:
            self.step_s.append(took)
        elif saved:
            self.with_save_s.append(now - self._ended + took)
        if before_save:
            process_cost.reset_peak()
            self.before = process_cost.cpu_s(), process_cost.written_bytes()
        self._ended = time.perf_counter()
        return result


def measure_saves(
    workload: Workload, name: str, folder: Path, model: Any, subject: subjects.Subject
) -> Result:
    """Save several times, each time waiting until the save is done; then while training continues."""
    gc.collect()
    process_cost.trim_memory()
    baseline = process_cost.resident_bytes()
    saves: list[Result] = []
    expected = [""]

    last = workload.saves + CONCURRENT_SAVES + 1

    def saved(number: int, ended: float, state: Any) -> bool:
        waited = time.perf_counter() - ended
        if workload.saves < number < last:
            return True
        subject.wait()
        durable = time.perf_counter() - ended
        cpu, written = steps.before
        cost = {
            "wait_s": waited,
            "durable_s": durable,
            "cpu_s": process_cost.cpu_s() - cpu,
            "extra_bytes": max(0, process_cost.peak_bytes() - baseline),
            "written_bytes": process_cost.written_bytes() - written,
        }
        if number <= workload.saves:
            saves.append(cost)
        if subject.load is not None and number == last:
            expected[0] = workloads.digest(state or workloads.host_arrays(model))
        # A later save, at the end of the fit, is not the one that is loaded below.
        if number <= last:
            subject.note()
        return False

    inner = model.train_function
    model.train_function = steps = Steps(model, saved, EVERY, subject.wait)
    try:
        workloads.fit(model, workload, [subject.callback], batches=EVERY * last + 1)
    finally:
        model.train_function = inner
    if subject.load is not None:
        workloads.spoil(model)
        subject.load(model)
        assert workloads.digest(workloads.host_arrays(model)) == expected[0], (
            f"{name}: what was loaded is not what was saved"
        )
    usual_s = statistics.median(steps.step_s) + statistics.median(steps.idle_s)
    return {
        "saves": saves,
        "idle_s": steps.idle_s,
        "added_s": [seconds - usual_s for seconds in steps.with_save_s],
        "checked": subject.load is not None,
    }


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Records when epochs begin and end; has no batch hooks, since they have a cost of their own."""

    first = last = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Record the first."""
        self.first = self.first or time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Record the last."""
        self.last = time.perf_counter()


def whole_run(model: Any, workload: Workload, callbacks: list[Any]) -> Result:
    """Train a whole run, and return its cost from the call of fit to its return."""
    clock = Clock()
    process_cost.reset_peak()
    cpu, written = process_cost.cpu_s(), process_cost.written_bytes()
    began = time.perf_counter()
    workloads.fit(model, workload, [clock, *callbacks])
    ended = time.perf_counter()
    return {
        "run_s": ended - began,
        "start_s": clock.first - began,
        "end_s": ended - clock.last,
        "cpu_s": process_cost.cpu_s() - cpu,
        "written_bytes": process_cost.written_bytes() - written,
        "peak_bytes": process_cost.peak_bytes(),
    }


def measure_run(workload: Workload, model: Any, subject: subjects.Subject) -> Result:
    """Train without checkpoints, with them, and without them again."""
    workloads.fit(
        model, workload, batches=min(75, workload.batches)
    )  # compiles the rest, including validation
    os.sync()
    before = whole_run(model, workload, [])
    os.sync()
    measured = whole_run(model, workload, [subject.callback])
    count = subject.count()
    os.sync()
    after = whole_run(model, workload, [])
    keys = ("run_s", "start_s", "end_s", "cpu_s", "peak_bytes")
    plain = {key: (before[key] + after[key]) / 2 for key in keys}
    return {"plain": plain, "with": measured, "committed": count, "saves": workload.batches // workload.every}


def measure(specification: Result) -> Result:
    """Measure what the specification asks for."""
    folder, part = Path(specification["folder"]), specification["part"]
    if part == "scale":
        return scale.measure(specification["count"], folder, repeats=specification["repeats"])
    workload = workloads.by_name(quick=specification["quick"])[specification["workload"]]
    workloads.make_devices(workload)
    name = specification.get("subject", "")
    if part == "load":
        return loading.measure(workload, name, Path(specification["files"]))
    if part == "state":
        return training_state.measure(workload, folder)
    if part == "files":
        return loading.prepare(workload, Path(specification["files"]))
    every = EVERY if part == "save" else workload.every
    subject = subjects.subject(name, folder / "subject", every)
    model = workloads.build(workload)
    workloads.fit(model, workload, batches=WARM_UP)
    arrays = workloads.host_arrays(model)
    facts = {"variables": len(arrays), "state_bytes": sum(array.nbytes for array in arrays)}
    del arrays
    if part == "save":
        return facts | measure_saves(workload, name, folder, model, subject)
    return facts | measure_run(workload, model, subject)


def main() -> None:
    """Measure, and write the result."""
    warnings.simplefilter("ignore")
    try:
        result = measure(json.loads(sys.argv[1]))
    except workloads.NotAvailableError as error:
        result = {"unavailable": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().partition("\n")[0]
        result = {"failed": f"{type(error).__name__}: {text}"}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
