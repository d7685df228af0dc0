"""A loss that goes bad ends the training, or takes it back to before; whatever it is, nothing bad is ever the best."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bad_loss_runs
import ckptstore
from ckptstore.errors import InvalidArgumentError
from ckptstore.manifest.salvage import salvage
from resume_runs import Runs, found
from small_fits import another_process

# Its children import Keras.
pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
BACKEND = os.environ["KERAS_BACKEND"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(BACKEND, tmp_path_factory.mktemp("runs"), module="bad_loss_runs")
    yield started
    started.close()


CASES = [("plain", False), ("mixed", True), *([("executions", False)] if BACKEND != "torch" else [])]


@pytest.mark.parametrize(("case", "waits"), CASES)
def test_a_run_that_is_killed_skips_the_same_batches_again(
    runs: Runs, case: str, waits: bool, tmp_path: Path
) -> None:
    ran = [runs.run(case, store=str(tmp_path / "uninterrupted"), waits=waits)]
    plain = found(ran[0])
    # Each epoch has the bad batch somewhere, and a step of each skipped batch is one that the optimizer has not made.
    assert plain["finite"]
    skipped = sum(begin - end for begin, end in plain["rollbacks"])
    # A loss scale that was too large skips steps, too, and makes no loss bad.
    assert plain["steps"] <= 90 - skipped if case == "mixed" else plain["steps"] == 90 - skipped
    assert len(plain["rollbacks"]) == 3
    store = str(tmp_path / "killed")
    # Just before the first rollback, soon after the second, and in an epoch that began after both.
    first, second = (begin for begin, _ in plain["rollbacks"][:2])
    for step in (first - 2, second + 2, 63):
        where = [step // 30, step % 30 // 2 * 2]
        outcome = runs.run(case, store=store, waits=waits, die_in=where)
        assert outcome.status == -signal.SIGKILL, outcome.output
        ran.append(outcome)
    ran.append(runs.run(case, store=store, waits=waits))
    resumed = found(ran[-1])
    # A save that fails, as on a disk that others have filled, moves the point that a rollback goes back to.
    printed = "\n".join(outcome.output for outcome in ran)
    assert "SAVING FAILED" not in printed, printed
    # An attempt that was killed before a rollback was saved may have recorded it, too.
    recorded, expected = resumed.pop("rollbacks"), plain.pop("rollbacks")
    assert [steps for steps in expected if steps in recorded] == expected, f"{recorded}\n{printed}"
    assert all(steps in expected for steps in recorded)
    assert resumed == plain


# --- in this process ---------------------------------------------------------------------------


def fit(folder: Path, *callbacks: Any, bad: int | None = 100, trained: Any = None, **options: Any) -> Any:
    """Train a model for epochs of 30 batches, the data in order; returns the model, the callback and History."""
    fitted = {"epochs": options.pop("epochs", 2), "validation_data": options.pop("validation_data", None)}
    made = bad_loss_runs.model() if trained is None else trained
    options = {"save_freq": 4, "monitor": "loss", "backpressure": "wait", **options}
    saver = ckptstore.StoreCheckpoint(folder, **options)
    x, y = bad_loss_runs.data(bad)
    history = made.fit(x, y, batch_size=8, verbose=0, shuffle=False, callbacks=[saver, *callbacks], **fitted)
    return made, saver, history


def events(folder: Path, *kinds: str) -> list[Any]:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        return [event for event in reversed(store.events()) if event.kind in kinds]


def checkpoints(folder: Path) -> list[ckptstore.Checkpoint]:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        return store.checkpoints()


def is_finite(trained: Any) -> bool:
    return all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in trained.weights)


def test_a_loss_that_is_not_finite_stops_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, saver, history = fit(tmp_path, on_bad_loss="stop")
    # Batch 13 of the first epoch is the bad one; the newest save before it is that after batch 12.
    assert history.epoch == [0]
    assert not is_finite(trained)
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [4, 8, 12]
    (event,) = events(tmp_path, "bad_loss")
    assert (event.detail["epoch"], event.detail["batch"], event.detail["kind"]) == (0, 12, "not finite")
    line = capsys.readouterr().out
    assert "at epoch 1, batch 13: training stops; the newest resume point is version 3" in line
    assert saver._session.losses.stopped_by.batch == 12
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert store.resume_point().version == store.latest().version == 3
    # Started again it comes to the same, and saves nothing bad either.
    another_process()
    fit(tmp_path, on_bad_loss="stop")
    assert [checkpoint.step for checkpoint in checkpoints(tmp_path)] == [4, 8, 12]


def test_a_rollback_skips_what_led_to_the_bad_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, _, history = fit(tmp_path, on_bad_loss="rollback")
    assert is_finite(trained)
    assert all(math.isfinite(value) for values in history.history.values() for value in values)
    assert "rollback 2 of at most 3" in capsys.readouterr().out
    lag = 1 if BACKEND in ("jax", "torch") else 0
    first, second = events(tmp_path, "rolled_back")
    assert (first.version, first.detail["to_step"], first.detail["from_step"]) == (3, 12, 13 + lag)
    assert (second.detail["epoch"], second.detail["batch"]) == (1, 12)
    assert int(keras.ops.convert_to_numpy(trained.optimizer.iterations)) == 60 - sum(
        event.detail["skipped"] for event in (first, second)
    )
    # What was gone back to is saved again at once, with the position behind the batches that are skipped.
    again = next(checkpoint for checkpoint in checkpoints(tmp_path) if checkpoint.version > first.version)
    assert (again.step, dict(again.metrics), again.resumable) == (13 + lag, {}, True)
    with ckptstore.CheckpointStore(tmp_path) as store:
        best = store.best("loss")
        assert math.isfinite(best.metrics["loss"])
        assert best.metrics["loss"] > 0


def test_a_rollback_to_an_earlier_epoch_counts_no_batch_of_it(tmp_path: Path) -> None:
    _, _, plain = fit(tmp_path / "plain", bad=None)
    _, _, history = fit(tmp_path / "rolled", bad=239, on_bad_loss="rollback", save_freq="epoch")
    # The last batch of the first epoch is bad, and nothing was saved before.
    assert history.epoch == [0]
    assert events(tmp_path / "rolled", "bad_loss")
    x, y = bad_loss_runs.data(None)
    good = x.copy()
    x[20 * 8] = bad_loss_runs.HUGE

    def batches() -> Iterator[Any]:
        for number in range(60):
            begin = number % 30 * 8
            yield (x if number == 50 else good)[begin : begin + 8], y[begin : begin + 8]

    made = bad_loss_runs.model()
    saver = ckptstore.StoreCheckpoint(tmp_path / "other", monitor="loss", on_bad_loss="rollback")
    history = made.fit(batches(), steps_per_epoch=30, epochs=2, shuffle=False, verbose=0, callbacks=[saver])
    (event,) = events(tmp_path / "other", "rolled_back")
    assert (event.detail["to_step"], event.detail["batch"]) == (30, 20)
    assert history.history["loss"][1] < plain.history["loss"][0]


def test_after_too_many_rollbacks_the_training_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, history = fit(tmp_path, on_bad_loss="rollback", max_rollbacks=1)
    assert history.epoch == [0, 1]
    assert "training stops after 1 rollbacks; the newest resume point is version" in capsys.readouterr().out
    assert len(events(tmp_path, "rolled_back")) == len(events(tmp_path, "bad_loss")) == 1


def test_a_warning_changes_nothing_else(tmp_path: Path) -> None:
    plain, _, _ = fit(tmp_path / "none")
    with pytest.warns(UserWarning, match=r"loss is (inf|nan) at epoch 1, batch 13") as caught:
        warned, _, _ = fit(tmp_path / "warn", on_bad_loss="warn")
    # Once, though every later batch is as bad.
    assert [str(warning.message)[:8] for warning in caught].count("loss is ") == 1, [
        str(w.message) for w in caught
    ]
    for mine, other in zip(warned.weights, plain.weights, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (mine, other)), equal_nan=True)
    assert len(checkpoints(tmp_path / "warn")) == len(checkpoints(tmp_path / "none"))


class Spoils(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets all weights to a value before a batch, as a step with a bad gradient does."""

    def __init__(self, epoch: int, batch: int, value: float) -> None:
        super().__init__()
        self.at, self.value, self.epoch = (epoch, batch), value, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.at:
            for weight in self.model.trainable_weights:
                weight.assign(keras.ops.full(weight.shape, self.value))


