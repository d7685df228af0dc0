"""Fits that are called, set up or ended in unusual ways resume exactly, or report what is not exact."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.keras.private import FitLoop
from unusual_models import FEATURES, ROWS, gan, own_step, plain

BACKEND = keras.backend.backend()
# What Keras' own code does on torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]


def fit(model: Any, *callbacks: Any, alone: bool = False, **options: Any) -> Any:
    draw = np.random.default_rng(0)
    data = {"x": draw.normal(size=(ROWS, FEATURES)).astype("float32"), "y": draw.normal(size=(ROWS, 1))}
    given = {**data, "batch_size": 4, "epochs": 3, "verbose": 0, **options}
    return model.fit(**given, callbacks=callbacks[0] if alone else list(callbacks))


def saving(path: Path, **options: Any) -> ckptstore.StoreCheckpoint:
    return ckptstore.StoreCheckpoint(
        path, **{"monitor": "loss", "background": False, "run": "default", **options}
    )


class Acting(keras.callbacks.Callback):  # type: ignore[misc]
    """Does something at one call of a hook."""

    def __init__(self, hook: str, at: int, act: Callable[[Any], None]) -> None:
        super().__init__()
        self.left, self.act = at, act
        setattr(self, hook, self.call)

    def call(self, *arguments: Any, **named: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.act(self)

    def get_state(self) -> Any:
        raise NotImplementedError

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class WarmUp(keras.callbacks.Callback):  # type: ignore[misc]
    """Trains on a batch before all others, and keeps nothing."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.model.train_on_batch(np.ones((4, FEATURES), "float32"), np.ones((4, 1), "float32"))

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """There is none."""


class EndOfFitError(Exception):
    """Ends a fit."""


def end(_: Any) -> None:
    raise EndOfFitError


def stop(callback: Any) -> None:
    callback.model.stop_training = True


def state(model: Any, history: Any) -> Any:
    # The one that Keras compiles by itself is not used where a model has others.
    own = [getattr(model, name, None) for name in ("generator_optimizer", "critic_optimizer")]
    optimizers = [optimizer for optimizer in own if optimizer is not None] or [model.optimizer]
    variables = [
        *model.variables,
        *(variable for optimizer in optimizers for variable in optimizer.variables),
    ]
    return [np.array(variable).tobytes() for variable in variables], history.history, history.epoch


def made(make: Callable[[], Any]) -> Any:
    keras.utils.set_random_seed(1)
    return make()


def interrupt(
    model: Any, *callbacks: Any, hook: str = "on_train_batch_end", at: int = 9, **options: Any
) -> None:
    with pytest.raises(EndOfFitError):
        fit(model, *callbacks, Acting(hook, at, end), **options)


def assert_exact(make: Callable[[], Any], path: Path, **options: Any) -> None:
    """Return True if a fit that is interrupted in its second epoch ends as one that was not."""
    whole = made(make)
    expected = state(whole, fit(whole, **options))
    interrupt(made(make), saving(path), **options)
    again, callback = made(make), saving(path)
    history = fit(again, callback, **options)
    assert callback.resumed_from is not None
    assert (callback.resumed_from.epoch, callback.resumed_from.batch) == (1, 2)
    assert state(again, history) == expected


# --- models and steps ----------------------------------------------------------------------------


def test_eager_steps(tmp_path: Path) -> None:
    assert_exact(lambda: plain(run_eagerly=True), tmp_path)


def test_a_train_step_of_the_users(tmp_path: Path) -> None:
    assert_exact(own_step, tmp_path)


@pytest.mark.skipif(BACKEND == "jax", reason="Keras trains with one optimizer there")
def test_two_optimizers(tmp_path: Path) -> None:
    """Neither is built before the first step that it makes, also not in the process that resumes."""
    assert_exact(gan, tmp_path)


# --- callbacks -----------------------------------------------------------------------------------


def test_a_callback_that_is_passed_alone(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))
    interrupt(made(plain), saving(tmp_path))
    again = made(plain)
    assert state(again, fit(again, saving(tmp_path), alone=True)) == expected


def test_a_list_of_callbacks_made_by_hand(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))

    def listed(model: Any, *callbacks: Any) -> Any:
        return keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=model, epochs=3, steps=ROWS // 4, verbose=0
        )

    first = made(plain)
    with pytest.raises(EndOfFitError):
        fit(first, listed(first, saving(tmp_path), Acting("on_train_batch_end", 9, end)), alone=True)
    again = made(plain)
    both = listed(again, saving(tmp_path))
    assert state(again, fit(again, both, alone=True)) == expected
    # The list may be used again: nothing of ours is left in it.
    assert not [name for name in vars(both) if name.startswith("on_")]


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("used", [False, True])
def test_a_copied_callback(tmp_path: Path, copied: Callable[[Any], Any], used: bool) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))
    callback = saving(tmp_path)
    if used:
        interrupt(made(plain), callback)
        callback.set_model(None)
    again, other = made(plain), copied(callback)
    assert state(again, fit(again, other)) == expected
    assert (other.resumed_from is not None) == used
    assert other.store_path == callback.store_path


