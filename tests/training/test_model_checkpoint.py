"""`ModelCheckpoint`: the same as Keras' in comparison, and correct where Keras' is not."""

from __future__ import annotations

import copy
import math
import os
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
import keras_zoo as zoo
from ckptstore import CheckpointStore, ModelCheckpoint
from ckptstore.errors import (
    InvalidArgumentError,
    ModelNotReadyError,
    NotAStoreError,
    RunLockedError,
    StorageError,
)
from small_fits import another_process

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

NAN = math.nan
KERAS = tuple(int(part) for part in keras.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A trained model; its weights do not matter to these tests."""
    return zoo.trained(zoo.stack(keras.layers.Dense(2)))


def run(callback: Any, model: keras.Model, epochs: Iterable[dict[str, Any]], *, first: int = 0) -> None:
    """Call the hooks as `fit` would, with these logs at the ends of epochs."""
    begin(callback, model)
    for epoch, logs in enumerate(epochs, first):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_end(0, {"loss": 1.0})
        callback.on_epoch_end(epoch, logs)
    callback.on_train_end()


def begin(callback: Any, model: keras.Model) -> None:
    callback.set_params({"epochs": 9})
    callback.set_model(model)
    callback.on_train_begin()


def fitted(callbacks: Any, *, epochs: int = 2, rows: int = 12, spe: int = 1, **kwargs: Any) -> keras.Model:
    """A real training, three batches an epoch."""
    model = zoo.stack(keras.layers.Dense(2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], steps_per_execution=spe)
    x, y = zoo.data(rows)
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=epochs,
        validation_data=(x, y),
        verbose=0,
        callbacks=callbacks,
        shuffle=False,
        **kwargs,
    )
    return model


def files(folder: Path) -> set[str]:
    """The user's files below a folder, without the store."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and ".ckptstore" not in path.parts
    }


def of_users(caught: Iterable[Any]) -> list[Any]:
    """The warnings that are meant for users: Keras' own code makes others on the way."""
    return [warning for warning in caught if warning.category is UserWarning]


def store_in(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, read_only=True)


def metrics_in(folder: Path, metric: str = "val_loss") -> list[float | None]:
    with store_in(folder) as store:
        return [checkpoint.metrics.get(metric) for checkpoint in store.checkpoints()]


def shown_at(path: Path) -> float:
    """The `val_loss` of the checkpoint that a file shows."""
    with store_in(path.parent) as store:
        return next(
            checkpoint.metrics["val_loss"]
            for checkpoint in store.checkpoints()
            if checkpoint.path.samefile(path)
        )


# --- side by side with Keras -------------------------------------------------------------------