def test_weights_that_are_not_finite_are_no_place_to_go_back_to(tmp_path: Path) -> None:
    # The loss of batch 12 is good; the weights that are saved after it are not.
    trained, _, _ = fit(tmp_path, Spoils(0, 11, math.nan), bad=None, on_bad_loss="rollback")
    assert is_finite(trained)
    (event,) = events(tmp_path, "rolled_back")
    (unsound,) = events(tmp_path, "unsound")
    assert (event.detail["to_step"], event.detail["unsound"]) == (8, [unsound.version])
    with ckptstore.CheckpointStore(tmp_path) as store:
        spoilt = store.get(unsound.version)
        assert (spoilt.step, spoilt.resumable, spoilt.state) == (12, False, "complete")
        assert math.isnan(spoilt.metrics["loss"])
        assert unsound.detail["metrics"]["loss"] > 0
        assert store.best("loss").version != spoilt.version


def test_a_checkpoint_without_a_step_is_neither_gone_back_to_nor_called_unsound(tmp_path: Path) -> None:
    model = bad_loss_runs.model()
    detail = {"kind": "not finite", "name": "loss", "value": "nan", "epoch": 0, "batch": 13, "from_step": 14}
    with ckptstore.CheckpointStore(tmp_path) as store:
        sound, by_hand, late = (
            store.save(model, epoch=0, batch=batch, step=step, metrics={"loss": 1.0})
            for batch, step in ((3, 4), (7, None), (11, 12))
        )
        assert store.roll_back("default", lambda _: True, sound_step=8, detail=detail) == sound
        kept, unsound = store.get(by_hand.version), store.get(late.version)
        assert salvage(store.path / "manifest.sqlite").unsound == {late.version}
    assert kept == by_hand
    assert kept.resumable
    assert not unsound.resumable


