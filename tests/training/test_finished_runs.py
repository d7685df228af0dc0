"""A finished run is handed to the same fit alone: any other is refused, or, for backups, starts over."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.training.fingerprint import fingerprint, fit_data
from small_fits import AtBatch, another_process, data, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    keras.utils.set_random_seed(1)


def model(optimizer: Any = "sgd", **compiled: Any) -> Any:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile(**{"optimizer": optimizer, "loss": "mse", **compiled})
    return made


def saver(path: Path, **options: Any) -> ckptstore.StoreCheckpoint:
    return ckptstore.StoreCheckpoint(path, **{"monitor": "loss", "background": False, **options})


X, Y = data()["x"], data()["y"]
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learning_rate was 0.01 there and is 0.1": ({"optimizer": keras.optimizers.SGD(0.1)}, {}),
    "optimizer.momentum was 0.0 there and is 0.9": ({"optimizer": keras.optimizers.SGD(momentum=0.9)}, {}),
    "loss was mse there and is mae": ({"loss": "mae"}, {}),
    "metrics was None there and is [mae]": ({"metrics": ["mae"]}, {}),
    "batch_size was 4 there and is 8": ({}, {"batch_size": 8}),
    "batches_per_epoch was 12 there and is 5": ({}, {"steps_per_epoch": 5}),
    "shuffle was true there and is false": ({}, {"shuffle": False}),
    "class_weight was None there": ({}, {"class_weight": {0: 1.0, 1: 2.0}}),
    "x.shape was (48, 3) there and is (46, 3)": ({}, {"x": X[:46], "y": Y[:46], "batch_size": 4}),
    "epochs was 2 there and is 1": ({}, {"epochs": 1}),
    "x.values was xxh3:": ({}, {"x": X[::-1]}),
    "y.values was xxh3:": ({}, {"y": np.where(np.arange(48)[:, None] == 31, 0, Y)}),
    "validation x was nothing there": ({}, {"validation_data": (X, Y)}),
}


def test_another_fit_is_refused_and_the_first_difference_named(tmp_path: Path) -> None:
    fit(model(), saver(tmp_path))
    for named, (compiled, options) in OTHERS.items():
        another_process()
        other = model(**compiled)
        before = other.get_weights()
        with pytest.raises(ckptstore.RunMismatchError, match=re.escape(named)) as caught:
            fit(other, saver(tmp_path), **options)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.run, error.where) == ("default", named.partition(" was ")[0])
        assert "run='...'" in error.hint
        assert all(np.array_equal(*pair) for pair in zip(before, other.get_weights(), strict=True))
        assert other._initial_epoch is None
    another_process()
    again = saver(tmp_path)
    assert fit(model(), again).epoch == [0, 1]
    assert again.resumed_from is not None


def test_the_same_fit_with_more_epochs_continues(tmp_path: Path) -> None:
    fit(model(), saver(tmp_path))
    another_process()
    assert fit(model(), saver(tmp_path), epochs=3).epoch == [0, 1, 2]


def test_rates_that_callbacks_changed_are_no_difference(tmp_path: Path) -> None:
    def halving() -> list[Any]:
        return [
            keras.callbacks.ReduceLROnPlateau("loss", patience=0, min_delta=10.0, factor=0.5),
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        ]

    trained = model()
    fit(trained, saver(tmp_path), *halving())
    rate = float(keras.ops.convert_to_numpy(trained.optimizer.learning_rate))
    another_process()
    restored = model()
    fit(restored, saver(tmp_path), *halving())
    assert float(keras.ops.convert_to_numpy(restored.optimizer.learning_rate)) == rate
    # The model that has just been trained, in a notebook.
    assert fit(trained, saver(tmp_path, run="default"), *halving(), epochs=3).epoch == [0, 1, 2]


def test_a_named_run_continues_with_other_values_and_says_so(tmp_path: Path) -> None:
    fit(model(), saver(tmp_path, run="mine"))
    another_process()
    with pytest.warns(UserWarning, match=r"other settings, data or versions .*: x\.values xxh3:\w+ -> xxh3:"):
        fit(model(), saver(tmp_path, run="mine"), x=X[::-1], epochs=3)
    # In one process the name cannot tell both fits apart.
    with pytest.raises(
        ckptstore.RunMismatchError, match=r"x\.values.*\(seed what draws or splits the data; or"
    ):
        fit(model(), saver(tmp_path, run="mine"), x=X, epochs=4)


def test_an_unfinished_run_continues_with_a_warning(tmp_path: Path) -> None:
    def act() -> None:
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        fit(model(), saver(tmp_path), AtBatch(3, act))
    with pytest.warns(UserWarning, match=r"y\.values xxh3:"):
        fit(model(), saver(tmp_path), y=-Y)


def test_a_run_of_an_older_version_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = fingerprint.take
    monkeypatch.setattr(fingerprint, "take", lambda model: {**taken(model), "learning_rates": []})
    monkeypatch.setattr(fit_data, "describe", lambda loop: None)
    fit(model(), saver(tmp_path))
    monkeypatch.undo()
    another_process()
    assert fit(model(keras.optimizers.SGD(0.5)), saver(tmp_path), x=-X).epoch == [0, 1]


def test_backups_of_another_fit_start_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def backup(**options: Any) -> list[int]:
        trained = model(**options)

        def stop() -> None:
            trained.stop_training = True

        return fit(trained, ckptstore.BackupAndRestore(tmp_path / "backup"), AtBatch(8, stop), epochs=3).epoch

    assert backup() == [0]
    assert (tmp_path / "backup").exists()
    # The next fold of the same process trains, as with Keras' own.
    assert backup() == [0]
    assert "nothing is left" not in capsys.readouterr().out
    another_process()
    assert backup() == [0]
    assert "nothing is left" in capsys.readouterr().out
    another_process()
    assert backup(loss="mae") == [0]
    assert "was finished by another fit (loss was mse and is mae), and starts over" in capsys.readouterr().out


def test_the_file_of_the_next_fold_is_its_own_best(tmp_path: Path) -> None:
    path = tmp_path / "best.keras"

    def best(scale: float, *callbacks: Any) -> Any:
        saving = ckptstore.ModelCheckpoint(path, monitor="loss", save_best_only=True)
        fit(model(), saving, *callbacks, y=Y * scale)
        return saving

    first = best(0.1)
    second = best(10.0)
    assert second.best > first.best
    loaded = keras.saving.load_model(path)
    assert loaded.evaluate(X, Y * 10.0, verbose=0) > first.best
    another_process()
    assert best(20.0).best == second.best
    another_process()
    turned = ckptstore.ModelCheckpoint(path, monitor="loss", save_best_only=True, mode="max")
    with pytest.warns(
        UserWarning, match="was saved with monitor='loss', mode='min', and is compared with .*mode='max'"
    ):
        fit(model(), turned)


# --- the description of data -------------------------------------------------------------------


class Loop:
    """A fit, as far as a description reads it."""

    class data:
        batch_size = 4
        batches_per_epoch = None

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def described(**arguments: Any) -> dict[str, Any]:
    return fit_data.describe(Loop(**arguments))  # type: ignore[arg-type]


def test_large_arrays_are_described_by_some_of_their_rows() -> None:
    large = np.zeros((1 << 20, 8), "float32")
    before = described(x=large)
    assert before["x"]["shape"] == "(1048576, 8)"
    large[1] = 1
    assert described(x=large) == before
    large[-1] = 1
    assert described(x=large) != before


def test_nested_data_is_described_by_its_parts() -> None:
    found = described(x={"a": [X, Y]}, y=[1.0, 2.0], val_x=(value for value in ()))
    assert {"x['a'][0]", "x['a'][1]", "y", "validation x"} <= set(found)
    assert found["validation x"] == {"class": "generator"}
    objects = np.array([["a", 1], ["b", None]], object)
    assert described(x=objects)["x"]["values"] is not None
    assert described(x=np.array([object()], object))["x"]["values"] is None


def test_tables_and_loaders_are_described_without_reading_them() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": range(300), "b": 0.5})
    first = described(x=table)["x"]
    assert (first["shape"], first["dtype"]) == ("(300, 2)", ["int64", "float64"])
    assert described(x=table.assign(b=1.0))["x"] != first
    torch = pytest.importorskip("torch")
    whole = torch.utils.data.TensorDataset(torch.arange(8.0))
    loaders = [
        torch.utils.data.DataLoader(torch.utils.data.Subset(whole, indices)) for indices in ([0, 1], [0, 2])
    ]
    first, other = (described(x=loader) for loader in loaders)
    assert first != other
    assert described(x=loaders[0]) == first
