"""A real fit under `ckptstore run`: it hangs in a callback, is ended, started again, and finishes to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest

from ckptstore.store.store import CheckpointStore
from ckptstore.supervisor.supervisor_lock import has_supervisor
from supervised import Ran

pytestmark = [
    pytest.mark.slow,
    pytest.mark.jax_is_enough,  # what hangs is no part of a step
    pytest.mark.skipif(sys.platform != "linux", reason="needs a lock that tells of a living training"),
]

TRAIN = """
import os, sys, threading
import keras, numpy as np
import ckptstore
keras.utils.set_random_seed(7)
x = np.random.rand(64, 4).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
class Stuck(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_end(self, batch, logs=None):
        if os.path.exists("hang") and (self.epoch, batch) == (1, 5):
            os.unlink("hang")
            print("about to hang")
            self.wait_for_a_lock_that_nobody_releases()
    def wait_for_a_lock_that_nobody_releases(self):
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    def get_state(self): return {}
    def set_state(self, state): pass
model.fit(x, x.sum(1), epochs=3, batch_size=8, verbose=0,
          callbacks=[ckptstore.StoreCheckpoint("store", save_freq=2), Stuck()])
print("weights", model.get_weights()[0].tobytes().hex())
"""


def test_a_fit_that_hangs_is_finished_by_itself_to_the_bit(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    assert keras.backend.backend()  # the same backend in the programs
    (tmp_path / "plain").mkdir()
    undisturbed = subprocess.run(
        [sys.executable, script], cwd=tmp_path / "plain", capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "hang").touch()
    options = ("--hang-after", 6, "--grace", 1, "--pause", 0)
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, script, timeout_s=240)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, undisturbed.splitlines()[-1]), ran.err
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        hung, finished = store.attempts()
        (run,) = store.runs()
    assert (hung.reason, hung.signal, hung.supervised) == ("hang", "SIGKILL", True)
    assert (finished.reason, finished.exit_code) == ("finished", 0)
    assert finished.resumed_from is not None and finished.batches_lost is not None
    assert hung.detail["output"] and (hung.detail["phase"], hung.detail["epoch"]) == ("training", 1)
    assert "faulthandler" in hung.detail["dump"]
    assert hung.log == tmp_path / "store" / "logs" / "default" / "1.log"
    text = hung.log.read_text()
    assert "about to hang" in text and "in wait_for_a_lock_that_nobody_releases" in text
    assert (run.state, run.attempts) == ("finished", 2)
    # Nothing is left: no process, no lock, no hidden directory, no log without an attempt.
    assert not has_supervisor(tmp_path / "store")
    assert not list(tmp_path.glob(".ckptstore*"))
    assert not list((tmp_path / "store" / "logs" / ".starts").iterdir())
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(script) not in processes
