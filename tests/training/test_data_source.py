"""A restored data source continues in the same order and at the same position."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore.keras.state.tree import pack, unpack
from ckptstore.training.data import source as data_source
from ckptstore.training.data.source import ChangeTracker, apply, capture, kind

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def stored(saved: dict[str, Any] | None) -> dict[str, Any]:
    assert saved is not None
    document, arrays = pack(saved, "data")
    copies = {name: array.copy() for name, array in arrays.items()}
    found: dict[str, Any] = unpack(json.loads(json.dumps(document, allow_nan=False)), copies, "data")
    return found


class Shuffled(keras.utils.PyDataset):
    """Data in an order that is drawn from every kind of generator after each epoch."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.x = np.arange(size, dtype="float32").reshape(size, 1)
        self.labels = np.arange(size)
        self.size = size
        self.numpy = np.random.default_rng(1)
        self.older = np.random.RandomState(2)
        self.python = random.Random(3)
        self.keras = keras.random.SeedGenerator(4)
        self.order = np.arange(size)
        self.view = self.order[2:]
        self.listed = list(range(size))
        self.reversed = self.listed
        self.epoch = 0
        self.name: str | None = None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        at = self.order[4 * index : 4 * index + 4]
        return self.x[at], self.x[[self.listed[place] for place in at]] + self.numpy.random()

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.name = f"epoch {self.epoch}"
        self.numpy.shuffle(self.order)
        self.older.shuffle(self.order)
        self.python.shuffle(self.listed)
        self.factor = float(keras.ops.convert_to_numpy(keras.random.uniform((), seed=self.keras)))

    def batches(self) -> list[Any]:
        return [[part.tolist() for part in self[index]] for index in range(len(self))]


def epochs(data: Shuffled, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        found.append((data.batches(), data.epoch, data.name))
        data.on_epoch_end()
        found.append(data.factor)
    return found


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_keras_dataset_resumes_to_the_bit(stop: int, watched: bool) -> None:
    whole = Shuffled()
    expected = epochs(whole, 5)
    first = Shuffled()
    tracker = ChangeTracker(first)
    found = epochs(first, stop)
    saved = stored(tracker.capture() if watched else capture(first))
    epochs(first, 2)  # what a crash threw away
    again = Shuffled()
    generator, view, order, listed = again.numpy, again.view, again.order, again.listed
    apply(again, saved)
    assert again.numpy is generator and again.order is order and again.listed is listed
    assert again.reversed is again.listed and view.tolist() == order[2:].tolist()
    assert found + epochs(again, 5 - stop) == expected


def test_only_changed_attributes_of_a_source_are_saved() -> None:
    data = Shuffled()
    tracker = ChangeTracker(data)
    entry = stored(tracker.capture())[""]
    assert set(entry["attributes"]) == {"numpy", "older", "python", "keras"}
    data.on_epoch_end()
    entry = stored(tracker.capture())[""]
    assert set(entry["attributes"]) == {
        "numpy", "older", "python", "keras", "order", "view", "listed", "reversed", "epoch", "name", "factor"
    }  # fmt: skip
    assert set(entry["unchanged"]) == {"labels", "size"}


def test_a_restored_run_keeps_what_it_has_restored() -> None:
    """Saved again before anything else changes, a restored order is not taken for a constant one."""
    first = Shuffled()
    tracker = ChangeTracker(first)
    first.on_epoch_end()
    saved = stored(tracker.capture())
    second = Shuffled()
    tracker = ChangeTracker(second)
    apply(second, saved)
    third = Shuffled()
    apply(third, stored(tracker.capture()))
    assert epochs(third, 2) == epochs(first, 2)


def test_captured_state_does_not_change_with_the_source() -> None:
    data = Shuffled()
    saved = capture(data)
    assert saved is not None
    before = json.dumps(pack(saved, "data")[0]), saved[""]["attributes"]["order"].tolist()
    epochs(data, 2)
    assert (json.dumps(pack(saved, "data")[0]), saved[""]["attributes"]["order"].tolist()) == before
    again = Shuffled()
    apply(again, saved)
    epochs(again, 2)
    assert saved[""]["attributes"]["order"].tolist() == before[1]


def test_large_integers_are_left_alone_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_source, "LARGEST_NBYTES", 12 * 8 - 1)
    data = Shuffled()
    tracker = ChangeTracker(data)
    assert tracker.left_out == ("labels", "order", "listed", "reversed")
    data.on_epoch_end()
    assert not {"order", "listed", "labels"} & set(stored(tracker.capture())[""]["attributes"])
    monkeypatch.setattr(data_source, "LARGEST_NBYTES", 12 * 8)
    assert ChangeTracker(data).left_out == ()