SAME: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "every epoch": ({"filepath": "best.keras"}, [{"val_loss": 1.0}, {"val_loss": 2.0}]),
    "placeholders": (
        {"filepath": "{epoch:02d}/{val_loss:.2f}.keras"},
        [{"val_loss": 1.0}, {"val_loss": 2.0}, {"val_loss": 0.123456}],
    ),
    "weights": (
        {"filepath": "{epoch}.weights.h5", "save_weights_only": True},
        [{"val_loss": 1.0}, {"val_loss": 2.0}],
    ),
    "older format": ({"filepath": "{epoch}.h5"}, [{"val_loss": 1.0}]),
    "best, min": (
        {"filepath": "{epoch}.keras", "save_best_only": True},
        [{"val_loss": value} for value in (1.0, 2.0, 0.5, 0.5, 0.6, 0.25)],
    ),
    "best, max": (
        {"filepath": "{epoch}.keras", "save_best_only": True, "monitor": "val_accuracy", "mode": "max"},
        [{"val_accuracy": value} for value in (0.5, 0.25, 0.75, 0.75)],
    ),
    "best, auto": (
        {"filepath": "{epoch}.keras", "save_best_only": True, "monitor": "val_accuracy"},
        [{"val_accuracy": value} for value in (0.5, 0.25, 0.75, 0.75)],
    ),
    "threshold": (
        {"filepath": "{epoch}.keras", "save_best_only": True, "initial_value_threshold": 0.75},
        [{"val_loss": value} for value in (1.0, 0.5, 0.7, 0.3)],
    ),
    "threshold never reached": (
        {"filepath": "{epoch}.keras", "save_best_only": True, "initial_value_threshold": 0},
        [{"val_loss": 1.0}],
    ),
    "loss": (
        {"filepath": "{epoch}-{loss:.1f}.keras", "save_best_only": True, "monitor": "loss"},
        [{"loss": 1.0}, {"loss": 3.0}, {"loss": 0.5}],
    ),
    "backend scalars": (
        {"filepath": "{epoch}.keras", "save_best_only": True},
        [{"val_loss": keras.ops.convert_to_tensor(value)} for value in (1.0, 2.0, 0.5)],
    ),
}


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("case", SAME)
def test_the_same_files_and_messages_as_keras(
    case: str, verbose: int, model: keras.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, epochs = SAME[case]
    if case == "backend scalars" and KERAS < (3, 12):
        pytest.skip("this Keras cannot compare them")
    if case == "older format":  # Keras' own saving of it spoils the model for others
        model = zoo.trained(zoo.stack(keras.layers.Dense(2)))
    seen = {}
    for kind in (keras.callbacks.ModelCheckpoint, ModelCheckpoint):
        folder = tmp_path / kind.__module__.split(".")[0]
        folder.mkdir()
        template = f"{folder}/{arguments['filepath']}"
        run(kind(**{**arguments, "filepath": template}, verbose=verbose), model, epochs)
        words = capsys.readouterr().out.replace(str(folder), "")
        seen[kind.__module__.split(".")[0]] = (files(folder), words)
    (our_files, ours), (their_files, theirs) = seen["ckptstore"], seen["keras"]
    theirs = re.sub(r"from -?inf to", "from None to", theirs)  # before Keras 3.12
    if "finished" not in theirs:  # before Keras 3.13
        ours = "".join(line for line in ours.splitlines(keepends=True) if "finished" not in line)
        ours, theirs = ours.replace("\n", ""), theirs.replace("\n", "")
    assert our_files == their_files
    assert ours == theirs
    assert bool(theirs) == bool(verbose)


# Steps per execution: PyTorch knows only 1.
# torch runs one step at a time; and Keras up to 3.13 numbers the last, shorter execution of an epoch otherwise.
STEPS = [1] if zoo.BACKEND == "torch" or KERAS < (3, 14) else [1, 2]


@pytest.mark.parametrize("spe", STEPS)
@pytest.mark.parametrize("save_freq", [1, 2, 4, 5, "epoch"])
def test_batches_are_counted_as_keras_counts_them(save_freq: Any, spe: int, tmp_path: Path) -> None:
    callbacks = {}
    for kind in (keras.callbacks.ModelCheckpoint, ModelCheckpoint):
        folder = tmp_path / kind.__module__.split(".")[0]
        name = "{epoch}.keras" if save_freq == "epoch" else "{epoch}-{batch}.keras"
        callbacks[folder] = kind(folder / name, save_freq=save_freq)
    fitted(list(callbacks.values()), epochs=3, rows=20, spe=spe)
    ours, theirs = (files(tmp_path / owner) for owner in ("ckptstore", "keras"))
    assert ours == theirs
    assert ours


def test_the_eight_arguments_are_in_keras_order(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "x.weights.h5", "val_accuracy", 1, True, True, "max", 7, 0.5)
    theirs = keras.callbacks.ModelCheckpoint(
        tmp_path / "x.weights.h5", "val_accuracy", 1, True, True, "max", 7, 0.5
    )
    for name in (
        "filepath",
        "monitor",
        "verbose",
        "save_best_only",
        "save_weights_only",
        "mode",
        "save_freq",
        "best",
    ):
        assert getattr(callback, name) == getattr(theirs, name, "max")
    assert isinstance(callback, keras.callbacks.ModelCheckpoint)


def test_keras_errors_for_bad_arguments(tmp_path: Path) -> None:
    for arguments, words in (
        ({"filepath": "x.txt"}, "must end in `.keras`"),
        ({"filepath": "x.keras", "save_weights_only": True}, "must end in `.weights.h5`"),
        ({"filepath": "x.keras", "save_freq": "batch"}, "Unrecognized save_freq: batch"),
        ({"filepath": "x.keras", "save_freq": 0}, "Unrecognized save_freq: 0"),
        ({"filepath": "x.keras", "save_freq": -3}, "Unrecognized save_freq: -3"),
        ({"filepath": "x.keras", "save_freq": True}, "Unrecognized save_freq: True"),
        ({"filepath": "x.keras", "save_freq": 1.5}, "Unrecognized save_freq: 1.5"),
        ({"filepath": "x.keras", "run": "a/b"}, "run='a/b'"),
        ({"filepath": "x.keras", "keep": 3}, "keep=3: must be a retention policy"),
    ):
        with pytest.raises(ValueError) as raised:
            ModelCheckpoint(**arguments)
        assert words in str(raised.value)
        assert isinstance(raised.value, InvalidArgumentError)
    assert not files(tmp_path)


def test_an_unknown_mode_warns_and_falls_back(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ModelCheckpoint mode 'best' is unknown, fallback to auto mode"):
        assert ModelCheckpoint(tmp_path / "x.keras", mode="best").mode == "auto"


# --- what Keras gets wrong ---------------------------------------------------------------------


def test_the_best_survives_a_restart(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.295}])
    another_process()
    restarted = ModelCheckpoint(path, save_best_only=True)
    run(restarted, model, [{"val_loss": 3.335}])
    assert shown_at(path) == restarted.best == 0.295
    another_process()
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.25}])
    assert shown_at(path) == 0.25


