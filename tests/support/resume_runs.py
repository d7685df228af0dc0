"""Runs trainings in children that may be killed: a parent imports the backend once, and forks for each.

A program of its own, so that a child has nothing of pytest's. `Runs` starts it, and sends what to run as lines of JSON.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter as Counter_
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked_writers import Server


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended: what it found, or the signal or exit code that ended it, and what it printed."""

    status: int
    found: dict[str, Any] | None
    output: str


def found(outcome: Outcome) -> dict[str, Any]:
    """Return what a child that came to its end found."""
    assert outcome.status == 0, outcome.output
    assert outcome.found is not None
    return outcome.found


class Runs:
    """The parent process of one backend.

    Args:
        backend: The backend.
        folder: Where the children write what they found.
        module: The module whose function `train` runs a case.
    """

    def __init__(self, backend: str, folder: Path, *, module: str = "resume_runs") -> None:
        self._folder = folder
        self._number = 0
        self._plain: dict[str, Outcome] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-W", "always::UserWarning", __file__, module],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: str, **options: Any) -> Outcome:
        """Run one training in a child; see `train` for the options. Without any it is run but once."""
        if options:
            return self._run(case, options)
        if case not in self._plain:
            self._plain[case] = self._run(case, options)
        return self._plain[case]

    def _run(self, case: str, options: dict[str, Any]) -> Outcome:
        self._number += 1
        found, printed = (self._folder / f"{self._number}.{end}" for end in ("json", "txt"))
        # One case starts its writers as a user's training does.
        job = {"case": case, "options": options, "found": str(found), "printed": str(printed)}
        job["forked"] = case != "arrays"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return Outcome(
            status=status,
            found=json.loads(found.read_text()) if found.exists() else None,
            output=printed.read_text(),
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# --- in the child ------------------------------------------------------------------------------


def train(
    case: str,
    *,
    store: str | None = None,
    die_after: int | None = None,
    die_in_step: int | None = None,
    act: list[Any] | None = None,
    saving: dict[str, Any] | None = None,
    seed: int | None = 1,
    compiling: dict[str, bool] | None = None,
    **fit: Any,
) -> dict[str, Any]:
    """Train a case, and return what it comes to.

    Args:
        case: Its name in `resume_cases`.
        store: Where to save and resume; None for plain Keras.
        die_after: The batch of this process after which it kills itself.
        die_in_step: The change of the file system at which it does.
        act: A hook, the number of its call, and ``"raise"`` or a signal that is sent then.
        saving: Other arguments of `StoreCheckpoint`.
        seed: What the script seeds everything with; None if it does not.
        compiling: How JAX compiles, where not as in all tests: with a ``cache``, or ``optimized``.
        **fit: Other arguments of `fit`.
    """
    import keras

    import ckptstore
    from resume_cases import CASES, INEXACT

    if compiling is not None:
        _compile(**compiling)
    if seed is not None:
        keras.utils.set_random_seed(seed)
    made = (CASES | INEXACT)[case]()
    counter = _counter(die_after, act)
    callbacks = [*made.callbacks, counter]
    if store is not None:
        saving = {"save_freq": made.save_freq, **(saving or {})}
        callbacks.insert(made.place, ckptstore.StoreCheckpoint(store, **saving))
    if die_in_step is not None:
        _die_in_step(die_in_step)
    history = made.model.fit(**{**made.fit, "verbose": 0, **fit}, callbacks=callbacks)
    optimizer = made.model.optimizer
    return {
        "weights": _digest(made.model.variables),
        "optimizer": _digest(optimizer.variables),
        "built": [optimizer.built, *[variable.path for variable in optimizer.variables]],
        "metrics": _digest(made.model.metrics_variables),
        "steps": int(keras.ops.convert_to_numpy(optimizer.iterations)),
        "history": {
            name: [float(value).hex() for value in values] for name, values in history.history.items()
        },
        "epochs": history.epoch,
        "batches": counter.batches,
        "seen": counter.seen,
        "initial_epoch": made.model._initial_epoch,
    }


def _compile(*, cache: bool, optimized: bool = False) -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", cache)
    jax.config.update("jax_disable_most_optimizations", not optimized)


def _digest(variables: Any) -> str:
    import keras
    import numpy as np

    digest = hashlib.sha256()
    for variable in variables:
        # Of TensorFlow's variables that are spread over devices, the value of each.
        strategy = getattr(variable.value, "distribute_strategy", None)
        values = [variable] if strategy is None else strategy.experimental_local_results(variable.value)
        for value in values:
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(value)).tobytes())
    return digest.hexdigest()


def _counter(die_after: int | None, act: list[Any] | None) -> Any:
    import keras

    class Counter(keras.callbacks.Callback):
        """Counts the batches that callbacks see, and says which; does at one of them what a test asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.batches = 0
            self.seen: list[list[int]] = []
            self.epoch = -1
            self.calls: Counter_[str] = Counter_()

        def get_state(self) -> dict[str, int]:
            return {"epoch": self.epoch}

        def set_state(self, state: dict[str, int]) -> None:
            self.epoch = state["epoch"]

        def _called(self, hook: str) -> None:
            self.calls[hook] += 1
            if act is not None and act[0] == hook and act[1] == self.calls[hook]:
                if act[2] == "raise":
                    raise RuntimeError("as the test asked")
                os.kill(os.getpid(), getattr(signal, act[2]))

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch
            self._called("on_epoch_begin")

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.batches += 1
            self.seen.append([self.epoch, batch])
            if self.batches == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self._called("on_train_batch_end")

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            self._called("on_test_batch_end")

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._called("on_epoch_end")

    return Counter()


def _die_in_step(number: int) -> None:
    from ckptstore.storage import files

    left = number

    def hook(operation: str, path: Path, phase: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    files._hooks.append(hook)


def _child(job: dict[str, Any], writers: Server, run: Callable[..., dict[str, Any]]) -> None:
    output = os.open(job["printed"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        with writers.used() if job["forked"] else nullcontext():
            found = run(job["case"], **job["options"])
    except SystemExit as error:
        os._exit(int(error.code or 0))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    Path(job["found"]).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def _serve(module: str) -> None:
    # Once, for all children.
    writers = Server()
    import keras  # noqa: F401

    import ckptstore.retention
    import ckptstore.training.store_checkpoint  # noqa: F401
    import resume_cases  # noqa: F401
    import warm_keras
    from crash import precompile

    run = train if module == "resume_runs" else importlib.import_module(module).train
    precompile.warm_up()
    warm_keras.warm_up()
    # Else each child would look through all that is imported, and copy the memory that it lies in.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(json.loads(line), writers, run)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
