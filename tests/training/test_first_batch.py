"""A resumed fit whose data is not what it was says so, once; one whose data is the same, or is not known, does not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.training.data.first_batch import digest_of, is_other
from small_fits import another_process, model

pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
BACKEND = os.environ["KERAS_BACKEND"]
GENERATOR = "the first batches of the Python generator are not those of the first start"
DATA = "the data is not what it was: its first batch, read again, is not the one"


class Draws(keras.utils.PyDataset):  # type: ignore[misc]
    """Draws each batch from a function."""

    def __init__(self, draw: Callable[[int], Any], batches: int) -> None:
        super().__init__()
        self.draw, self.batches = draw, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Any:
        return self.draw(index)


def drawing(seed: int | None) -> Callable[[int], Any]:
    """Return a function that draws a batch, from a generator that nobody but it has."""
    own = np.random.default_rng(seed)

    def draw(_: int) -> Any:
        inputs = own.normal(size=(4, 3)).astype("float32")
        return inputs, inputs[:, :1]

    return draw


def by_index(index: int) -> Any:
    return drawing(index)(index)


def generated(seed: int | None) -> dict[str, Any]:
    def batches(draw: Callable[[int], Any]) -> Iterator[Any]:
        while True:
            yield draw(0)

    return {"x": batches(drawing(seed)), "steps_per_epoch": 6}


def loaded(draw: Callable[[int], Any]) -> dict[str, Any]:
    from torch.utils.data import DataLoader, Dataset

    class Items(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            inputs, targets = draw(index)
            return inputs[0], targets[0]

    return {"x": DataLoader(Items(), batch_size=4)}


class Ends(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the fit after a batch of its first epoch; at -1, before the second epoch."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.at == -1 and epoch == 1:
            raise InterruptedError

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == self.at:
            raise InterruptedError


def resumed_warnings(
    store: Path, data: Callable[[], dict[str, Any]], ends: tuple[int, ...], save_freq: Any = 2
) -> list[str]:
    """Train, with fits that end early as `Ends` says, and return what the last resume warns of the data."""
    found: list[str] = []
    for at in (*ends, None):
        another_process()
        keras.utils.set_random_seed(1)
        saver = ckptstore.StoreCheckpoint(
            store, save_freq=save_freq, background=False, save_on_exception=False
        )
        callbacks = [saver] if at is None else [saver, Ends(at)]
        stops = nullcontext() if at is None else pytest.raises(InterruptedError)
        with warnings.catch_warnings(record=True) as caught, stops:
            warnings.simplefilter("always", UserWarning)
            model().fit(**data(), epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
        found = [str(warning.message) for warning in caught if "exact" in str(warning.message)]
    return found


def test_a_generator_that_draws_from_a_generator_of_its_own_is_noticed(tmp_path: Path) -> None:
    (line,) = resumed_warnings(tmp_path / "unseeded", lambda: generated(None), (4,))
    assert GENERATOR in line
    assert "Give the random generator a seed" in line
    # Each start is compared with the first.
    assert len(resumed_warnings(tmp_path / "again", lambda: generated(None), (3, 5))) == 1
    assert resumed_warnings(tmp_path / "seeded", lambda: generated(5), (3, 5)) == []


DATASETS = {
    "dataset": lambda draw: {"x": Draws(draw, 6)},
    "dataset over epochs": lambda draw: {"x": Draws(draw, 20), "steps_per_epoch": 6},
    "loader": loaded,
}


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow reads datasets in threads of its own")
@pytest.mark.parametrize(
    ("kind", "end"), [("dataset", 4), ("dataset over epochs", 4), ("dataset over epochs", -1), ("loader", 4)]
)
def test_data_that_draws_from_a_generator_of_its_own_is_noticed(kind: str, end: int, tmp_path: Path) -> None:
    if kind == "loader":
        pytest.importorskip("torch")
    (line,) = resumed_warnings(tmp_path / "unseeded", lambda: DATASETS[kind](drawing(None)), (end,))
    assert DATA in line
    assert resumed_warnings(tmp_path / "same", lambda: DATASETS[kind](by_index), (3, end)) == []


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow reads datasets in threads of its own")
def test_nothing_is_said_where_no_batch_is_read_again(tmp_path: Path) -> None:
    # The next epoch's batches are other ones in any case.
    assert resumed_warnings(tmp_path, lambda: {"x": Draws(drawing(None), 6)}, (-1,), "epoch") == []


def test_a_digest_is_of_values_in_host_memory_alone() -> None:
    large = np.zeros((40, 500, 500), "uint8")
    other = large.copy()
    other[-1] = 1
    assert is_other(digest_of(large), digest_of(other))
    assert not is_other(digest_of((large, None)), digest_of([large.copy()]))
    assert is_other(digest_of(np.zeros(3)), digest_of(np.zeros((3, 1))))
    tensor = keras.ops.convert_to_tensor(np.arange(3.0, dtype="float32"))
    assert not is_other(digest_of(tensor), digest_of(np.arange(3.0, dtype="float32")))
    # Text and objects may differ from process to process, and of another backend nothing is known.
    assert digest_of([object(), np.array([{}])]) is None
    now = digest_of(large)
    assert now is not None
    assert not is_other({**now, "values": "", "backend": "another"}, now)
    assert not is_other(None, now)