def test_the_best_is_better_than_the_threshold_or_the_other_way(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.5}])
    for threshold, best in ((0.7, 0.5), (0.3, 0.3), (None, 0.5)):
        another_process()
        callback = ModelCheckpoint(path, save_best_only=True, initial_value_threshold=threshold)
        begin(callback, model)
        assert callback.best == best
        callback.on_train_end()


@pytest.mark.parametrize("name", ["best.keras", "{epoch}-{val_loss:.3f}.keras"])
def test_removing_the_file_resets_the_best(name: str, model: keras.Model, tmp_path: Path) -> None:
    run(ModelCheckpoint(tmp_path / name, save_best_only=True), model, [{"val_loss": 0.25}, {"val_loss": 0.5}])
    (shown,) = files(tmp_path)
    another_process()
    kept = ModelCheckpoint(tmp_path / name, save_best_only=True)
    run(kept, model, [{"val_loss": 0.75}])
    assert files(tmp_path) == {shown}
    (tmp_path / shown).unlink()
    another_process()
    run(ModelCheckpoint(tmp_path / name, save_best_only=True), model, [{"val_loss": 0.75}])
    assert len(files(tmp_path)) == 1
    assert metrics_in(tmp_path)[-1] == 0.75


def test_a_best_that_was_reset_stays_reset_at_the_next_restart(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    for values, shown in (([0.1], 0.1), ([0.5], 0.5), ([0.3, 0.4], 0.3)):
        another_process()
        run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": value} for value in values])
        assert shown_at(path) == shown
        if shown == 0.1:
            path.unlink()


def test_a_new_best_must_be_better_than_the_published_file(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    run(ModelCheckpoint(path), model, [{"val_loss": 0.1}, {"val_loss": 0.5}])
    another_process()
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.3}, {"val_loss": 0.4}])
    assert shown_at(path) == 0.3