def test_two_captures_of_a_source_are_restored_in_turn() -> None:
    """A value that had changed at one capture only is saved in both."""

    def at(epoch: int) -> Shuffled:
        data = Shuffled()
        epochs(data, epoch)
        data.epoch = epoch % 2  # as it was in the beginning at each second one
        return data

    for noted, now in [(0, 1), (1, 2), (0, 2), (0, 0)]:
        data = Shuffled()
        tracker = ChangeTracker(data)
        epochs(data, noted)
        data.epoch = noted % 2
        tracker.note()
        epochs(data, now - noted)
        data.epoch = now % 2
        both = [stored(saved) for saved in tracker.capture_both()]
        assert all({"labels", "size"} <= set(saved[""]["unchanged"]) for saved in both)
        again = Shuffled()
        for _ in range(2):  # no warning: these are errors
            for saved, epoch in zip(both, (noted, now), strict=True):
                apply(again, saved)
                assert (again.batches(), again.epoch) == (at(epoch).batches(), at(epoch).epoch)
        again.size = 24
        with pytest.warns(UserWarning, match="size was 12 and is 24"):
            apply(again, both[0])


def test_settings_of_the_code_win_and_the_difference_is_reported() -> None:
    first = Shuffled()
    saved = stored(ChangeTracker(first).capture())
    again = Shuffled()
    again.size, again.labels = 24, again.labels[::-1]
    del again.name
    with pytest.warns(UserWarning, match="size was 12 and is 24") as caught:
        apply(again, saved)
    assert "labels holds other integers" in str(caught[0].message)
    assert "name is missing" in str(caught[0].message)
    assert again.size == 24 and again.labels[0] == 11


def test_a_generator_of_another_kind_is_reported_and_the_rest_restored() -> None:
    first = Shuffled()
    first.epoch = 7
    again = Shuffled()
    again.numpy = np.random.Generator(np.random.Philox(1))
    again.older = None  # type: ignore[assignment]
    with pytest.warns(
        UserWarning, match=r"numpy: .*PCG64, and it is numpy.Generator/Philox.*older: "
    ) as caught:
        apply(again, stored(capture(first)))
    warned = [warning for warning in caught if "the data is not as it was" in str(warning.message)]
    assert len(warned) == 1 and again.epoch == 7


@pytest.mark.parametrize("live", [np.arange(3), np.arange(12, dtype="int32"), None, "text"])
def test_an_array_of_another_shape_is_replaced(live: Any) -> None:
    first, again = Shuffled(), Shuffled()
    first.on_epoch_end()
    again.order = live
    apply(again, stored(capture(first)))
    assert again.order is not live and again.order.tolist() == first.order.tolist()


def test_a_read_only_array_is_replaced() -> None:
    first, again = Shuffled(), Shuffled()
    first.on_epoch_end()
    again.order.flags.writeable = False
    apply(again, stored(capture(first)))
    assert again.order.tolist() == first.order.tolist() and again.order.flags.writeable


def test_an_order_in_the_backends_memory_stays_there() -> None:
    first, again = Shuffled(), Shuffled()
    first.order, again.order = (
        keras.ops.convert_to_tensor(np.arange(5, dtype="int32")[::step]) for step in (-1, 1)
    )
    apply(again, stored(capture(first)))
    assert keras.ops.is_tensor(again.order)
    assert keras.ops.convert_to_numpy(again.order).tolist() == [4, 3, 2, 1, 0]


