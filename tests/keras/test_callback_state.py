"""Tests that callbacks continue with their states: Keras' own, ours, and a user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.keras.private import run_time_attributes
from ckptstore.keras.state.callbacks import callback_keys, get_states, set_states
from ckptstore.keras.state.tree import pack, unpack

callbacks = keras.callbacks
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]


def stored(some: list[Any]) -> dict[str, Any]:
    """Return the states of callbacks through JSON and back, from memory that is overwritten afterwards."""
    document, arrays = pack(get_states(some), "callbacks")
    copies = {name: array.copy() for name, array in arrays.items()}
    found: dict[str, Any] = unpack(json.loads(json.dumps(document, allow_nan=False)), copies, "callbacks")
    return found


def model_of(**layers: Any) -> keras.Model:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5, **layers), "mse")
    return model


def begin(callback: Any, model: keras.Model, **params: Any) -> Any:
    callback.set_model(model)
    callback.set_params({"epochs": 20, "steps": 4, "verbose": 0, **params})
    callback.on_train_begin()
    return callback


def test_keys_count_within_a_class() -> None:
    some = [callbacks.EarlyStopping(), callbacks.History(), callbacks.EarlyStopping()]
    assert callback_keys(some) == ["EarlyStopping:0", "History:0", "EarlyStopping:1"]


# --- Keras' own callbacks --------------------------------------------------------------------------

LOSSES = [5.0, 4.0, 4.5, 4.2, 3.0, 3.5, 3.6, 3.7, 3.8, 3.9, 3.95]


class OwnStopping(callbacks.EarlyStopping):
    """A subclass has the state of its base."""


MAKE: dict[str, Callable[[], Any]] = {
    "EarlyStopping": lambda: callbacks.EarlyStopping("loss", patience=4, restore_best_weights=True),
    "a subclass of EarlyStopping": lambda: OwnStopping("loss", patience=4, restore_best_weights=True),
    "ReduceLROnPlateau": lambda: callbacks.ReduceLROnPlateau("loss", patience=2, cooldown=2, min_delta=0),
    "History": callbacks.History,
}


def run(callback: Any, model: keras.Model, epochs: range, trace: list[Any]) -> None:
    for epoch in epochs:
        callback.on_epoch_begin(epoch)
        model.layers[0].bias.assign(np.full(2, epoch, "float32"))
        # Keras' callbacks add to the logs of the callbacks after them.
        callback.on_epoch_end(epoch, {"loss": LOSSES[epoch]})
        rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        facts = [
            getattr(callback, name, None)
            for name in ("wait", "best", "best_epoch", "cooldown_counter", "history")
        ]
        trace.append((epoch, rate, model.stop_training, json.dumps(facts)))


@pytest.mark.parametrize("stop", range(1, len(LOSSES)))
@pytest.mark.parametrize("kind", MAKE)
def test_keras_own_callbacks_continue_as_if_nothing_had_happened(kind: str, stop: int) -> None:
    expected: list[Any] = []
    model = model_of()
    whole = begin(MAKE[kind](), model)
    run(whole, model, range(len(LOSSES)), expected)
    whole.on_train_end()

    model, trace = model_of(), []
    first = begin(MAKE[kind](), model)
    run(first, model, range(stop), trace)
    saved = stored([first])
    rate, ended = float(model.optimizer.learning_rate), model.stop_training

    model = model_of()
    model.optimizer.learning_rate, model.stop_training = rate, ended
    again = begin(MAKE[kind](), model)
    assert set_states([again], saved) == []
    run(again, model, range(stop, len(LOSSES)), trace)
    again.on_train_end()
    assert trace == expected
    assert np.asarray(model.get_weights()[1]).tolist() == np.asarray(whole.model.get_weights()[1]).tolist()


def test_settings_come_from_the_code() -> None:
    first = begin(callbacks.EarlyStopping("loss", patience=1, min_delta=1.0), model_of())
    first.on_epoch_end(0, {"loss": 3.0})
    first.on_epoch_end(1, {"loss": 3.5})
    again = begin(callbacks.EarlyStopping("loss", patience=7, min_delta=0.5), model_of())
    set_states([again], stored([first]))
    assert (again.patience, again.min_delta, again.wait, again.best) == (7, 0.5, 1, 3.0)


def test_best_weights_are_saved_without_a_copy_and_restored_as_a_copy() -> None:
    first = begin(callbacks.EarlyStopping("loss", restore_best_weights=True), model_of())
    first.on_epoch_end(0, {"loss": 3.0})
    _, arrays = pack(get_states([first]), "callbacks")
    assert [
        np.shares_memory(array, weight)
        for array, weight in zip(arrays.values(), first.best_weights, strict=True)
    ]
    saved = stored([first])
    again = begin(callbacks.EarlyStopping("loss", restore_best_weights=True), model_of())
    set_states([again], saved)
    for array in saved["EarlyStopping:0"]["attributes"]["best_weights"]:
        array.fill(99)
    assert [weight.tolist() for weight in again.best_weights] == [
        np.asarray(weight).tolist() for weight in first.best_weights
    ]


@pytest.mark.parametrize("best", [np.float32(3.1), keras.ops.convert_to_tensor(3.1), np.array(3.1), 3.1])
def test_a_best_that_is_not_a_python_number_compares_as_before(best: Any) -> None:
    first = begin(callbacks.EarlyStopping("loss", patience=3), model_of())
    first.on_epoch_end(0, {"loss": best})
    again = begin(callbacks.EarlyStopping("loss", patience=3), model_of())
    set_states([again], stored([first]))
    for current in (3.1, 3.0999, np.float32(3.1), 3.2):
        again._set_monitor_op(), first._set_monitor_op()
        assert bool(again._is_improvement(current, again.best)) == bool(
            first._is_improvement(current, first.best)
        )
    assert f"{again.best:.3f}" == "3.100"


def test_averaged_weights_that_are_in_the_model() -> None:
    first = begin(callbacks.SwapEMAWeights(swap_on_epoch=True), model_of(use_ema=True))
    first._ema_weights_in_model = True
    again = begin(callbacks.SwapEMAWeights(swap_on_epoch=True), model_of(use_ema=True))
    assert set_states([again], stored([first])) == []
    assert again._ema_weights_in_model is True


def test_keras_own_model_checkpoint_saves_after_the_same_batches(tmp_path: Path) -> None:
    def checkpoint(saves: list[Any], model: keras.Model) -> Any:
        made = callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=5)
        made._save_model = lambda epoch, batch, logs: saves.append((epoch, batch))
        return begin(made, model)

    positions = [(epoch, batch) for epoch in range(4) for batch in range(4)]

    def loop(callback: Any, some: list[tuple[int, int]]) -> None:
        for epoch, batch in some:
            if batch == 0:
                callback.on_epoch_begin(epoch)
            callback.on_train_batch_end(batch, {})

    expected: list[Any] = []
    loop(checkpoint(expected, model_of()), positions)
    assert expected == [(1, 0), (2, 1), (3, 2)]
    for stop in range(1, len(positions)):
        saves: list[Any] = []
        first = checkpoint(saves, model_of())
        loop(first, positions[:stop])
        again = checkpoint(saves, model_of())
        set_states([again], stored([first]))
        loop(again, positions[stop:])
        assert saves == expected


def test_tensorboard_keeps_its_counts_and_has_a_start_time(tmp_path: Path) -> None:
    first = callbacks.TensorBoard(tmp_path, write_steps_per_second=True)
    first._global_train_batch, first._global_test_batch = 7, 3
    first._previous_epoch_iterations = keras.ops.convert_to_tensor(4, "float32")
    again = callbacks.TensorBoard(tmp_path, write_steps_per_second=True)
    again._model = model_of()  # not by set_model, which needs TensorFlow
    assert set_states([again], stored([first])) == []
    assert (again._global_train_batch, again._global_test_batch) == (7, 3)
    again.model.optimizer.iterations.assign(9)
    assert np.isfinite(float(again._compute_steps_per_second()))


def test_callbacks_without_state_have_no_entry() -> None:
    some = [
        callbacks.LearningRateScheduler(lambda epoch: 0.1),
        callbacks.TerminateOnNaN(),
        callbacks.CSVLogger("log.csv"),
        callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        callbacks.ProgbarLogger(),
        callbacks.RemoteMonitor(),
        callbacks.Callback(),
    ]
    assert get_states(some) == {}
    assert set_states(some, {}) == []


def test_a_callback_whose_attribute_keras_no_longer_has_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(callbacks.EarlyStopping("loss"), model_of())
    first.wait = 2
    del first.best_epoch
    again = begin(callbacks.EarlyStopping("loss"), model_of())
    assert set_states([again], stored([first])) == ["EarlyStopping:0"]
    assert again.wait == 2


def test_a_callback_that_was_not_there_at_the_save_is_reported() -> None:
    assert set_states([begin(callbacks.EarlyStopping("loss"), model_of())], {}) == ["EarlyStopping:0"]


@pytest.mark.parametrize("kind", [*MAKE, "SwapEMAWeights", "ModelCheckpoint"])
def test_this_keras_has_the_attributes(kind: str, tmp_path: Path) -> None:
    """After a real fit, all of the attributes exist."""
    make = {
        **MAKE,
        "SwapEMAWeights": callbacks.SwapEMAWeights,
        "ModelCheckpoint": lambda: callbacks.ModelCheckpoint(tmp_path / "a.keras", save_freq=1),
    }
    callback = make[kind]()
    model = model_of(use_ema=kind == "SwapEMAWeights")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, callbacks=[callback])
    names = run_time_attributes(type(callback))
    assert names and set(names) <= set(vars(callback))


# --- a user's callbacks ----------------------------------------------------------------------------


class Own(callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append((epoch, np.float32(0.5)))

    def get_state(self) -> Any:
        return {"seen": self.seen, "array": np.arange(3)}

    def set_state(self, state: Any) -> None:
        self.seen = state["seen"]
        self.array = state["array"]


def test_a_users_callback_takes_part_with_two_methods() -> None:
    first = Own()
    first.on_epoch_end(3)
    saved = stored([first])
    again = Own()
    assert set_states([again], saved) == []
    assert again.seen == [(3, np.float32(0.5))]
    again.seen.append("more")
    again.array[0] = 9
    another = Own()
    set_states([another], saved)
    assert another.seen == [(3, np.float32(0.5))] and another.array[0] == 0


def test_a_subclass_with_its_own_state_has_that_of_its_base_too() -> None:
    class Both(callbacks.EarlyStopping):
        extra = 0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.extra += 1
            super().on_epoch_end(epoch, logs)

        def get_state(self) -> Any:
            return self.extra

        def set_state(self, state: Any) -> None:
            self.extra = state

    first = begin(Both("loss"), model_of())
    first.on_epoch_end(0, {"loss": 2.0})
    again = begin(Both("loss"), model_of())
    assert set_states([again], stored([first])) == []
    assert (again.extra, again.best) == (1, 2.0)


def test_a_callback_without_state_by_its_own_account_is_left_out() -> None:
    class Without(Own):
        def get_state(self) -> Any:
            raise NotImplementedError

    assert get_states([Without()]) == {}


def test_the_error_names_the_callback_and_the_place() -> None:
    own = Own()
    own.seen = [1, 2, object()]
    with pytest.raises(ckptstore.InvalidArgumentError, match=r"^callbacks/Own:0/state/seen\[2\]='object'"):
        pack(get_states([own]), "callbacks")


# --- callbacks with unknown state ----------------------------------------------------------------


class Assigns(callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.now = epoch


class Counts(callbacks.Callback):
    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.count = count

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step()

    def step(self) -> None:
        self.count += 1


class Collects(callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.losses: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.losses.append(0.0)


class Inherits(Collects):
    """Its base has the hooks."""


class OfKeras(callbacks.EarlyStopping):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.patience += 1
        super().on_epoch_end(epoch, logs)


class Settings(callbacks.Callback):
    def __init__(self, every: int, places: list[str], hook: Any = print) -> None:
        super().__init__()
        self.every = every
        self._places = places
        self.hook = hook
        self.doubled = 2 * every

    def on_train_begin(self, logs: Any = None) -> None:
        self.rate = 0.5

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch > self.every
        self.model.optimizer.learning_rate = self.rate


class Restarts(callbacks.EarlyStopping):
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.wait = 0


class NoHooks(callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, int] = {}


@pytest.mark.parametrize("make", [Assigns, Counts, Collects, Inherits, lambda: OfKeras("loss")])
def test_callbacks_that_seem_to_have_state_are_reported(make: Callable[[], Any]) -> None:
    callback = begin(make(), model_of())
    assert set_states([callback], stored([callback])) == callback_keys([callback])


@pytest.mark.parametrize("make", [lambda: Settings(3, []), NoHooks, lambda: Restarts("loss"), Own])
def test_callbacks_that_seem_to_have_no_state_are_not_reported(make: Callable[[], Any]) -> None:
    callback = begin(make(), model_of())
    assert set_states([callback], stored([callback])) == []


# --- our ModelCheckpoint -----------------------------------------------------------------------------

EPOCHS, STEPS = 4, 4


class Killed(Exception):
    pass


def saved_positions(store: Path) -> list[tuple[int, int | None, int | None]]:
    with ckptstore.CheckpointStore(store, read_only=True) as opened:
        return [(checkpoint.epoch, checkpoint.batch, checkpoint.step) for checkpoint in opened.checkpoints()]


@pytest.mark.parametrize("save_freq", [3, "epoch"])
def test_our_callback_continues_counting_from_any_batch(tmp_path: Path, save_freq: Any) -> None:
    positions = [(epoch, batch) for epoch in range(EPOCHS) for batch in range(STEPS)]

    def make(directory: str) -> Any:
        path = tmp_path / directory / "{epoch}.weights.h5"
        made = ckptstore.ModelCheckpoint(path, save_freq=save_freq, save_weights_only=True, monitor="loss")
        return begin(made, model_of(), steps=STEPS)

    def loop(callback: Any, some: list[tuple[int, int]]) -> None:
        for epoch, batch in some:
            if batch == 0:
                callback.on_epoch_begin(epoch)
            callback.on_train_batch_end(batch, {"loss": 1.0})
            if batch == STEPS - 1:
                callback.on_epoch_end(epoch, {"loss": 1.0})

    whole = make("whole")
    loop(whole, positions)
    whole.on_train_end()
    expected = saved_positions(whole.store_path)
    assert len(expected) == (EPOCHS if save_freq == "epoch" else EPOCHS * STEPS // save_freq)
    for stop in (1, 3, 4, 6, 9, 12, 15):
        first = make(str(stop))
        loop(first, positions[:stop])
        saved = stored([first])
        first.on_train_end()
        again = make(str(stop))
        assert set_states([again], saved) == []
        loop(again, positions[stop:])
        again.on_train_end()
        assert saved_positions(again.store_path) == expected


class Resumed(callbacks.Callback):
    """Resumes a fit within an epoch, and hides from another callback the batches that it saw before."""

    def __init__(
        self,
        inner: Any,
        *,
        kill_at: Any = None,
        saved_at: Any = (-1, -1),
        saved: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.inner, self.kill_at, self.saved_at, self.saved = inner, kill_at, saved_at, saved
        self.epoch = 0

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.inner.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self.inner.set_params(self.params)
        self.inner.on_train_begin(logs)
        if self.saved is not None:
            assert set_states([self.inner], self.saved) == []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        if epoch != self.saved_at[0]:
            self.inner.on_epoch_begin(epoch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) > self.saved_at:
            self.inner.on_train_batch_end(batch, logs)
        if (self.epoch, batch) == self.kill_at:
            self.saved = stored([self.inner])
            raise Killed

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.inner.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self.inner.on_train_end(logs)


@pytest.mark.parametrize("kill_at", [(0, 0), (1, 1), (1, 3)])
@pytest.mark.parametrize("save_freq", [3, "epoch"])
def test_our_callback_continues_in_a_real_fit(
    tmp_path: Path, kill_at: tuple[int, int], save_freq: Any
) -> None:
    x, y = np.ones((STEPS * 2, 3), "float32"), np.ones((STEPS * 2, 2), "float32")

    def fit(directory: str, initial_epoch: int = 0, **resumed: Any) -> Any:
        path = tmp_path / directory / "{epoch}.weights.h5"
        ours = ckptstore.ModelCheckpoint(path, save_freq=save_freq, save_weights_only=True, monitor="loss")
        by = Resumed(ours, **resumed)
        try:
            model_of().fit(
                x, y, batch_size=2, epochs=EPOCHS, initial_epoch=initial_epoch, verbose=0, callbacks=[by]
            )
        except Killed:
            return by.saved
        return saved_positions(ours.store_path)

    expected = fit("whole")
    saved = fit("killed", kill_at=kill_at)
    assert fit("killed", kill_at[0], saved=saved, saved_at=kill_at) == expected