def test_the_best_survives_whatever_the_placeholders_are_filled_with(
    model: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / "{stage}-{epoch}.keras"
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.1, "stage": 2}])
    another_process()
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.5, "stage": 3}])
    assert files(tmp_path) == {"2-1.keras"}


def test_the_best_of_another_metric_or_run_does_not_count(model: keras.Model, tmp_path: Path) -> None:
    run(ModelCheckpoint(tmp_path / "a.keras", save_best_only=True), model, [{"val_loss": 0.25}])
    for callback in (
        ModelCheckpoint(tmp_path / "b.keras", save_best_only=True),
        ModelCheckpoint(tmp_path / "a.keras", save_best_only=True, monitor="val_accuracy"),
        ModelCheckpoint(tmp_path / "a.keras", save_best_only=True, run="other"),
    ):
        begin(callback, model)
        assert callback.best is None
        callback.on_train_end()


@pytest.mark.parametrize("name", ["best.keras", "{epoch}.keras"])
def test_nan_is_no_best(name: str, model: keras.Model, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / name, save_best_only=True, keep="all")
    values = [NAN, NAN, 0.5, NAN, 0.25]
    with pytest.warns(UserWarning, match="Can save best model only with val_loss available") as caught:
        run(callback, model, [{"val_loss": value} for value in values])
    assert len(of_users(caught)) == 3
    first, *rest = metrics_in(tmp_path)
    assert math.isnan(first)  # published, as there was nothing; then replaced
    assert rest == [0.5, 0.25]
    assert callback.best == 0.25
    assert files(tmp_path) == ({"best.keras"} if name == "best.keras" else {"1.keras", "3.keras", "5.keras"})


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        ({}, "Can save best model only with val_loss available"),
        (None, "Can save best model only with val_loss available"),
        ({"val_loss": np.ones(2)}, "only when `monitor` is a scalar value"),
        ({"val_loss": "low"}, "only when `monitor` is a scalar value"),
        ({"val_loss": NAN}, "Can save best model only with val_loss available"),
    ],
)
@pytest.mark.filterwarnings("ignore:Logs that are not single numbers")
def test_a_missing_metric_replaces_nothing(logs: Any, words: str, model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    with pytest.warns(UserWarning, match=words):
        run(ModelCheckpoint(path, save_best_only=True), model, [logs])
    assert path.exists()
    path.unlink()
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 0.5}])
    with pytest.warns(UserWarning, match=words):
        run(ModelCheckpoint(path, save_best_only=True), model, [logs])
    assert shown_at(path) == 0.5


