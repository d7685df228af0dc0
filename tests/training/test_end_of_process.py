"""A training that a signal stops ends with 75 and releases its run, whatever has become of what it prints to."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptstore
from ckptstore import CheckpointStore
from small_fits import fit, model
from writer_processes import needs_process, writers

# The last save waits for the store's lock, so that the fit prints a line about it while it ends. Its outcome carries a
# warning, and warnings are errors.
SCRIPT = textwrap.dedent("""
    import os, signal, sys, threading, time, warnings
    from pathlib import Path
    import keras
    from small_fits import fit, model
    import ckptstore
    from ckptstore.storage.layout import Layout
    from ckptstore.storage.locks import store_lock

    store = sys.argv[1]
    warnings.simplefilter("error", UserWarning)
    keras.utils.set_random_seed(1)

    def stop(*_):
        held = threading.Event()
        def hold():
            with store_lock(Layout(Path(store)).locks):
                held.set()
                time.sleep(1.3)
        threading.Thread(target=hold).start()
        held.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    keep = ckptstore.keep_best("val_lost", 1, mode="min")
    callback = ckptstore.StoreCheckpoint(store, monitor="loss", keep=keep, verbose=1)
    fit(model(), callback, keras.callbacks.LambdaCallback(on_epoch_end=stop), epochs=3)
    """)


def without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def never_read() -> int:
    """Return a full pipe; its reader stays open, with the test."""
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return writer


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        pytest.param(without_reader, "process", marks=needs_process),
        pytest.param(without_reader, "thread", marks=pytest.mark.jax_is_enough),
        pytest.param(full, "process", marks=[needs_process, pytest.mark.jax_is_enough]),
        pytest.param(never_read, "thread", marks=pytest.mark.jax_is_enough),
        pytest.param(None, "process", marks=needs_process),
    ],
    ids=["no reader", "no reader, thread", "full disk", "never read", "closed"],
)
def test_a_stopped_training_ends_with_75_and_releases_the_run(
    stream: Callable[[], int] | None, kind: str, tmp_path: Path
) -> None:
    """The store's name cannot be printed in this locale, and a filter makes an exception of the last warning."""
    root = tmp_path / "größe"
    environment = {
        **os.environ,
        "CKPTSTORE_WRITER": kind,
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
    }
    environment.pop("PYTHONUNBUFFERED", None)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, script, root]
    began = time.monotonic()
    if stream is None:
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
        code = subprocess.run(shell, env=environment, timeout=200, check=False).returncode
    else:
        descriptor = stream()
        try:
            code = subprocess.run(
                command, env=environment, stdout=descriptor, stderr=descriptor, timeout=200, check=False
            ).returncode
        finally:
            os.close(descriptor)
    assert code == 75
    with CheckpointStore(root) as store:
        store.claim("default")
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [12]
        assert store.verify() == []
    assert time.monotonic() - began < 180


PIPELINE = textwrap.dedent("""
    import os, signal, sys, time
    import keras
    from small_fits import AtBatch, fit, model
    import ckptstore

    reader, writer = os.pipe()
    os.dup2(writer, 1)

    def stop():
        os.close(reader)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # Keras prints at most every 0.05 s

    callback = ckptstore.StoreCheckpoint(sys.argv[1], monitor="loss", save_on_exception=False)
    fit(model(), callback, AtBatch(5, stop), epochs=3, verbose=1)
    """)


def test_a_signal_that_also_ends_the_reader_of_the_progress_bar_ends_with_75(tmp_path: Path) -> None:
    """As in ``python train.py | tee log``: Keras' own bar raises BrokenPipeError before the fit sees the signal."""
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [6]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
def test_a_warning_that_is_an_error_ends_a_fit_that_releases_the_run(
    background: bool, tmp_path: Path
) -> None:
    """The save that the warning is about is complete; the same fit goes on where it stopped."""
    keep = ckptstore.keep_best("val_lost", 1, mode="min")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", keep=keep, background=background)
        with pytest.raises(UserWarning, match="nothing is removed"):
            fit(model(), callback, epochs=1)
    assert writers(tmp_path) == []
    with CheckpointStore(tmp_path) as store:
        store.claim("default")
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [0]
    again = ckptstore.StoreCheckpoint(tmp_path, monitor="loss")
    fit(model(), again, epochs=2)
    assert again.resumed_from is not None
