"""State of the user's own that Keras does not track: found by its path, saved without pickle, restored in place."""

from __future__ import annotations

import functools
import json
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore.keras.state import tree
from ckptstore.keras.state.arrays import host_array
from ckptstore.keras.state.user_state import UserState

pytestmark = pytest.mark.backend


class Note:
    """A user's object with attributes and a slot-only friend."""

    def __init__(self) -> None:
        self.values: Any = [1, 2]
        # Keras would make the dicts of a layer its own.
        self.kinds = kinds()
        self.friend = Slotted()
        self.friend.back = self


class Slotted:
    __slots__ = ("back", "count")

    def __init__(self) -> None:
        self.count = 0


def kinds() -> dict[str, Any]:
    return {
        "deque": deque([1], maxlen=2), "counter": Counter("a"), "default": defaultdict(int, a=1),
        "ordered": OrderedDict(b=1), "set": {1}, "tuple": (1, 2.0), "none": None, "text": "a",
    }  # fmt: skip


class Holding(keras.layers.Layer):
    """A layer with attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Any = 0
        self.notes = {"one": Note(), "words": "none"}
        self.large: Any = {}
        self.array = np.zeros(3)
        self.tensor = keras.ops.zeros(2)
        self.draws = [np.random.default_rng(1), random.Random(2)]

    def call(self, inputs: Any) -> Any:
        return inputs


def model_of(layer: Any, **compiled: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    model.compile(**{"optimizer": "sgd", "loss": "mse", **compiled})
    return model


def stored(state: UserState) -> dict[str, Any]:
    """Return what is captured, as it comes back from a payload."""
    document, arrays = tree.pack(state.capture(), "user")
    arrays = {name: np.array(array) for name, array in arrays.items()}
    found: dict[str, Any] = tree.unpack(json.loads(json.dumps(document)), arrays, "user")
    return found


def test_what_did_not_change_is_not_saved() -> None:
    model = model_of(Holding())
    assert UserState(model).capture() == {}
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    state = UserState(model)
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0, validation_split=0.5)
    assert state.capture() == {}


def test_values_of_all_kinds_are_restored_where_they_are() -> None:
    layer = Holding()
    model = model_of(layer)
    state = UserState(model)
    note: Any = layer.notes["one"]
    layer.count, layer.notes["words"], model.epochs_seen = 3, "some", 4
    note.values.append({"a": (1, None)})
    note.friend.count = 5
    note.kinds["deque"].extend([2, 3])
    note.kinds["counter"]["a"] += 1
    note.kinds["default"]["new"] += 2
    note.kinds["set"].add(7)
    layer.array += 1
    layer.tensor = layer.tensor + 2
    expected_kinds = json.dumps({key: repr(value) for key, value in note.kinds.items()})
    for draw in layer.draws:
        draw.random()
    saved = stored(state)
    expected = [draw.random() for draw in layer.draws]

    other = Holding()
    again = model_of(other)
    begun = UserState(again)
    array, values, draws = other.array, other.notes["one"].values, list(other.draws)  # type: ignore[attr-defined]
    report = begun.restore(saved)
    assert report.lost == ()
    assert (other.count, other.notes["words"], again.epochs_seen) == (3, "some", 4)
    assert values == [1, 2, {"a": (1, None)}]
    assert other.notes["one"].friend.count == 5  # type: ignore[attr-defined]
    assert json.dumps({key: repr(value) for key, value in other.notes["one"].kinds.items()}) == expected_kinds
    assert array.tolist() == [1, 1, 1]
    assert host_array(other.tensor).tolist() == [2, 2]
    assert type(other.tensor) is type(layer.tensor)
    assert [draw.random() for draw in draws] == expected
    # The next save of the resumed fit has all of it too, though nothing has changed since.
    assert begun.capture()["values"].keys() == saved["values"].keys()


def test_what_losses_and_metrics_enclose_is_restored() -> None:
    def make(begin: int) -> tuple[Any, Any]:
        steps, seen = begin, [begin]

        def loss(targets: Any, outputs: Any) -> Any:
            nonlocal steps
            steps += 1
            seen.append(steps)
            return steps

        return functools.partial(loss), lambda: (steps, seen)

    (loss, _), (other, read) = make(0), make(0)
    model, again = (model_of(Holding(), loss=function) for function in (loss, other))
    state = UserState(model)
    loss(None, None)
    loss(None, None)
    assert UserState(again).restore(stored(state)).lost == ()
    assert read() == (2, [0, 1, 2])


def test_what_cannot_be_saved_or_is_gone_is_named() -> None:
    layer = Holding()
    state = UserState(model_of(layer))
    layer.count = iter("ab")
    layer.large = dict.fromkeys(range(30_000), ())
    layer.notes["two"] = Note()
    saved = stored(state)
    lost = " ".join(UserState(model_of(Holding())).restore(saved).lost)
    assert "Holding[2].count (a value of type str_ascii_iterator cannot be saved)" in lost
    assert "Holding[2].large (it has too many elements)" in lost
    assert "Holding[2].notes['two'].values (nothing of that name is there now)" in lost


def test_a_mark_of_what_is_made_does_not_come_back_without_it() -> None:
    layer = Holding()
    layer.is_made, layer.made = False, None
    state = UserState(model_of(layer))
    layer.is_made, layer.made = True, iter(())
    other = Holding()
    other.is_made, other.made = False, None
    lost = UserState(model_of(other)).restore(stored(state)).lost
    assert not other.is_made
    assert len(lost) == 2


class Unlike:
    """An object of a library whose length, attributes or state cannot be asked for."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> int:
        raise self._error

    def state_dict(self) -> dict[str, Any]:
        raise self._error

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Lazy(Unlike):
    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(name)