def test_a_file_that_was_there_before_is_not_replaced_by_nan(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    path.write_bytes(b"somebody's")
    with pytest.warns(UserWarning, match="it is not saved"):
        run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": NAN}])
    assert path.read_bytes() == b"somebody's"
    run(ModelCheckpoint(path, save_best_only=True), model, [{"val_loss": 1.0}])
    assert shown_at(path) == 1.0


def test_best_with_batches_works_from_the_first_batch(tmp_path: Path) -> None:
    callback = ModelCheckpoint(
        tmp_path / "{epoch}-{batch}.keras", monitor="loss", save_best_only=True, save_freq=1
    )
    fitted(callback, epochs=2)
    recorded = metrics_in(tmp_path, "loss")
    assert "1-1.keras" in files(tmp_path)
    assert recorded == sorted(recorded, reverse=True)
    assert callback.best == recorded[-1]


def test_best_by_validation_with_batches_neither_fails_nor_replaces(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Can save best model only with val_loss available"):
        fitted(ModelCheckpoint(tmp_path / "best.keras", save_best_only=True, save_freq=2))
    assert metrics_in(tmp_path) == [None]


def test_auto_is_refused_when_training_begins(tmp_path: Path) -> None:
    seen: list[int] = []
    watcher = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    callback = ModelCheckpoint(tmp_path / "best.keras", monitor="temperature", save_best_only=True)
    with pytest.raises(ValueError, match="Pass `mode='max'` in order to monitor based on the highest metric"):
        fitted([watcher, callback])
    assert not seen
    assert not list(tmp_path.iterdir())


def test_a_missing_placeholder_does_not_end_a_run(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="there is no 'val_f1' to put into it"):
        fitted(ModelCheckpoint(tmp_path / "{epoch}-{val_f1:.2f}.keras"))
    assert files(tmp_path) == {"1-nan.keras", "2-nan.keras"}


def test_a_directory_is_refused_before_training(model: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "best.keras").mkdir()
    with pytest.raises(
        OSError, match="Please specify a non-directory filepath for ModelCheckpoint"
    ) as raised:
        begin(ModelCheckpoint(tmp_path / "best.keras"), model)
    assert isinstance(raised.value, StorageError)
    (tmp_path / "2.keras").mkdir()
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(OSError, match=f"existing directory: {tmp_path}/2.keras"):
        run(callback, model, [{}, {}])
    assert files(tmp_path) == {"1.keras"}


def test_a_folder_that_cannot_be_is_refused_before_training(model: keras.Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAStoreError, match="it is a file"):
        begin(ModelCheckpoint(tmp_path / "file" / "best.keras"), model)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    model: keras.Model, tmp_path: Path
) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="failed"):
        begin(ModelCheckpoint(tmp_path / "best.keras"), model)