class Inner(keras.callbacks.Callback):  # type: ignore[misc]
    """Trains another model whenever an epoch ends, saved in a store of its own."""

    def __init__(self, path: Path | None) -> None:
        super().__init__()
        self.path = path
        self.found: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        keras.utils.set_random_seed(epoch)
        model = plain()
        callbacks = [] if self.path is None else [saving(self.path, run=f"epoch-{epoch}")]
        self.found.append(state(model, fit(model, *callbacks)))
        keras.utils.set_random_seed(10 + epoch)

    def get_state(self) -> Any:
        return {}

    def set_state(self, state: Any) -> None:
        """State of this process alone is not restored."""


def test_a_fit_inside_of_another(tmp_path: Path) -> None:
    whole, inner = made(plain), Inner(None)
    expected = state(whole, fit(whole, inner))
    first = Inner(tmp_path / "inner")
    interrupt(made(plain), saving(tmp_path / "outer"), first, at=9)
    again, second = made(plain), Inner(tmp_path / "inner")
    assert state(again, fit(again, saving(tmp_path / "outer"), second)) == expected
    assert [*first.found, *second.found] == inner.found


def test_a_callback_that_trains_as_training_begins(tmp_path: Path) -> None:
    """On JAX a step takes over the memory of the values that it replaces."""
    whole = made(plain)
    expected = state(whole, fit(whole, WarmUp()))
    interrupt(made(plain), saving(tmp_path), WarmUp())
    again, callback = made(plain), saving(tmp_path)
    history = fit(again, callback, WarmUp())
    assert callback.resumed_from is not None
    assert state(again, history) == expected


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [False, True])
def test_a_callback_that_trains_as_a_finished_run_is_started_again(averaged: bool, tmp_path: Path) -> None:
    """Keras' change of the weights after the last epoch is restored too."""

    def make() -> Any:
        return plain(optimizer=keras.optimizers.Adam(0.01, use_ema=averaged))

    whole = made(make)
    expected = state(whole, fit(whole, WarmUp()))
    fit(made(make), saving(tmp_path), WarmUp())
    again = made(make)
    assert state(again, fit(again, saving(tmp_path), WarmUp())) == expected


class BeginningsSeen(keras.callbacks.Callback):  # type: ignore[misc]
    """Counts the epochs that it has seen begin."""

    epochs = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1

    def get_state(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def set_state(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]


@pytest.mark.parametrize(
    ("hook", "at", "saved"),
    [
        ("on_train_batch_begin", 9, [(0, None), (1, 1)]),  # the first epoch is the best so far
        ("on_train_batch_begin", 7, [(0, None)]),  # before the second epoch's first batch
        ("on_epoch_begin", 2, [(0, None)]),
    ],
)
def test_an_exception_in_a_beginning_saves_first(hook: str, at: int, saved: Any, tmp_path: Path) -> None:
    """Also where a scheduler has set the rate of an epoch that did not begin."""

    def scheduler() -> Any:
        return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * (0.5 if epoch else 1.0))

    whole = made(plain)
    expected = state(whole, fit(whole, scheduler()))
    interrupt(made(plain), saving(tmp_path, save_freq=1000), scheduler(), BeginningsSeen(), hook=hook, at=at)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert [(checkpoint.epoch, checkpoint.batch) for checkpoint in store.checkpoints()] == saved
    again, begun = made(plain), BeginningsSeen()
    history = fit(again, saving(tmp_path, save_freq=1000), scheduler(), begun)
    assert state(again, history) == expected
    assert begun.epochs == 3


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_epoch_begin"])
def test_an_exception_before_anything_was_trained_saves_nothing(hook: str, tmp_path: Path) -> None:
    # Without a best, no epoch's end is saved for it.
    unsaved = {"save_on_exception": False, "save_freq": 99, "monitor": "val_loss"}
    for at, options in ((1, {}), (2, unsaved)):
        # Kept: what is thrown away lets go of the run by itself.
        callback = saving(tmp_path, **options)
        interrupt(made(plain), callback, hook=hook, at=at)
        with ckptstore.CheckpointStore(tmp_path) as store:
            assert store.checkpoints() == []
            store.claim("default")


