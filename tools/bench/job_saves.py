"""One process of a job: trains, while all subjects save in turns, and restores what they saved.

All subjects save the same arrays of one fit, so that whatever else the machine does affects the subjects of a round
alike; then a figure is compared with that of another subject in the same round.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from bench import job_restores, process_cost, workloads
from bench.job_subjects import JobSubject, Ours, job_subject, newest_files, share, sync_files
from bench.workloads import NotAvailableError, Workload

Result = dict[str, Any]
# One batch is trained between two turns.
EVERY = 2


def wait_for(paths: Iterable[Path]) -> None:
    """Wait until there are files that other processes make."""
    for path in paths:
        while not path.exists():
            time.sleep(0.01)


class Turns(keras.callbacks.Callback):  # type: ignore[misc]
    """Lets one subject save after every second batch, and measures; it also replaces the model's train function.

    Args:
        subjects: The subjects by name, in the order of their turns; ours is the last.
        process: The number of this process.
        processes: The number of processes.

    Attributes:
        saves: The cost of each save, by subject.
        saved: What each subject says of its last save; see `JobSubject.saved`.
        digests: The digests of that; see `job_restores.digests`.
        failed: The error that ended the turns of a subject, by its name.
        idle_s: Times between two steps where nothing is saved.
    """

    def __init__(self, subjects: dict[str, JobSubject], process: int, processes: int) -> None:
        super().__init__()
        self.saves: dict[str, list[Result]] = {name: [] for name in subjects}
        self.saved: dict[str, Any] = {}
        self.digests: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self.idle_s: list[float] = []
        self._subjects = subjects
        self._processes = process, processes
        self._inner: Any = None
        self._done = 0
        self._ended = 0.0
        self._cpu_s = self._resident = 0.0

    def replace(self, model: Any) -> None:
        """Replace the train function of a model that was trained before."""
        self._inner = model.train_function
        model.train_function = self._step

    def name(self, done: int) -> str | None:
        """Return whose turn it is after so many batches."""
        turn, rest = divmod(done, EVERY)
        return None if rest or not done else list(self._subjects)[(turn - 1) % len(self._subjects)]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save."""
        name = self.name(batch + 1)
        if name is None or name in self.failed:
            return
        try:
            self._subjects[name].save(self.model, batch + 1)
        except Exception as error:
            self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

    def _step(self, state: Any, iterator: Any) -> Any:
        """Train one batch, after what was saved before it is durable."""
        import jax

        waited = time.perf_counter() - self._ended
        name = self.name(self._done)
        if name is not None and name not in self.failed:
            try:
                self._measure(name, waited, state)
            except Exception as error:
                self._fail(name, error)
        elif self._done and name is None:
            self.idle_s.append(waited)
        self._done += 1
        if self.name(self._done) is not None:
            os.sync()  # so that no earlier bytes are written back at the cost of this save
        result = self._inner(state, iterator)
        jax.block_until_ready(result)
        if self.name(self._done) is not None:
            gc.collect()
            process_cost.reset_peak()
            self._resident = process_cost.resident_bytes()
            self._cpu_s = process_cost.cpu_s()
        self._ended = time.perf_counter()
        return result

    def _held(self, name: str, state: Any) -> int:
        """Return the memory that a subject has taken before the first batch: ours that of its copy."""
        if not isinstance(self._subjects[name], Ours):
            return 0
        arrays = share(job_restores.arrays_of(state), *self._processes)
        return sum(array.nbytes for array in arrays)

    def _measure(self, name: str, waited: float, state: Any) -> None:
        subject = self._subjects[name]
        subject.wait()
        cost = {
            "wait_s": waited,
            "durable_s": time.perf_counter() - self._ended,
            "cpu_s": process_cost.cpu_s() - self._cpu_s,
            "extra_bytes": max(0, process_cost.peak_bytes() - self._resident) + self._held(name, state),
        }
        saved = subject.saved()
        began = time.perf_counter()
        if self._processes[0] == 0 and saved is not None:
            sync_files(subject.folder)
        cost["sync_s"] = time.perf_counter() - began
        self.saves[name].append(cost)
        if saved is not None:
            self.saved[name], self.digests[name] = saved, job_restores.digests(state)


def measure(workload: Workload, folder: Path, names: list[str], process: int) -> Result:
    """Save in turns during a fit, then restore; returns the result of one process, with what `measure_alone` needs."""
    found: dict[str, JobSubject] = {}
    unavailable: dict[str, str] = {}
    model = workloads.build(workload)
    for name in names:
        place = folder / name.replace(" ", "-")
        try:
            # Which are available does not differ between processes, so this counts the same on all.
            found[name] = job_subject(name, place, process, workload.processes, EVERY * len(names))
        except NotAvailableError as error:
            unavailable[name] = str(error)
    if unavailable and "ours background" in found:
        place = folder / "ours-background"
        found["ours background"] = job_subject(
            "ours background", place, process, workload.processes, EVERY * len(found)
        )
    workloads.fit(model, workload, batches=3)
    turns = Turns(found, process, workload.processes)
    turns.replace(model)
    callbacks = [callback for subject in found.values() for callback in subject.callbacks()]
    # One batch follows the last turn.
    batches = EVERY * len(found) * workload.saves + 1
    workloads.fit(model, workload, [turns, *callbacks], batches=batches)
    values = [variable.value for variable in workloads.variables(model)]
    return {
        "unavailable": unavailable | turns.failed,
        "idle_s": turns.idle_s,
        "saves": turns.saves,
        "restores": job_restores.measure_together(folder, model, turns.saved, turns.digests),
        "files": {name: newest_files(found[name].folder) for name in turns.saved} if process == 0 else {},
        "variables": len(values),
        "state_bytes": sum(value.nbytes for value in values),
        "saved": {"saved": turns.saved, "digests": turns.digests},
    }
