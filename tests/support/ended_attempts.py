"""Trains in processes that end in many ways, each forked from one that has Keras loaded; prints how each ended.

    python tests/support/ended_attempts.py FOLDER CASE ...

A case is the name of a function below that ends with one underscore less; its store is ``FOLDER/CASE``.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def ends_of(backend: str, folder: Path, *cases: str, **environment: str) -> dict[str, int]:
    """Run cases, one after the other, and return the exit code of each, negative for a signal; repeated ones add up."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), *cases],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend, **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the cases -----------------------------------------------------------------------------------------


def fit_(store: Path, *callbacks: Any, **options: Any) -> None:
    import ckptstore
    from small_fits import fit, model

    made = options.pop("model", None) or model()
    kept = {name: options.pop(name) for name in ("on_save_error", "save_freq") if name in options}
    callback = ckptstore.StoreCheckpoint(store, run="r", background=False, **kept)
    fit(made, callback, *callbacks, **options)


def finished(store: Path) -> None:
    fit_(store)


def killed(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(7, lambda: os.kill(os.getpid(), signal.SIGKILL)), save_freq=5)


def terminated(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def interrupted_by_signal(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(3, lambda: os.kill(os.getpid(), signal.SIGINT)))


def interrupted(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(3, _raise(KeyboardInterrupt())))


def callback_raises(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(3, _raise(ValueError("bad luck, https://me:pw@host"))))


def exits(store: Path) -> None:
    from small_fits import AtBatch

    fit_(store, AtBatch(3, _raise(SystemExit(3))))


def data_raises(store: Path) -> None:
    from small_fits import data

    def batches() -> Iterator[Any]:
        given = data()
        for begin in range(0, 24, 4):
            yield given["x"][begin : begin + 4], given["y"][begin : begin + 4]
        raise LookupError("no such row")

    fit_(store, x=batches(), y=None, batch_size=None, steps_per_epoch=12)


def step_raises(store: Path) -> None:
    """The script catches it, and ends well."""
    import keras

    class Broken(keras.Sequential):  # type: ignore[misc]
        def train_step(self, *arguments: Any) -> Any:
            raise RuntimeError("no such step")

    made = Broken([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile("adam", "mse")
    try:
        fit_(store, model=made)
    except RuntimeError:
        print("caught")


def validation_raises(store: Path) -> None:
    """The script catches it, and ends well."""
    from small_fits import data

    def batches() -> Iterator[Any]:
        given = data()
        for begin in range(0, 20, 4):
            yield given["x"][begin : begin + 4], given["y"][begin : begin + 4]
        raise ArithmeticError("no such sum")

    try:
        fit_(store, validation_data=batches(), validation_steps=8)
    except Exception:
        print("caught")


def not_a_number(store: Path) -> None:
    import keras
    import numpy as np

    from small_fits import data

    fit_(store, keras.callbacks.TerminateOnNaN(), y=np.full_like(data()["y"], np.nan))


def disk_full(store: Path) -> None:
    """The disk has room for the first checkpoint alone: what is left of it is filled."""
    from small_fits import AtBatch

    def fill() -> None:
        with (store.parent / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    fit_(store, AtBatch(6, fill), on_save_error="raise", save_freq=4)


def two_fits(store: Path) -> None:
    import ckptstore
    from small_fits import fit, model

    for _ in range(2):
        fit(model(), ckptstore.StoreCheckpoint(store, background=False), epochs=1)


def drop_ins(store: Path) -> None:
    """A backup that stays, and a model's file; the step of a second fit raises, and the script catches it."""
    import ckptstore
    from small_fits import AtBatch, fit, model

    backup = ckptstore.BackupAndRestore(store / "backup", delete_checkpoint=False)
    fit(model(), backup, ckptstore.ModelCheckpoint(store / "m.keras"), epochs=1)
    try:
        fit(model(), ckptstore.ModelCheckpoint(store / "m.keras"), AtBatch(2, _raise(ValueError("again"))))
    except ValueError:
        print("caught")


def loops_by_hand(store: Path) -> None:
    """One that ends well, one that raises, one that is interrupted and never closed."""
    import ckptstore
    from small_fits import model

    made = model()
    with ckptstore.CheckpointStore(store) as opened:
        assert opened.resume(made, run="well") is None
        for epoch in range(2):
            opened.save(made, epoch=epoch, step=10 * epoch, run="well")
    try:
        with ckptstore.CheckpointStore(store) as opened:
            opened.save(made, epoch=0, run="raises")
            raise ValueError("by hand")
    except ValueError:
        print("caught")
    unclosed = ckptstore.CheckpointStore(store)
    unclosed.save(made, epoch=0, run="unclosed")
    raise KeyboardInterrupt


def unclosed_loop(store: Path) -> None:
    import ckptstore
    from small_fits import model

    ckptstore.CheckpointStore(store).save(model(), epoch=0, run="r")


def out_of_memory(store: Path) -> None:
    """In a control group of its own, where the kernel kills it."""
    from small_fits import AtBatch

    group = Path(os.environ["TEST_CGROUP"])
    (group / "cgroup.procs").write_text(str(os.getpid()))
    taken: list[bytearray] = []

    def take() -> None:
        while True:
            taken.append(bytearray(b"x") * (8 << 20))

    fit_(store, AtBatch(7, take), save_freq=5)


def finished_in_group(store: Path) -> None:
    (Path(os.environ["TEST_CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
    fit_(store)


def _raise(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


# --- the processes ---------------------------------------------------------------------------------------


def _child(case: str, store: Path) -> None:
    """Run a case, and end as the interpreter would."""
    atexit._clear()
    from ckptstore.store.attempts import ending_process

    code = 0
    try:
        globals()[case](store)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    ending_process._process_ends()
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Run the cases that are named on the command line."""
    import keras  # noqa: F401

    import ckptstore.training.store_checkpoint  # noqa: F401
    import warm_keras

    warm_keras.warm_up()
    folder, found = Path(sys.argv[1]), {}
    for case in sys.argv[2:]:
        name, _, place = case.partition("@")
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(name, folder / (place or name))
        found[case] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