@pytest.mark.filterwarnings("ignore:callbacks without get_state.. and set_state:UserWarning")
@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_epoch_begin"])
def test_an_exception_before_a_resumed_run_continues_saves_nothing(hook: str, tmp_path: Path) -> None:
    fit(made(plain), saving(tmp_path), epochs=1)
    callback = saving(tmp_path)
    interrupt(made(plain), callback, hook=hook, at=1)
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert [(checkpoint.epoch, checkpoint.batch) for checkpoint in store.checkpoints()] == [(0, None)]
        store.claim("default")


def test_a_stop_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole, Acting("on_train_batch_end", 9, stop)))
    first, started = made(plain), saving(tmp_path, save_freq=1)
    assert state(first, fit(first, started, Acting("on_train_batch_end", 9, stop))) == expected
    again = made(plain)
    with pytest.warns(UserWarning, match="without their state: Acting"):
        history = fit(again, saving(tmp_path, save_freq=1), Acting("on_train_batch_end", 1, end))
    assert state(again, history) == expected  # nothing was trained


def test_a_run_stopped_by_a_callback_continues_with_more_epochs(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))
    fit(made(plain), saving(tmp_path), Acting("on_epoch_end", 1, stop), epochs=2)
    assert fit(made(plain), saving(tmp_path), epochs=2).epoch == [0]
    again = made(plain)
    assert state(again, fit(again, saving(tmp_path))) == expected


def test_a_stop_in_the_middle_of_an_epoch_that_did_not_end(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole, Acting("on_train_batch_end", 9, stop)))
    with pytest.raises(EndOfFitError):
        fit(
            made(plain),
            Acting("on_train_batch_end", 9, stop),
            saving(tmp_path, save_freq=1, save_on_exception=False),
            Acting("on_epoch_end", 2, end),
        )
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert store.get("latest").batch == 2
    again = made(plain)
    assert state(again, fit(again, saving(tmp_path, save_freq=1))) == expected


def test_the_newest_is_damaged(tmp_path: Path) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))
    interrupt(made(plain), saving(tmp_path, save_freq=2))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        *_, before, newest = store.checkpoints()
    content = bytearray(newest.path.read_bytes())
    content[len(content) // 2] ^= 1
    newest.path.chmod(0o644)
    newest.path.write_bytes(content)
    again, callback = made(plain), saving(tmp_path, save_freq=2)
    with pytest.warns(UserWarning, match=f"version {newest.version} is put aside"):
        history = fit(again, callback)
    assert callback.resumed_from == before
    assert state(again, history) == expected


def test_a_signal_ends_the_skipping_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(plain)
    expected = state(whole, fit(whole))
    interrupt(made(plain), saving(tmp_path), at=11)
    passed = []

    def show(_: Any, batch: int) -> None:
        passed.append(batch)
        if batch == 0:  # a second one would end everything at once
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(ckptstore.TrainingInterrupted):
        patched.setattr(FitLoop, "show_progress", show)
        fit(made(plain), saving(tmp_path))
    assert passed == [0]
    again = made(plain)
    assert state(again, fit(again, saving(tmp_path))) == expected


# --- what has changed in between -----------------------------------------------------------------


def warned(tmp_path: Path, make: Callable[[], Any], **options: Any) -> list[str]:
    with pytest.warns(UserWarning, match="exact|other settings") as found:
        fit(made(make), saving(tmp_path), **options)
    return [str(warning.message) for warning in found if warning.category is UserWarning]


def test_another_batch_size_is_a_warning(tmp_path: Path) -> None:
    """Also where an epoch has as many batches as before."""
    interrupt(made(plain), saving(tmp_path), hook="on_epoch_begin", at=2, batch_size=ROWS - 1)
    (message,) = warned(tmp_path, plain, batch_size=ROWS - 2)
    assert f"batch_size was {ROWS - 1} when the checkpoint was saved, and is {ROWS - 2} now" in message


def test_another_learning_rate_is_a_warning_and_not_used(tmp_path: Path) -> None:
    interrupt(made(plain), saving(tmp_path))
    model = made(lambda: plain(optimizer=keras.optimizers.Adam(0.5)))
    with pytest.warns(UserWarning, match="other settings") as found:
        fit(model, saving(tmp_path))
    (message,) = [str(warning.message) for warning in found if warning.category is UserWarning]
    assert "learning_rate 0.01 -> 0.5 (the run keeps the saved 0.01; set another in a callback)" in message
    assert float(np.array(model.optimizer.learning_rate)) == np.float32(0.01)


def test_a_learning_rate_that_is_not_used_is_a_warning_at_each_resume(tmp_path: Path) -> None:
    def adam(rate: float) -> Any:
        return made(lambda: plain(optimizer=keras.optimizers.Adam(rate)))

    interrupt(adam(0.01), saving(tmp_path))
    for epochs in (4, 5, 5):  # at the last there is nothing left to train, and it is not refused
        with pytest.warns(UserWarning, match="learning_rate 0.01 -> 0.5 .the run keeps the saved 0.01;"):
            fit(adam(0.5), saving(tmp_path), epochs=epochs)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*learning_rate")
        fit(adam(0.01), saving(tmp_path), epochs=6)


def test_a_learning_rate_changed_by_training_is_no_warning(tmp_path: Path) -> None:
    reduce = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=9.0, factor=0.5)
    fit(made(plain), saving(tmp_path), reduce, epochs=2)
    model = made(plain)
    fit(model, saving(tmp_path), keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=99))
    assert float(np.array(model.optimizer.learning_rate)) == np.float32(0.005)


