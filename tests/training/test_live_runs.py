"""States of runs with real trainings in real processes: running, stopped, validating, killed, saving, finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore
import small_fits
from ckptstore.records import Beat, Run
from ckptstore.storage.heartbeat_file import is_held, is_saving, read_heartbeat

pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

# Trains; a file named after a hook holds that hook up until it is removed.
PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
import keras
import ckptstore

store, folder = sys.argv[1], Path(sys.argv[2])

class Held(keras.callbacks.Callback):
    def hold(self, hook):
        (folder / f"{hook}.reached").touch()
        while (folder / hook).exists():
            time.sleep(0.02)
    def on_train_batch_end(self, batch, logs=None):
        self.hold("batch")
    def on_test_batch_end(self, batch, logs=None):
        self.hold("test")
    def on_epoch_begin(self, epoch, logs=None):
        self.hold("epoch")

keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.ones((32, 8), "float32")
callback = CALLBACK
model.fit(x, x[:, :1], validation_data=(x, x[:, :1]), epochs=2, batch_size=8, verbose=0, callbacks=[callback, Held()])
"""


class Training:
    """A training in a process of its own, which can be held up in a hook."""

    def __init__(self, folder: Path, callback: str, directory: Path, *, inside: str = "") -> None:
        self.folder, self.store = folder, directory / inside
        program = PROGRAM.replace("CALLBACK", callback)
        folder.mkdir(exist_ok=True)
        self._command = [sys.executable, "-c", program, str(directory), str(folder)]
        self.process: subprocess.Popen[bytes] | None = None

    def hold(self, hook: str) -> None:
        (self.folder / f"{hook}.reached").unlink(missing_ok=True)
        (self.folder / hook).touch()

    def release(self, hook: str) -> None:
        (self.folder / hook).unlink()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command)

    def reaches(self, hook: str) -> None:
        wait_until((self.folder / f"{hook}.reached").exists)

    @property
    def run(self) -> Run:
        with ckptstore.CheckpointStore(self.store, read_only=True) as store:
            (run,) = store.runs()
            return run

    def first(self, state: str) -> Run:
        """Return the run as it is as soon as it is in a state."""
        found = self.run
        until = time.monotonic() + 120
        while found.state != state:
            assert time.monotonic() < until, f"the run is {found.state}"
            time.sleep(0.02)
            found = self.run
        return found

    @property
    def beat(self) -> Beat:
        (path,) = (self.store / "heartbeats").iterdir()
        beat = read_heartbeat(path)
        assert beat is not None
        return beat

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ends(self) -> int:
        assert self.process is not None
        return self.process.wait(120)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


@pytest.fixture(
    params=[
        "StoreCheckpoint",
        pytest.param("BackupAndRestore", marks=pytest.mark.jax_is_enough),
        pytest.param("ModelCheckpoint", marks=pytest.mark.jax_is_enough),
    ]
)
def training(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Training]:
    """A training with each of the callbacks; not yet started."""
    callbacks = {
        "StoreCheckpoint": "ckptstore.StoreCheckpoint(store)",
        "BackupAndRestore": "ckptstore.BackupAndRestore(store, delete_checkpoint=False)",
        "ModelCheckpoint": "ckptstore.ModelCheckpoint(store + '/best.keras')",
    }
    inside = ".ckptstore" if request.param == "ModelCheckpoint" else ""
    training = Training(tmp_path / "hooks", callbacks[request.param], tmp_path / "store", inside=inside)
    yield training
    if training.process is not None:
        training.process.kill()
        training.process.wait()


def test_a_training_is_shown_in_each_phase_and_interrupted_when_it_is_killed(training: Training) -> None:
    for hook in ("epoch", "batch", "test"):
        training.hold(hook)
    training.start()
    training.reaches("epoch")
    assert (training.run.state, training.beat.phase) == ("running", "starting")
    assert training.run.note.startswith("starting")
    training.release("epoch")
    training.reaches("batch")
    training.release("batch")
    training.reaches("test")
    run = training.run
    assert (run.state, run.note, run.epoch, run.batch, run.step) == ("running", "validating", 0, 3, 4)
    assert (run.epochs, run.batches) == (2, 4)
    assert "loss" in training.beat.metrics
    # Stopped by a signal, which is no hang, however long it lasts.
    training.signal(signal.SIGSTOP)
    wait_until(lambda: "kill -CONT" in training.run.note)
    assert training.run.state == "running"
    training.signal(signal.SIGCONT)
    wait_until(lambda: "kill -CONT" not in training.run.note)
    training.signal(signal.SIGKILL)
    training.ends()
    # Meanwhile a process that was just about to save may still begin and end.
    run = training.first("interrupted")
    assert (run.epoch, run.batch, run.step, run.steps_per_s) == (0, 3, 4, None)
    # As `attempts` has it, though the attempt has recorded no end.
    assert run.last_attempt is not None
    assert (run.note, run.last_attempt.reason) == ("killed", "killed")
    # Started again, it finishes.
    training.release("test")
    training.start()
    assert training.ends() == 0
    assert training.beat.phase == "ended"
    assert (training.run.epoch, training.run.step) == (1, 8)
    assert {"start", "batch", "validation", "save"} <= set(training.beat.slowest_s)


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[Training]:
    """A training that saves in the background every second batch; not yet started."""
    training = Training(
        tmp_path / "hooks", "ckptstore.StoreCheckpoint(store, save_freq=2)", tmp_path / "store"
    )
    yield training
    if training.process is not None:
        training.process.kill()
        training.process.wait()