for kind in (Unlike, Lazy):
    kind.__module__ = "numpy.made_up"


def test_objects_that_raise_when_they_are_looked_at_end_no_training() -> None:
    """Datasets of unknown length do (``len()`` raises), and loaders that have not begun."""
    layer = Holding()
    layer.dataset, layer.lazy = Unlike(TypeError("the length is unknown")), Lazy(OSError())
    state = UserState(model_of(layer))
    assert state.capture() == {}
    layer.dataset = Unlike(ValueError("not begun"))
    (lost,) = UserState(model_of(Holding())).restore(stored(state)).lost
    assert lost == "Holding[2].dataset (its state_dict() raises ValueError: not begun)"


def test_only_a_value_that_changed_is_named_as_lost() -> None:
    layer = Holding()
    note: Any = layer.notes["one"]
    note.names, note.counts = {Note: 1}, defaultdict(lambda: 0, a=1)
    state = UserState(model_of(layer))
    assert state.capture() == {}
    note.counts["a"] += 1
    assert state.capture() == {
        "lost": {"Holding[2].notes['one'].counts": "it cannot be saved without pickle"}
    }


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch's own objects")
def test_a_torch_optimizer_on_a_model_is_restored() -> None:
    import torch

    def made() -> tuple[Any, Any]:
        layer = Holding()
        layer.weight = torch.nn.Parameter(torch.ones(2))
        model = model_of(layer)
        model.own = torch.optim.Adam([layer.weight], lr=0.1)
        return model, layer

    (model, layer), (again, other) = made(), made()
    state = UserState(model)
    for _ in range(3):
        layer.weight.grad = torch.tensor([1.0, 2.0])
        model.own.step()
    model.own.param_groups[0]["lr"] = 0.05
    assert UserState(again).restore(stored(state)).lost == ()
    for one, held in ((model, layer), (again, other)):
        held.weight.grad = torch.tensor([0.5, 0.5])
        one.own.step()
    assert torch.equal(layer.weight, other.weight)
    assert again.own.param_groups[0]["params"][0] is other.weight


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own objects")
def test_a_raw_variable_is_assigned_to() -> None:
    import tensorflow as tf

    def made() -> tuple[Any, Any]:
        layer = Holding()
        layer.raw, layer.many = tf.Variable(1.0), [tf.Variable([1, 2])]
        return model_of(layer), layer

    (model, layer), (again, other) = made(), made()
    state = UserState(model)
    layer.raw.assign(3.0)
    layer.many[0].assign([5, 6])
    raw, many = other.raw, other.many[0]
    report = UserState(again).restore(stored(state))
    assert (report.lost, report.compiled) == ((), ())
    assert other.raw is raw
    assert other.many[0] is many
    assert (float(raw), many.numpy().tolist()) == (3.0, [5, 6])