def test_data_is_not_touched() -> None:
    class Others(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__(workers=3)
            self.floats, self.table = np.zeros(3), np.zeros((2, 2), int)
            self.texts, self.mixed, self.large = ["a"], [1, "a"], [2**70, 1]
            self.things = {"a": 1}

    first, again = Others(), Others()
    saved = stored(capture(first))
    assert set(saved[""]["attributes"]) == {"large"}
    tracker = ChangeTracker(first)
    first.large.reverse()
    apply(again, stored(tracker.capture()))
    assert again.large == [1, 2**70]


# --- sources that know their position --------------------------------------------------------------


class ReportsPosition:
    def __init__(self) -> None:
        self.at = 0
        self.tensor: Any = None

    def __iter__(self) -> Iterator[int]:
        return iter([self.at])

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "inner": [(self.tensor, {"t": self.tensor})]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.inner = state["at"], state["inner"]


class OtherMethodNames:
    at = 0

    def get_state(self) -> Any:
        return self.at

    def set_state(self, state: Any) -> None:
        self.at = state


@pytest.mark.parametrize("make", [ReportsPosition, OtherMethodNames])
def test_a_source_reports_its_own_position(make: Any) -> None:
    first, again = make(), make()
    first.at = 5
    assert kind(first) == "position"
    for saved in (capture(first), ChangeTracker(first).capture()):
        again.at = 0
        apply(again, stored(saved))
        assert again.at == 5


class Iterates:
    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[int]:
        return iter([self.at])


def test_kinds() -> None:
    assert kind(Shuffled()) == kind(Iterates()) == "attributes"
    tensor = keras.ops.zeros((3,))
    for source in (None, [1], {"x": 1}, np.zeros(3), tensor, (item for item in ()), object(), print, "text"):
        assert kind(source) == "none"
        assert capture(source) is None and ChangeTracker(source).capture() is None


def test_an_iterable_of_the_user() -> None:
    first, again = Iterates(), Iterates()
    first.at = 4
    apply(again, stored(capture(first)))
    assert again.at == 4


# --- torch -------------------------------------------------------------------------------------------

torch_only = pytest.mark.skipif(keras.backend.backend() != "torch", reason="is torch's")


def loader(own_sampler: bool) -> Any:
    import torch
    from torch.utils.data import DataLoader, Dataset, Sampler

    class Noisy(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.rng = np.random.default_rng(5)

        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            return index + self.rng.random()

    class Walk(Sampler):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.order = torch.arange(10)
            self.epoch = 0

        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Any:
            self.epoch += 1
            self.order.copy_(self.order.roll(self.epoch))
            return iter(self.order.tolist())

    generator = torch.Generator().manual_seed(7)
    if own_sampler:
        return DataLoader(Noisy(), batch_size=4, sampler=Walk(), generator=generator)
    return DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)


@torch_only
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("own_sampler", [False, True])
def test_a_torch_loader_resumes_to_the_bit(own_sampler: bool, watched: bool) -> None:
    def epoch(source: Any) -> list[Any]:
        return [batch.tolist() for batch in source]

    whole, first, again = (loader(own_sampler) for _ in range(3))
    expected = [epoch(whole) for _ in range(4)]
    tracker = ChangeTracker(first)
    found = [epoch(first), epoch(first)]
    saved = stored(tracker.capture() if watched else capture(first))
    generator = again.generator
    apply(again, saved)
    assert again.generator is generator
    assert [*found, epoch(again), epoch(again)] == expected
    assert kind(whole) == "attributes"


@torch_only
def test_a_sampler_that_knows_its_position() -> None:
    first, again = loader(True), loader(True)
    for loaded in (first, again):
        kind_of_sampler = type(loaded.sampler)
        kind_of_sampler.state_dict = lambda self: {"epoch": self.epoch}
        kind_of_sampler.load_state_dict = lambda self, state: setattr(self, "epoch", state["epoch"])
    list(first)
    saved = stored(ChangeTracker(first).capture())
    assert saved["sampler."] == {"position": {"epoch": 1}}
    apply(again, saved)
    assert again.sampler.epoch == 1


@torch_only
def test_tensors_of_a_position_come_back_as_tensors() -> None:
    import torch

    first, again = ReportsPosition(), ReportsPosition()
    first.tensor = torch.Generator().manual_seed(3).get_state()
    apply(again, stored(capture(first)))
    ((tensor, nested),) = again.inner
    assert torch.equal(tensor, first.tensor) and torch.equal(nested["t"], first.tensor)


def test_torch_is_not_imported() -> None:
    if keras.backend.backend() == "torch":
        pytest.skip("torch is imported already")
    program = (
        "import sys, keras; from ckptstore.training.data.source import *; data = keras.utils.PyDataset(); data.a = 1;"
        "apply(data, capture(data)); ChangeTracker(data).capture(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False"]