@pytest.mark.jax_is_enough
def test_a_run_whose_training_was_killed_is_saving_until_its_last_save_has_ended(saving: Training) -> None:
    training = saving
    training.hold("test")
    training.start()
    training.reaches("test")
    (path,) = (training.store / "heartbeats").iterdir()
    wait_until(lambda: is_saving(path))
    worker = _child_of(training)
    os.kill(worker, signal.SIGSTOP)
    try:
        training.signal(signal.SIGKILL)
        training.ends()
        assert not is_held(path)
        assert training.run.state == "saving"
        assert "last save has not" in training.run.note
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not is_saving(path))
    assert training.run.state == "interrupted"
    training.release("test")
    training.start()
    assert training.ends() == 0
    assert training.run.state == "finished"


def _child_of(training: Training) -> int:
    """Return the process that saves for a training."""
    assert training.process is not None
    pid = training.process.pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            if "ckptstore.background" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8"):
                return int(child)
    pytest.fail("no process saves")


def test_a_loop_by_hand_is_shown_by_its_saves_and_by_beats(tmp_path: Path) -> None:
    model = small_fits.model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, step=10, metrics={"loss": 0.5}, run="loop", format="weights")
        beat = read_heartbeat(tmp_path / "heartbeats" / "loop")
        assert beat is not None
        assert (beat.phase, beat.epoch, beat.step, beat.sparse) == ("training", 0, 10, True)
        assert beat.hang_limit_s() > 1e9  # a silence between two saves tells nothing
        (run,) = store.runs()
        assert (run.state, run.epoch, run.step) == ("running", 0, 10)
        for batch in range(3):
            store.beat(epoch=1, batch=batch, step=np.int64(11 + batch), metrics={"loss": 0.25}, run="loop")
        with pytest.raises(TypeError):
            store.beat(epoch=1.5, run="loop")  # type: ignore[arg-type]
    beat = read_heartbeat(tmp_path / "heartbeats" / "loop")
    assert beat is not None
    assert (beat.phase, beat.epoch, beat.batch, beat.step, beat.sparse) == ("ended", 1, 2, 13, False)
    assert beat.metrics == {"loss": 0.25}
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert store.resume(model, run="loop") is not None
        assert is_held(tmp_path / "heartbeats" / "loop")
    assert not is_held(tmp_path / "heartbeats" / "loop")


def test_a_store_open_for_reading_refuses_beats(tmp_path: Path) -> None:
    ckptstore.CheckpointStore(tmp_path).close()
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store, pytest.raises(ckptstore.ReadOnlyError):
        store.beat(epoch=0)


def test_copies_of_callbacks_leave_the_heartbeat_alone(tmp_path: Path) -> None:
    import copy

    import keras

    model = small_fits.model()
    callback = ckptstore.ModelCheckpoint(
        str(tmp_path / "best.weights.h5"), monitor="loss", save_weights_only=True
    )

    class Copies(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            copied = copy.copy(callback)
            del copied
            assert is_held(tmp_path / ".ckptstore" / "heartbeats" / str(callback.run))

    small_fits.fit(model, callback, Copies(), epochs=1)
    assert not is_held(tmp_path / ".ckptstore" / "heartbeats" / str(callback.run))


def test_a_fit_that_its_step_ended_by_an_exception_is_failed_though_the_process_lives(tmp_path: Path) -> None:
    import keras

    model = small_fits.model()
    callback = ckptstore.StoreCheckpoint(tmp_path, save_weights_only=True)

    class Breaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            def step(*arguments: object, **options: object) -> None:
                raise RuntimeError("the device is gone")

            # On torch Keras' train function calls it for each batch, elsewhere it is compiled.
            name = "train_step" if keras.backend.backend() == "torch" else "train_function"
            setattr(self.model, name, step)

    with pytest.raises(RuntimeError, match="the device is gone"):
        small_fits.fit(model, callback, Breaks(), epochs=1)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        (run,) = store.runs()
    assert (run.state, run.note) == ("failed", "RuntimeError: the device is gone")