def test_callbacks_that_the_saved_fit_did_not_have_are_named_as_new(tmp_path: Path) -> None:
    interrupt(made(plain), saving(tmp_path), at=10)
    stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=99)
    with pytest.warns(UserWarning, match="callbacks") as found:
        interrupt(made(plain), saving(tmp_path), stopping, at=1)
    said = [str(warning.message) for warning in found if "callbacks" in str(warning.message)]
    new = "callbacks that the fit did not have when it was saved start as new: EarlyStopping"
    assert new in said
    with warnings.catch_warnings():  # it is saved now
        warnings.filterwarnings("error", message=".*start as new.*")
        fit(made(plain), saving(tmp_path), stopping)


def test_weights_that_are_not_finite_are_a_warning_at_the_resume(tmp_path: Path) -> None:
    """The loss of the step that spoilt them was finite: the checkpoint is a resume point."""

    def spoil(callback: Any) -> None:
        kernel = callback.model.layers[-1].kernel
        kernel.assign(np.full(kernel.shape, np.nan))

    fit(made(plain), saving(tmp_path), Acting("on_train_batch_end", 6, spoil), epochs=1)
    model = made(plain)
    with pytest.warns(UserWarning, match=r"version 1 .*not finite.*kernel"):
        fit(model, saving(tmp_path))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert [checkpoint.resumable for checkpoint in store.checkpoints()] == [True, False, False]


# --- at once -------------------------------------------------------------------------------------


def test_two_runs_in_two_threads(tmp_path: Path) -> None:
    models = [made(plain), made(plain)]
    both = threading.Barrier(2)

    def meet(_: Any = None) -> None:
        both.wait(60)

    def first() -> None:
        meetings = [Acting("on_train_batch_end", at, meet) for at in (1, 2)]
        fit(models[0], saving(tmp_path, run="one"), *meetings)

    def second() -> None:
        """Begins in the midst of the first, which then waits for it."""
        meet()
        fit(models[1], saving(tmp_path, run="other"), Acting("on_train_batch_end", 2, meet))

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        for run, model in zip(("one", "other"), models, strict=True):
            assert [(checkpoint.epoch, checkpoint.step) for checkpoint in store.checkpoints(run)] == [
                (0, 6),
                (1, 12),
                (2, 18),
            ]
            last = plain()
            store.restore(store.latest(run), last)
            assert all(
                np.array_equal(*pair) for pair in zip(last.get_weights(), model.get_weights(), strict=True)
            )


TRAINING = """
import sys, keras, numpy as np, ckptstore

class Waiting(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if sys.argv[2] == "wait":
            print("training", flush=True)
            sys.stdin.readline()

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
callback = ckptstore.StoreCheckpoint(sys.argv[1], monitor="loss")
model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0, callbacks=[callback, Waiting()])
"""


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Any]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", TRAINING, tmp_path, "wait"]
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "training\n"
        yield process
        process.communicate("\n")
        assert process.returncode == 0


@pytest.mark.jax_is_enough
def test_a_second_process_with_the_same_run_is_refused_in_one_line(training: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-c", TRAINING, tmp_path, "go"]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    line = second.stderr.splitlines()[-1]
    assert line.startswith("ckptstore.errors.RunLockedError: ")
    assert f"run 'default' is being written by process {training.pid}" in line
    assert "give each fit that writes at once a name" in line
    assert sorted(path for path in tmp_path.rglob("*") if "tmp" not in path.parts) == [
        path for path in before if "tmp" not in path.parts
    ]