def test_a_chdir_does_not_move_the_file(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    callback = ModelCheckpoint("models/{epoch}.keras")
    monkeypatch.chdir(tmp_path / "other")
    run(callback, model, [{}])
    assert files(tmp_path) == {"models/1.keras"}


# --- what is recorded --------------------------------------------------------------------------


def test_positions_and_metrics_are_recorded(tmp_path: Path) -> None:
    history = keras.callbacks.History()
    fitted([ModelCheckpoint(tmp_path / "{epoch}.keras"), history], epochs=2)
    with store_in(tmp_path) as store:
        checkpoints = store.checkpoints("epoch")
        assert [(checkpoint.epoch, checkpoint.batch, checkpoint.step) for checkpoint in checkpoints] == [
            (0, None, 3),
            (1, None, 6),
        ]
        for checkpoint in checkpoints:
            assert checkpoint.metrics == {
                name: values[checkpoint.epoch] for name, values in history.history.items()
            }
            assert checkpoint.resumable
        assert [checkpoint.version for checkpoint in checkpoints] == [1, 2]
        best = store.best("val_loss", run="epoch")
        assert best is not None
        assert best.metrics["val_loss"] == min(history.history["val_loss"])


POSITIONS = {1: [(0, 1, 2), (1, 0, 4), (1, 2, 6)], 2: [(0, 1, 2), (0, 2, 3), (1, 1, 5), (1, 2, 6)]}


@pytest.mark.parametrize("spe", STEPS)
def test_positions_inside_epochs(spe: int, tmp_path: Path) -> None:
    fitted(
        ModelCheckpoint(tmp_path / "{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=2), spe=spe
    )
    with store_in(tmp_path) as store:
        positions = [
            (checkpoint.epoch, checkpoint.batch, checkpoint.step) for checkpoint in store.checkpoints()
        ]
    assert positions[: len(POSITIONS[spe])] == POSITIONS[spe]


def test_a_resumed_run_continues_to_count(tmp_path: Path) -> None:
    path = tmp_path / "{epoch}.keras"
    fitted(ModelCheckpoint(path), epochs=2)
    fitted(ModelCheckpoint(path), epochs=3, initial_epoch=1)
    with store_in(tmp_path) as store:
        assert [(checkpoint.epoch, checkpoint.step) for checkpoint in store.checkpoints()] == [
            (0, 3),
            (1, 6),
            (1, 6),
            (2, 9),
        ]


def test_odd_logs_are_left_out_with_one_warning(model: keras.Model, tmp_path: Path) -> None:
    odd = {
        "matrix": np.eye(2),
        "": 1.0,
        "val_loss": 0.5,
        '"; DROP TABLE checkpoints; --': 1.0,
        "🙂": 2.0,
        "inf": math.inf,
    }
    with pytest.warns(UserWarning, match="Logs that are not single numbers") as caught:
        run(ModelCheckpoint(tmp_path / "x.keras"), model, [odd, odd])
    assert len(of_users(caught)) == 1
    with store_in(tmp_path) as store:
        (latest,) = store.checkpoints()[-1:]
    assert dict(latest.metrics) == {key: value for key, value in odd.items() if key not in ("matrix", "")}


def test_the_published_file_is_the_payload_itself(model: keras.Model, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "best.keras")
    run(callback, model, [{"val_loss": 1.0}, {"val_loss": 2.0}, {"val_loss": 3.0}])
    assert callback.last is not None
    assert callback.last.path.samefile(tmp_path / "best.keras")
    with store_in(tmp_path) as store:
        assert store.verify() == []
    assert keras.saving.load_model(tmp_path / "best.keras").count_params() == model.count_params()


def test_retention_in_the_store(model: keras.Model, tmp_path: Path) -> None:
    losses = [{"val_loss": value} for value in (0.1, 0.5, 0.4, 0.3, 0.6)]
    for name, keep, kept in (
        ("plain.keras", None, [0.1, 0.3, 0.6]),  # the best, the one before, the one shown
        ("{epoch}.keras", None, [0.1, 0.5, 0.4, 0.3, 0.6]),
        ("all.keras", "all", [0.1, 0.5, 0.4, 0.3, 0.6]),
        ("three.keras", ckptstore.keep_last(3), [0.1, 0.4, 0.3, 0.6]),
    ):
        callback = ModelCheckpoint(tmp_path / name, keep=keep)
        run(callback, model, losses)
        with store_in(tmp_path) as store:
            assert [checkpoint.metrics["val_loss"] for checkpoint in store.checkpoints(callback.run)] == kept
    assert len(files(tmp_path)) == 8


# --- the life of a callback --------------------------------------------------------------------


@pytest.mark.skipif(zoo.BACKEND == "tensorflow", reason="Keras calls no callback from another thread there")
def test_a_callback_that_is_not_in_a_list_is_refused(tmp_path: Path) -> None:
    """Keras would call it from another thread, while the weights change."""
    model = zoo.stack(keras.layers.Dense(2))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = zoo.data()
    with pytest.raises(InvalidArgumentError, match=r"pass a list: fit\(..., callbacks=\[callback\]\)"):
        model.fit(x, y, batch_size=2, verbose=0, callbacks=ModelCheckpoint(tmp_path / "x.keras", save_freq=1))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=ModelCheckpoint(tmp_path / "{epoch}.keras"))
    with store_in(tmp_path) as store:
        assert [checkpoint.step for checkpoint in store.checkpoints()] == [6]


def test_the_older_format_leaves_the_model_compiled_as_it_was(tmp_path: Path) -> None:
    model = zoo.trained(zoo.stack(keras.layers.Dense(2)))
    before = model.get_compile_config()
    run(ModelCheckpoint(tmp_path / "a.h5"), model, [{}, {}])
    assert model.get_compile_config() == before
    run(ModelCheckpoint(tmp_path / "a.keras"), model, [{}])
    for name in ("a.h5", "a.keras"):
        assert type(keras.saving.load_model(tmp_path / name).optimizer) is type(model.optimizer)


def test_one_callback_serves_several_fits_and_models(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras", save_best_only=True, monitor="loss")
    fitted(callback, epochs=1)
    best = callback.best
    fitted(callback, epochs=1)
    assert callback.best == best or callback.best < best
    CheckpointStore(tmp_path).close()


class Interrupted(Exception):
    """An interrupt from the keyboard."""


def interrupting(epoch: int) -> keras.callbacks.Callback:
    def stop(now: int, logs: Any) -> None:
        if now == epoch:
            raise Interrupted

    return keras.callbacks.LambdaCallback(on_epoch_begin=stop)


@pytest.mark.parametrize("again", ["the same callback", "a new one"])
def test_after_an_exception_the_next_fit_takes_over(again: str, tmp_path: Path) -> None:
    path = tmp_path / "{epoch}.keras"
    first = ModelCheckpoint(path)
    with pytest.raises(Interrupted):
        fitted([first, interrupting(1)])
    second = first if again == "the same callback" else ModelCheckpoint(path)
    fitted(second, epochs=2)
    with store_in(tmp_path) as store:
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [0, 0, 1]
    # The one that was taken over from may come back.
    fitted(first, epochs=1)


def test_two_callbacks_of_one_fit_need_two_runs(tmp_path: Path) -> None:
    path = tmp_path / "best.keras"
    with pytest.raises(InvalidArgumentError, match=r"two callbacks of one fit write this run .*run='...'"):
        fitted([ModelCheckpoint(path), ModelCheckpoint(path)])
    fitted(
        [
            ModelCheckpoint(path),
            ModelCheckpoint(path, run="other"),
            ModelCheckpoint(tmp_path / "b.weights.h5", save_weights_only=True),
        ]
    )
    with store_in(tmp_path) as store:
        assert set(store.run_names()) >= {"best", "other", "b-weights"}


def test_another_process_on_the_same_run_is_named(model: keras.Model, tmp_path: Path) -> None:
    code = (
        "import sys, ckptstore\n"
        "store = ckptstore.CheckpointStore(sys.argv[1])\n"
        "store.claim('best')\n"
        "print('mine', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".ckptstore")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(RunLockedError, match=f"process {other.pid} on"):
            begin(ModelCheckpoint(tmp_path / "best.keras"), model)
        run(ModelCheckpoint(tmp_path / "best.keras", run="mine"), model, [{}])
        other.communicate("")
    run(ModelCheckpoint(tmp_path / "best.keras"), model, [{}])


def test_callbacks_copy_and_pickle(model: keras.Model, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras", save_best_only=True, mode="max", monitor="val_x")
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        run(copied, model, [{"val_x": 1.0}])
    run(callback, model, [{"val_x": 2.0}])
    assert callback.best == 2.0
    begin(callback, model)
    copied = copy.copy(callback)
    assert copied._saves.store is None
    callback.on_train_end()


def test_hooks_without_logs(model: keras.Model, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras", save_freq=1)
    begin(callback, model)
    callback.on_epoch_begin(0)
    callback.on_train_batch_end(0)
    callback.on_train_batch_end(1, None)
    callback.on_epoch_end(0)
    callback.on_train_end()
    assert files(tmp_path) == {"1.keras"}


def test_hooks_without_a_beginning_open_the_store_when_it_is_needed(
    model: keras.Model, tmp_path: Path
) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras", save_best_only=True)
    callback.set_model(model)
    callback.on_epoch_end(0, {"val_loss": 1.0})
    callback.on_train_end()
    assert files(tmp_path) == {"1.keras"}


def test_a_model_that_is_not_compiled_is_refused(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(ModelNotReadyError, match="not compiled"):
        run(callback, zoo.stack(keras.layers.Dense(2)), [{}])
    callback.on_train_end()


def test_a_failed_save_is_no_best(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptstore.commit.retry.DELAYS_S", (0,))
    callback = ModelCheckpoint(tmp_path / "best.keras", save_best_only=True, on_save_error="raise")
    begin(callback, model)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        broken.setattr(os, "pwrite", full)
        broken.setattr(os, "writev", full)
        with pytest.raises(OSError, match="space"):
            callback.on_epoch_end(0, {"val_loss": 0.5})
    assert callback.best is None
    callback.on_epoch_end(1, {"val_loss": 0.75})
    callback.on_train_end()
    assert shown_at(tmp_path / "best.keras") == 0.75


def test_saving_does_not_disturb_training(tmp_path: Path) -> None:
    def weights(callbacks: Any) -> list[Any]:
        keras.utils.set_random_seed(3)
        return zoo.state_of(fitted(callbacks, epochs=3))

    assert weights(ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=1)) == weights(None)


def test_each_checkpoint_holds_the_weights_of_its_moment(tmp_path: Path) -> None:
    seen: dict[tuple[int, int], Any] = {}

    class Noting(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen[self.epoch, batch] = [zoo.bits(weight) for weight in self.model.weights]

    fitted([Noting(), ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=1)])
    with store_in(tmp_path) as store:
        checkpoints = store.checkpoints()
        assert len(checkpoints) == len(seen) == 6
        for checkpoint in checkpoints:
            assert [zoo.bits(value) for value in checkpoint.load_model().weights] == seen[
                checkpoint.epoch, checkpoint.batch or 0
            ]


def test_people_can_ask_with_sqlite(tmp_path: Path) -> None:
    fitted(ModelCheckpoint(tmp_path / "{epoch}.keras"))
    with sqlite3.connect(tmp_path / ".ckptstore" / "manifest.sqlite") as manifest:
        found = manifest.execute("SELECT count(*) FROM checkpoint_metrics").fetchone()
    manifest.close()
    assert found[0] == 8


def test_a_damaged_best_is_no_best(model: keras.Model, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    run(callback, model, [{"val_loss": 0.1}])
    path = callback.last.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    with CheckpointStore(tmp_path) as store:
        assert store.repair()[0].kind == "digest"
    run(ModelCheckpoint(tmp_path / "best.keras", save_best_only=True), model, [{"val_loss": 0.5}])
    assert shown_at(tmp_path / "best.keras") == 0.5


class Counting(keras.layers.Layer):  # type: ignore[misc]
    """A layer whose counter JAX keeps in another dtype than its variable has."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        return inputs


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")
def test_a_model_whose_state_keras_alone_can_write_to_its_variables_is_saved_at_batches(
    tmp_path: Path,
) -> None:
    model = keras.Sequential([keras.Input((3,)), Counting(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    seen: list[list[np.ndarray]] = []

    class Seeing(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(self.model.get_weights())

    callback = ModelCheckpoint(
        tmp_path / "{batch}.weights.h5", monitor="loss", save_weights_only=True, save_freq=2
    )
    x = np.ones((8, 3), "float32")
    model.fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=[callback, Seeing()])
    for batch in (2, 4):
        model.load_weights(tmp_path / f"{batch}.weights.h5")
        assert all(map(np.array_equal, model.get_weights(), seen[batch - 1]))


def test_what_a_user_changes_in_a_fit_counts_from_the_next_save_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.weights.h5", monitor="loss", save_weights_only=True)

    def change(epoch: int, logs: Any) -> None:
        callback.save_best_only, callback.verbose = True, 1

    fitted([keras.callbacks.LambdaCallback(on_epoch_end=change), callback])
    first, second = tmp_path / "1.weights.h5", tmp_path / "2.weights.h5"
    assert first.exists() and second.exists()
    assert "Epoch 2: loss improved from" in capsys.readouterr().out


def test_without_the_metric_a_direction_is_not_needed_outside_of_a_fit(
    tmp_path: Path, model: keras.Model
) -> None:
    callback = ModelCheckpoint(tmp_path / "m.keras", monitor="foo")
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    callback.on_train_end()
    assert (tmp_path / "m.keras").exists()
    with pytest.raises(InvalidArgumentError, match="mode"):
        callback.on_epoch_end(1, {"foo": 1.0})
