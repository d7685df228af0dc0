"""One measurement, in a process of its own: trains a work with one subject, and says what that cost.

`python -m bench.worker SPECIFICATION RESULT`: the first is JSON, the second the path of a file; started by the bench.
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
from bench.workloads import Work

Result = dict[str, Any]
# Batches from save to save where single saves are measured: one is trained between.
EVERY = 2
WARM_UP = 3
# Saves that training goes on beside, behind those that are waited for.
BESIDE = 3


def block(result: Any) -> None:
    """Wait until what a train step returned is computed."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)


class Steps:
    """Stands in the place of a model's train function, and sees when a step ends and when the next one begins.

    What lies between is what training waits for everybody's hooks, wherever these do their work.

    Args:
        model: Was trained before, so that it has its train function.
        save: Told of each save behind it: its number from 1 on, when the step before it ended, and the model's state.
            Returns True to have it waited for only when the steps up to the next one are done.
        every: After how many batches that is.
        wait: Waits for what was saved.

    Attributes:
        idle_s: What lies between two steps where nothing is saved.
        step_s: Steps with nothing beside them.
        behind_s: Of each save that training went on beside: what lies between two steps, and the step behind it.
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
        self._is_beside = False
        self.idle_s: list[float] = []
        self.step_s: list[float] = []
        self.behind_s: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        """Train one batch."""
        now = time.perf_counter()
        saved = self._done and not self._done % self._every
        if saved:
            # On JAX a step is handed the state, which the model itself no longer has.
            state = [one for group in arguments[0][:3] for one in group] if len(arguments) > 1 else None
            self._is_beside = self._save(self._done // self._every, self._ended, state)
        elif self._done and not self._is_beside:
            self.idle_s.append(now - self._ended)
        self._done += 1
        before_save = not self._done % self._every
        if before_save:
            if self._is_beside:
                self._wait()
            # Nobody's earlier bytes are to be written back at the cost of this save. Before the step, not behind it:
            # what the disk's threads leave in the caches would make all slower that comes next.
            os.sync()
        began = time.perf_counter()
        result = self._inner(*arguments)
        block(result)
        took = time.perf_counter() - began
        if not self._is_beside:
            self.step_s.append(took)
        elif saved:
            self.behind_s.append(now - self._ended + took)
        if before_save:
            process_cost.reset_peak()
            self.before = process_cost.cpu_s(), process_cost.written_bytes()
        self._ended = time.perf_counter()
        return result


def measure_saves(work: Work, name: str, folder: Path, model: Any, subject: subjects.Subject) -> Result:
    """Save several times, each time waiting until that is done; then while training goes on."""
    gc.collect()
    process_cost.give_back()
    baseline = process_cost.resident_bytes()
    saves: list[Result] = []
    expected = [""]

    last = work.saves + BESIDE + 1

    def saved(number: int, ended: float, state: Any) -> bool:
        waited = time.perf_counter() - ended
        if work.saves < number < last:
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
        if number <= work.saves:
            saves.append(cost)
        if subject.load is not None and number == last:
            expected[0] = workloads.digest(state or workloads.host_arrays(model))
        # What may be saved after this one, at the end of the fit, is not what is loaded below.
        if number <= last:
            subject.note()
        return False

    inner = model.train_function
    model.train_function = steps = Steps(model, saved, EVERY, subject.wait)
    try:
        workloads.fit(model, work, [subject.callback], batches=EVERY * last + 1)
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
        "added_s": [one - usual_s for one in steps.behind_s],
        "checked": subject.load is not None,
    }


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes when epochs begin and end; has no hook of batches, since these cost something by themselves."""

    first = last = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the first."""
        self.first = self.first or time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Note the last."""
        self.last = time.perf_counter()


def whole_run(model: Any, work: Work, callbacks: list[Any]) -> Result:
    """Train a whole run, and say what it took from the call of fit to its return."""
    clock = Clock()
    process_cost.reset_peak()
    cpu, written = process_cost.cpu_s(), process_cost.written_bytes()
    began = time.perf_counter()
    workloads.fit(model, work, [clock, *callbacks])
    ended = time.perf_counter()
    return {
        "run_s": ended - began,
        "start_s": clock.first - began,
        "end_s": ended - clock.last,
        "cpu_s": process_cost.cpu_s() - cpu,
        "written_bytes": process_cost.written_bytes() - written,
        "peak_bytes": process_cost.peak_bytes(),
    }


def measure_run(work: Work, model: Any, subject: subjects.Subject) -> Result:
    """Train without a checkpoint, with them, and without them again."""
    workloads.fit(model, work, batches=min(75, work.batches))  # compiles what is left, validation among it
    os.sync()
    before = whole_run(model, work, [])
    os.sync()
    measured = whole_run(model, work, [subject.callback])
    count = subject.count()
    os.sync()
    after = whole_run(model, work, [])
    keys = ("run_s", "start_s", "end_s", "cpu_s", "peak_bytes")
    plain = {key: (before[key] + after[key]) / 2 for key in keys}
    return {"plain": plain, "with": measured, "committed": count, "saves": work.batches // work.every}


def measure(specification: Result) -> Result:
    """Measure what is asked for."""
    folder, part = Path(specification["folder"]), specification["part"]
    if part == "scale":
        return scale.measure(specification["count"], folder, repeats=specification["repeats"])
    work = workloads.works(quick=specification["quick"])[specification["work"]]
    name = specification.get("subject", "")
    if part == "load":
        return loading.measure(work, name, Path(specification["files"]))
    if part == "state":
        return training_state.measure(work, folder)
    if part == "files":
        return loading.prepare(work, Path(specification["files"]))
    every = EVERY if part == "save" else work.every
    subject = subjects.subject(name, folder / "subject", every)
    model = workloads.build(work)
    workloads.fit(model, work, batches=WARM_UP)
    arrays = workloads.host_arrays(model)
    facts = {"variables": len(arrays), "state_bytes": sum(array.nbytes for array in arrays)}
    del arrays
    if part == "save":
        return facts | measure_saves(work, name, folder, model, subject)
    return facts | measure_run(work, model, subject)


def main() -> None:
    """Measure, and write down what came of it."""
    warnings.simplefilter("ignore")
    try:
        result = measure(json.loads(sys.argv[1]))
    except subjects.NotAvailableError as error:
        result = {"unavailable": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().partition("\n")[0]
        result = {"failed": f"{type(error).__name__}: {text}"}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
