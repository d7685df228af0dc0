"""A fit that has ended leaves nothing behind: what it trained on is freed with it, while its callback lives on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(
        keras.backend.backend() == "tensorflow", reason="TensorFlow keeps what a dataset calls"
    ),
    # Of Keras' converting on torch.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self._fails_at = fails_at

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == self._fails_at:
            raise OSError("the data is gone")
        return np.ones((2, 3), "float32"), np.ones((2, 1), "float32")


class Raising(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise ZeroDivisionError


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only what nobody refers to is freed, not what refers to itself in circles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def model() -> Any:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    made.compile("sgd", "mse")
    return made


def freed_after(callback: Any, *others: Any, fails_at: int | None = None, error: Any = None) -> bool:
    """Train on data that nothing else refers to; returns True if it is freed afterwards."""
    data, validation = Batches(fails_at), Batches()
    seen = [weakref.ref(data), weakref.ref(validation)]
    arguments: Any = {
        "validation_data": validation,
        "epochs": 2,
        "verbose": 0,
        "callbacks": [callback, *others],
    }
    if error is None:
        model().fit(data, **arguments)
    else:
        with pytest.raises(error):
            model().fit(data, **arguments)
    del data, validation, arguments
    if error is not None:
        gc.collect()  # the frames of an error go in a circle
    return [reference() for reference in seen] == [None, None]


@pytest.fixture
def keras_frees(no_collection: None) -> None:
    older = tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15)
    if older and not freed_after(keras.callbacks.Callback()):
        pytest.skip("this Keras itself keeps what it trained on, in a circle")


def test_data_is_freed_with_the_fit(tmp_path: Path, keras_frees: None) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss", save_freq=3)
    assert freed_after(callback)


def test_data_is_freed_with_a_fit_that_resumes(
    tmp_path: Path, keras_frees: None, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss", save_freq=3)
    freed_after(stopped, Raising(), error=ZeroDivisionError)
    callback = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss", save_freq=3)
    assert freed_after(callback)
    assert "batches skipped in" in capsys.readouterr().out
    assert freed_after(callback)
    assert "nothing is left to train" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["a callback", "data"])
def test_data_is_freed_when_an_error_ends_the_fit(how: str, tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss", save_freq=3)
    if how == "data":
        assert freed_after(callback, fails_at=3, error=Exception)
    else:
        assert freed_after(callback, Raising(), error=ZeroDivisionError)
