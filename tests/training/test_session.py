"""The end of a fit that resumes, when something else ends it: effects on the next fit and on other runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore

# What Keras' own code does on torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Without a seed TensorFlow shuffles as no other process would, and a resume says so."""
    keras.utils.set_random_seed(1)


def fit(*callbacks: Any, trained: Any = None, **options: Any) -> Any:
    trained = model() if trained is None else trained
    draw = np.random.default_rng(0)
    given = {"x": draw.normal(size=(24, 3)), "y": draw.normal(size=(24, 1)), "batch_size": 4}
    return trained.fit(**{**given, "epochs": 2, "verbose": 0, **options}, callbacks=list(callbacks))


def model() -> Any:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile("sgd", "mse")
    return made


@contextmanager
def own_handler(number: signal.Signals) -> Iterator[Callable[..., None]]:
    """Install a handler, whatever the callbacks of a test before have left."""

    def handler(*_: object) -> None: ...

    before = signal.signal(number, handler)
    try:
        yield handler
    finally:
        signal.signal(number, before)


class Acting(keras.callbacks.Callback):
    """Does something in one hook, at one of its calls."""

    def __init__(self, hook: str, at: int, act: Any) -> None:
        super().__init__()
        self.act, self.at, self.calls = act, at, 0
        setattr(self, hook, self.call)

    def call(self, *arguments: Any, **named: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.act(self)

    def get_state(self) -> Any:
        raise NotImplementedError

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


def raising(error: BaseException) -> Any:
    def act(_: Any) -> None:
        raise error

    return act


def stop(callback: Any) -> None:
    callback.model.stop_training = True


def interrupted(path: Path, at: int) -> None:
    with pytest.raises(RuntimeError):
        fit(
            ckptstore.StoreCheckpoint(path),
            Acting("on_train_batch_end", at, raising(RuntimeError("as asked"))),
        )


def test_a_signal_at_the_very_end_is_not_swallowed(tmp_path: Path) -> None:
    backup = ckptstore.BackupAndRestore(tmp_path / "store", signals=[signal.SIGUSR1])
    last = Acting("on_train_end", 1, lambda _: signal.raise_signal(signal.SIGUSR1))
    with own_handler(signal.SIGUSR1) as handler:
        with pytest.raises(ckptstore.TrainingInterrupted):
            fit(backup, last)
        assert signal.getsignal(signal.SIGUSR1) == handler
    # The same command is started again, and trains nothing twice.
    assert backup.last is not None
    assert backup.last.path.exists()


def test_a_program_that_has_abandoned_a_fit_and_handles_a_signal_is_stopped_in_its_next(
    tmp_path: Path,
) -> None:
    def train_step(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    made = model()
    made.train_step = train_step
    # Kept, as by a notebook: while it lives it would record a signal.
    abandoned = ckptstore.StoreCheckpoint(tmp_path / "first", signals=[signal.SIGUSR1])
    with pytest.raises(KeyboardInterrupt):
        fit(abandoned, trained=made)
    sends = Acting("on_train_batch_begin", 2, lambda _: signal.raise_signal(signal.SIGUSR1))
    with own_handler(signal.SIGUSR1) as handler:
        with pytest.raises(ckptstore.TrainingInterrupted):
            fit(ckptstore.StoreCheckpoint(tmp_path / "second", signals=[signal.SIGUSR1]), sends)
        assert signal.getsignal(signal.SIGUSR1) == handler


@pytest.mark.parametrize(
    ("call", "hook"), [("evaluate", "on_test_batch_end"), ("predict", "on_predict_batch_end")]
)
def test_a_signal_after_an_evaluation_that_has_failed_is_the_programs(
    call: str, hook: str, tmp_path: Path
) -> None:
    kept = ckptstore.StoreCheckpoint(tmp_path / "store", signals=[signal.SIGUSR1])
    data = [np.ones((8, 3)), np.ones((8, 1))][: 1 + (call == "evaluate")]
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        callbacks = [kept, Acting(hook, 1, raising(ValueError("as asked")))]
        with pytest.raises(ValueError, match="as asked"):
            getattr(model(), call)(*data, verbose=0, callbacks=callbacks)
        signal.raise_signal(signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
        # While one runs, it is ended by a signal, which the program gets then.
        sends = Acting(hook, 1, lambda _: signal.raise_signal(signal.SIGUSR1))
        seen = Acting(hook, 2, raising(AssertionError("a second batch")))
        with pytest.raises(ckptstore.TrainingInterrupted):
            getattr(model(), call)(*data, batch_size=4, verbose=0, callbacks=[sends, kept, seen])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_callbacks_see_the_end_of_an_epoch_in_which_one_exits(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(
            Acting("on_epoch_end", 1, raising(SystemExit(3))),
            ckptstore.StoreCheckpoint(tmp_path / "store", run="default"),
        )
    assert fit(ckptstore.StoreCheckpoint(tmp_path / "store", run="default")).epoch == [0, 1]


def test_a_fit_that_never_begins_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    interrupted(tmp_path / "store", at=8)
    trained, before = model(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="as asked"):
        fit(
            ckptstore.StoreCheckpoint(tmp_path / "store", run="default"),
            Acting("on_train_begin", 1, raising(ValueError("as asked"))),
            trained=trained,
        )
    assert signal.getsignal(signal.SIGTERM) == before
    assert fit(trained=trained).epoch == [0, 1]


def test_an_epoch_of_other_batches_is_reported_or_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "store", at=5)
    with pytest.raises(ckptstore.InvalidArgumentError, match="after batch 5"):
        fit(ckptstore.StoreCheckpoint(tmp_path / "store", run="default"), batch_size=12)
    with pytest.warns(UserWarning, match="had 6 batches .* has 12 now"):
        fit(ckptstore.StoreCheckpoint(tmp_path / "store", run="default"), batch_size=2)


def test_backups_of_an_early_stop_stay_when_it_is_started_again(tmp_path: Path) -> None:
    for _ in range(2):
        fit(ckptstore.BackupAndRestore(tmp_path / "store"), Acting("on_epoch_end", 1, stop), epochs=5)
        assert (tmp_path / "store").exists()


def test_the_end_of_a_backed_up_fit_leaves_other_runs_alone(tmp_path: Path) -> None:
    fit(ckptstore.StoreCheckpoint(tmp_path / "store", run="default"))
    fit(ckptstore.BackupAndRestore(tmp_path / "store"))
    with ckptstore.CheckpointStore(tmp_path / "store", read_only=True) as store:
        assert [checkpoint.run for checkpoint in store.checkpoints()] == ["default", "default"]


def test_a_save_that_ends_the_fit_leaves_the_run_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path)
    monkeypatch.setattr(callback, "keep", lambda checkpoints: 1 / 0)
    trained = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    trained.compile("sgd", "mse")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ckptstore.UnfinishedSaveError):
        trained.fit(np.zeros((8, 3)), np.zeros((8, 1)), verbose=0, callbacks=[callback])
    assert signal.getsignal(signal.SIGTERM) == before
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.claim("default")