def test_a_spike_is_rolled_back_and_nothing_of_it_stays_the_best(tmp_path: Path) -> None:
    _, _, history = fit(
        tmp_path, Spoils(3, 19, 50.0), bad=None, epochs=4, on_bad_loss="rollback", save_freq=1
    )
    first, second = events(tmp_path, "rolled_back")
    for event in (first, second):
        assert event.detail["kind"] == "spike"
        assert event.detail["value"] > event.detail["bound"]
    # What was saved after the weights were spoilt looks sound, until not one batch after it is.
    assert (first.detail["to_step"], second.detail["to_step"]) == (110, 109)
    unsound = {event.version for event in events(tmp_path, "unsound")}
    assert {110, first.detail["from_step"]} <= {
        checkpoint.step for checkpoint in checkpoints(tmp_path) if checkpoint.version in unsound
    }
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert store.best("loss").version not in unsound
        assert not any(store.get(version).resumable for version in unsound)
        with ckptstore.CheckpointStore(tmp_path.with_name("copies")) as other:
            assert not store.copy(max(unsound), other).checkpoint.resumable
    assert history.history["loss"][3] < 100
    # Payloads that were saved later know of them, where the manifest is lost.
    before = {checkpoint.version: checkpoint.resumable for checkpoint in checkpoints(tmp_path)}
    (tmp_path / "manifest.sqlite").unlink()
    ckptstore.CheckpointStore.rebuild(tmp_path)
    assert {one.version: one.resumable for one in checkpoints(tmp_path)} == before
    with ckptstore.CheckpointStore(tmp_path) as store:
        assert store.best("loss").version not in unsound


def test_retention_leaves_what_a_second_rollback_goes_to(tmp_path: Path) -> None:
    # The newest two are what the first rollback went to, which is spoilt, and what was saved right after it.
    keep = ckptstore.keep_last(1)
    fit(tmp_path, Spoils(3, 19, 50.0), bad=None, epochs=4, on_bad_loss="rollback", save_freq=1, keep=keep)
    assert [event.detail["to_step"] for event in events(tmp_path, "rolled_back")] == [110, 109]
    # Once a batch is sound, the policy counts again: the newest two, and the best.
    assert len(checkpoints(tmp_path)) == 3


def test_a_validation_that_is_not_finite_counts(tmp_path: Path) -> None:
    x, y = bad_loss_runs.data(0)
    _, _, history = fit(
        tmp_path, bad=None, on_bad_loss="rollback", validation_data=(x[:8], y[:8]), monitor="val_loss"
    )
    assert history.epoch == [0, 1]
    first, second = events(tmp_path, "rolled_back")
    assert (first.detail["name"], first.detail["batch"]) == ("val_loss", None)
    assert second.detail["epoch"] == 1
    ends = [checkpoint for checkpoint in checkpoints(tmp_path) if checkpoint.batch is None]
    assert [dict(checkpoint.metrics) for checkpoint in ends] == [{}, {}]


class OwnStep(keras.Sequential):  # type: ignore[misc]
    """A model whose own step logs what Keras' does, under names of its own."""

    def train_step(self, *arguments: Any) -> Any:
        result = super().train_step(*arguments)
        logs, *rest = result if BACKEND == "jax" else (result,)
        logs = {self.renamed.get(name, name): self.factor * value for name, value in logs.items()}
        return (logs, *rest) if BACKEND == "jax" else logs


def own_step(**renamed: str) -> Any:
    keras.utils.set_random_seed(1)
    made = OwnStep([keras.Input((6,)), keras.layers.Dense(1)])
    made.renamed, made.factor = renamed, 1
    made.compile("sgd", "mse", metrics=["mae"])
    return made


class Centres(keras.Sequential):  # type: ignore[misc]
    """A model that keeps a running mean of its inputs in an array of its own."""

    def train_step(self, *arguments: Any) -> Any:
        *state, (x, y) = arguments
        self.centre = 0.9 * self.centre + 0.1 * keras.ops.convert_to_numpy(x).mean(axis=0)
        return super().train_step(*state, (keras.ops.subtract(x, self.centre), y))


def centring() -> Any:
    keras.utils.set_random_seed(1)
    made = Centres([keras.Input((6,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])
    made.centre = np.zeros(6, "float32")
    made.compile("adam", "mse", run_eagerly=True)
    return made


def test_what_the_users_code_keeps_goes_back_with_the_model(tmp_path: Path) -> None:
    trained, _, _ = fit(tmp_path, trained=centring(), epochs=1, on_bad_loss="rollback")
    (event,) = events(tmp_path, "rolled_back")
    x, y = bad_loss_runs.data(100)
    kept = [
        number for number in range(30) if not event.detail["to_step"] <= number < event.detail["from_step"]
    ]
    skipped = centring()
    batches = ((x[begin : begin + 8], y[begin : begin + 8]) for begin in (8 * number for number in kept))
    skipped.fit(batches, steps_per_epoch=len(kept), shuffle=False, verbose=0)
    assert np.array_equal(trained.centre, skipped.centre)
    assert int(keras.ops.convert_to_numpy(trained.optimizer.iterations)) == len(kept)
    for mine, other in zip(trained.variables, skipped.variables, strict=True):
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (mine, other))), mine.path


@pytest.mark.parametrize("answer", ["warn", "stop", "rollback"])
def test_a_step_that_logs_no_loss_is_told_of_once(tmp_path: Path, answer: Any) -> None:
    trained = own_step(loss="d_loss")
    with pytest.warns(UserWarning, match="on_bad_loss") as caught:
        fit(tmp_path, trained=trained, bad=None, monitor="mae", on_bad_loss=answer)
    assert is_finite(trained)
    (said,) = [str(warning.message) for warning in caught if "on_bad_loss" in str(warning.message)]
    assert f'on_bad_loss={answer!r} sees no loss in this fit: the training step logs no "loss", but ' in said
    assert "d_loss" in said


def test_a_step_of_its_own_may_log_a_mean_over_the_epoch_or_the_batch(tmp_path: Path) -> None:
    # As "loss" is logged the mean of the metric of that name, of one with another name, and no mean at all.
    for renamed, factor, is_mean in (({}, 1, True), ({"total": "loss"}, 1, True), ({}, 2, False)):
        # Keras calls the hooks of this fit in a thread, and later; those of the other wait for each batch.
        for others in ((), (Spoils(9, 9, 0.0),)):
            trained = own_step(**renamed)
            trained.factor = factor
            trained.metrics[0]._name = next(iter(renamed), "loss")
            folder = tmp_path / f"{renamed} {factor} {len(others)}"
            _, saver, _ = fit(folder, *others, trained=trained, bad=None, epochs=1, on_bad_loss="warn")
            assert saver._session.losses._losses.is_mean is is_mean, folder.name


def test_a_validation_that_stays_not_finite_is_warned_of_once(tmp_path: Path) -> None:
    x, y = bad_loss_runs.data(0)
    with pytest.warns(UserWarning, match="val_loss is") as caught:
        fit(tmp_path, bad=None, epochs=3, on_bad_loss="warn", validation_data=(x[:8], y[:8]))
    assert [str(warning.message)[:8] for warning in caught].count("val_loss") == 1
    assert len(events(tmp_path, "bad_loss")) == 1


def test_a_first_batch_that_is_bad_leaves_nothing_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ("stop", "rollback"):
        _, saver, history = fit(tmp_path / answer, bad=0, on_bad_loss=answer, save_freq=1)
        assert (history.epoch, saver._session.losses.stopped_by.batch) == ([0], 0)
        line = capsys.readouterr().out
        assert "training stops; there is no sound resume point from before (save_freq sets" in line
        assert checkpoints(tmp_path / answer) == []
    with pytest.warns(UserWarning, match="loss is"):
        fit(tmp_path / "warn", bad=0, on_bad_loss="warn", epochs=1)
    another_process()
    # All have a state, and of each the loss was not finite.
    with pytest.warns(
        UserWarning, match=r"run default starts over.* since the loss of each was not finite \("
    ):
        fit(tmp_path / "warn", bad=None, epochs=1)


def test_a_loop_by_hand_is_told_that_nobody_watches(tmp_path: Path) -> None:
    saver = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", on_bad_loss="stop")
    hooks = keras.callbacks.CallbackList([saver], model=bad_loss_runs.model(), epochs=1, steps=1)
    with pytest.warns(UserWarning, match=r"not Keras' own: .* no loss is watched \(on_bad_loss='stop'\)$"):
        hooks.on_train_begin()
    hooks.on_train_end()


@pytest.mark.parametrize("option", [{"on_bad_loss": "ignore"}, {"max_rollbacks": 0}, {"max_rollbacks": True}])
def test_bad_arguments_make_nothing(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(option))):
        ckptstore.StoreCheckpoint(tmp_path / "store", **option)
    assert not (tmp_path / "store").exists()
