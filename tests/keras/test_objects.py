"""Tests of ``objects=``: what is saved beside a model, by what it can do, and restored as a whole or not at all."""

from __future__ import annotations

import json
import random
from collections import namedtuple
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers

import ckptstore
from ckptstore.errors import (
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotReadyError,
    NoResumePointError,
    ObjectsMismatchError,
    RefusedByLayerError,
    RefusedByObjectError,
)
from ckptstore.keras.state import objects as objects_state
from ckptstore.keras.state import random_state
from ckptstore.keras.state.arrays import host_array

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
BACKEND = keras.backend.backend()
Adam = namedtuple("Adam", ["count", "mu"])


def _model(units: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), layers.Dense(units)])


def _bits(model: keras.Model) -> list[bytes]:
    return [host_array(variable).tobytes() for variable in model.variables]


def _changed(model: keras.Model) -> None:
    for variable in model.variables:
        variable.assign(variable + 1)


class Counter:
    """Keeps a number by the two methods that a user would write."""

    def __init__(self) -> None:
        self.state: Any = {"seen": 0, (1, "key"): [np.arange(3), None, b"x", 2.5]}

    def get_state(self) -> Any:
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state


class Refusing(Counter):
    """Changes half of itself, then raises, when it is given what was saved."""

    def set_state(self, state: Any) -> None:
        self.state = {"half": True}
        if state["seen"]:
            raise RuntimeError("no room")
        self.state = state


def _objects() -> dict[str, Any]:
    return {
        "counter": Counter(),
        "tree": (Adam(np.int32(1), {"kernel": np.ones((2, 3))}), (), [1.0, 2.0], None),
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "numpy": np.random.default_rng(3),
        "python": random.Random(3),
        "metric": keras.metrics.Mean(name="mean"),
        "variable": keras.Variable([1.0, 2.0]),
    }


def test_all_kinds_come_back_as_they_were_at_the_save(tmp_path: Path) -> None:
    model, objects = _model(), _objects()
    objects["metric"].update_state([1.0, 2.0])
    tree = objects["tree"]
    with ckptstore.CheckpointStore(tmp_path) as store:
        saved = store.save(model, epoch=2, objects=objects)
        assert saved.resumable
        expected = _bits(model), objects["numpy"].random(), objects["python"].random()
        _changed(model)
        objects["counter"].state["seen"] = 7
        objects["tree"][0].mu["kernel"][:] = 5
        objects["tree"][2].append(3.0)
        objects["tree"] = (Adam(np.int32(9), objects["tree"][0].mu), (), objects["tree"][2], "later")
        objects["bfloat16"][:] = 0
        objects["metric"].update_state([9.0])
        objects["variable"].assign([0.0, 0.0])
        assert store.resume(model, "default", objects=objects) == saved
    assert (_bits(model), objects["numpy"].random(), objects["python"].random()) == expected
    counter = objects["counter"].state
    assert counter["seen"] == 0
    assert [type(value) for value in counter[1, "key"]] == [np.ndarray, type(None), bytes, float]
    # On the structure of the live tree, and in place where that is possible.
    assert objects["tree"][0] == Adam(1, objects["tree"][0].mu)
    assert objects["tree"][0].mu is tree[0].mu
    assert tree[0].mu["kernel"].tolist() == np.ones((2, 3)).tolist()
    assert objects["tree"][1:] == ((), [1.0, 2.0], None)
    assert objects["bfloat16"].tolist() == [0, 1, 2, 3]
    assert float(objects["metric"].result()) == 1.5
    assert host_array(objects["variable"]).tolist() == [1.0, 2.0]


def test_a_bare_model_with_objects_can_be_resumed_and_without_is_refused(tmp_path: Path) -> None:
    with ckptstore.CheckpointStore(tmp_path) as store:
        with pytest.raises(ModelNotReadyError, match=r"objects=\{'optimizer': optimizer\}"):
            store.save(_model(), epoch=0)
        store.save(_model(), epoch=0, weights_only=True)
        with pytest.raises(NoResumePointError, match="none can be resumed from") as raised:
            store.resume(_model(), "default")
        assert (raised.value.run, raised.value.latest) == ("default", 1)
        assert isinstance(raised.value, LookupError)
        assert "store.begin(run)" in raised.value.hint
        assert store.resume(_model(), "other") is None
        store.begin("default")
        assert store.resume(_model(), "default") is None
        store.save(_model(), epoch=0, objects={})
        assert store.resume(_model(), "default", objects={}).version == 2


def test_a_fit_beside_checkpoints_without_state_warns_that_it_starts_over(tmp_path: Path) -> None:
    model = _model()
    model.compile("sgd", "mse")
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, weights_only=True)
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="loss", run="default", background=False)
    with pytest.warns(UserWarning, match="run default starts over"):
        model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda objects: objects.pop("counter"), "counter is Counter"),
        (lambda objects: objects.update(more=1), "more is nothing in the checkpoint"),
        (lambda objects: objects.update(counter=random.Random()), "counter is Counter"),
        (
            lambda objects: objects.update(numpy=np.random.default_rng().bit_generator),
            "numpy is numpy.Generator",
        ),
        (lambda objects: objects.update(metric=keras.metrics.Sum()), "metric is Mean"),
        (lambda objects: objects.update(variable=keras.Variable([1.0])), r"variable is \(2,\) float32"),
        (lambda objects: objects.update(tree=(None, (), [1.0], None)), r"tree\[0\] is Adam"),
        (
            lambda objects: objects["tree"][0].mu.update(kernel=np.ones((2, 4))),
            r"tree\[0\]\.mu\['kernel'\] is \(2, 3\) float64 in the checkpoint and \(2, 4\) float64",
        ),
        (
            lambda objects: objects["tree"][0].mu.update(bias=np.ones(2)),
            r"tree\[0\]\.mu\['bias'\] is nothing in the checkpoint",
        ),
        (lambda objects: objects.clear(), "counter is Counter"),
    ],
)
def test_another_structure_is_an_error_that_names_the_first_difference(
    tmp_path: Path, change: Any, where: str
) -> None:
    model, objects = _model(), _objects()
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, objects=_objects())
        _changed(model)
        objects["counter"].state = before = {"seen": 5}
        change(objects)
        expected = _bits(model)
        counter = objects.get("counter")
        for restore in (
            lambda: store.resume(model, "default", objects=objects),
            lambda: store.restore("latest", model, objects=objects),
        ):
            with pytest.raises(ObjectsMismatchError, match=where) as raised:
                restore()
            assert raised.value.where in str(raised.value)
        assert _bits(model) == expected
        assert getattr(counter, "state", before) is before


def test_a_resume_needs_all_objects_and_a_restore_may_do_without(tmp_path: Path) -> None:
    model = _model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, objects={"counter": Counter()})
        expected = _bits(model)
        _changed(model)
        with pytest.raises(ObjectsMismatchError, match="counter is Counter"):
            store.resume(model, "default")
        assert _bits(model) != expected
        store.restore("latest", model)
        assert _bits(model) == expected


def test_an_object_that_refuses_leaves_everything_as_it_was(tmp_path: Path) -> None:
    model = _model()
    objects: dict[str, Any] = {
        "before": Counter(), "tree": (1, np.ones(2)), "refusing": Refusing(), "after": Counter(),
        "numpy": np.random.default_rng(1),
    }  # fmt: skip
    objects["refusing"].state = {"seen": 1}
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, objects=objects)
        _changed(model)
        for name in ("before", "refusing", "after"):
            objects[name].state = {"seen": 0, "now": name}
        objects["tree"] = (2, objects["tree"][1])
        objects["tree"][1][:] = 4
        draws = objects["numpy"].bit_generator.state
        expected = _bits(model)
        generators = random_state.capture()
        with pytest.raises(RefusedByObjectError, match="no room") as raised:
            store.resume(model, "default", objects=objects)
        assert raised.value.where == "refusing"
        assert isinstance(raised.value.__cause__, RuntimeError)
        assert not getattr(raised.value, "__notes__", [])
    assert _bits(model) == expected
    assert [objects[name].state for name in ("before", "refusing", "after")] == [
        {"seen": 0, "now": name} for name in ("before", "refusing", "after")
    ]
    assert objects["tree"][0] == 2
    assert objects["tree"][1].tolist() == [4, 4]
    assert objects["numpy"].bit_generator.state == draws
    assert all(
        random_state.same_state(name, generators, random_state.capture()) for name in ("python", "numpy")
    )


def test_a_model_that_does_not_fit_leaves_the_objects_alone(tmp_path: Path) -> None:
    objects = {"counter": Counter()}
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(_model(), epoch=0, objects=objects)
        objects["counter"].state = now = {"seen": 3}
        with pytest.raises(ModelMismatchError):
            store.resume(_model(units=5), "default", objects=objects)
    assert objects["counter"].state is now


def test_a_layer_that_fails_to_load_has_the_objects_put_back(tmp_path: Path) -> None:
    class Dense(layers.Dense):
        def load_own_variables(self, store: Any) -> None:
            raise RuntimeError("as the test asked")

    def made(kind: type) -> keras.Model:
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((4,)), kind(3, name="dense")])

    objects: dict[str, Any] = {"counter": Counter(), "array": np.ones(2), "number": 1}
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(made(layers.Dense), epoch=0, objects=objects, format="weights")
        objects["counter"].state = {"seen": 3}
        objects["array"][:] = 2
        objects["number"] = 2
        with pytest.raises(RefusedByLayerError, match="as the test asked"):
            store.restore("latest", made(Dense), objects=objects)
    assert objects["counter"].state == {"seen": 3}
    assert objects["array"].tolist() == [2, 2]
    assert objects["number"] == 2


def test_damage_is_found_before_an_object_is_touched(tmp_path: Path) -> None:
    objects = {"counter": Counter()}
    with ckptstore.CheckpointStore(tmp_path) as store:
        saved = store.save(_model(), epoch=0, objects={"counter": Counter(), "array": np.ones(1000)})
        payload = bytearray(saved.path.read_bytes())
        payload[payload.index(np.ones(8).tobytes())] ^= 1
        saved.path.chmod(0o600)
        saved.path.write_bytes(payload)
        objects["counter"].state = now = {"seen": 3}
        with pytest.raises(ckptstore.CorruptError):
            store.restore("latest", _model(), objects={**objects, "array": np.ones(1000)})
    assert objects["counter"].state is now


@pytest.mark.parametrize(
    ("objects", "options", "reason"),
    [
        ([Counter()], {}, "must be a dict of objects by name"),
        ({1: Counter()}, {}, "must be a dict of objects by name"),
        ({"a": Counter()}, {"weights_only": True}, "leave out"),
        ({"a": Counter()}, {"resumable": False}, "leave out"),
        ({"a": {"b": [1, object()]}}, {}, "a value of type object cannot be kept"),
        ({"a": lambda: None}, {}, "cannot be kept"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    tmp_path: Path, objects: Any, options: dict[str, Any], reason: str
) -> None:
    with ckptstore.CheckpointStore(tmp_path) as store:
        with pytest.raises(InvalidArgumentError, match=reason):
            store.save(_model(), epoch=0, objects=objects, **options)
        assert store.latest() is None


def test_the_state_of_objects_is_json_and_arrays() -> None:
    document, arrays = objects_state.collect(_objects())
    assert json.loads(json.dumps(document)) == document
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())


# --- of one backend --------------------------------------------------------------------------------


@pytest.mark.skipif(BACKEND != "torch", reason="optimizers of torch")
def test_optimizer_scheduler_and_scaler_of_torch(tmp_path: Path) -> None:
    import torch

    def made() -> tuple[keras.Model, dict[str, Any]]:
        model = _model()
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, amsgrad=True)
        schedulers = [
            torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3),
            torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4]),
        ]
        return model, {
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, [2]),
            "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
            "scaler": torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2),
            "generator": torch.Generator().manual_seed(3),
            "ema": {"kernel": torch.ones(2, dtype=torch.bfloat16), "sizes": (torch.Size([1, 2]), torch.int8)},
        }

    def train(model: keras.Model, objects: dict[str, Any], steps: int) -> None:
        for _ in range(steps):
            objects["optimizer"].zero_grad()
            loss = model(torch.rand(2, 4, generator=objects["generator"])).square().sum()
            objects["scaler"].scale(loss).backward()
            objects["scaler"].step(objects["optimizer"])
            objects["scaler"].update()
            objects["scheduler"].step()
            objects["plateau"].step(1.0)
            objects["ema"]["kernel"].mul_(0.5)

    whole, expected = made()
    train(whole, expected, 7)
    model, objects = made()
    train(model, objects, 4)
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, objects=objects)
        model, objects = made()
        ema = objects["ema"]["kernel"]
        store.resume(model, "default", objects=objects)
        assert objects["ema"]["kernel"] is ema  # in place
        assert objects["ema"]["sizes"] == (torch.Size([1, 2]), torch.int8)
        train(model, objects, 3)
        assert _bits(model) == _bits(whole)
        for name in ("optimizer", "scheduler", "plateau", "scaler"):
            assert str(objects[name].state_dict()) == str(expected[name].state_dict())
        assert ema.tolist() == expected["ema"]["kernel"].tolist()
        # torch itself would load these, and train with them.
        for other, where in (
            (torch.optim.Adam(model.parameters()), "optimizer is AdamW"),
            (
                torch.optim.AdamW([torch.ones(4, 4), torch.ones(3)]),
                r"optimizer\.param_groups\[0\]\['params'\]\[0\]",
            ),
        ):
            with pytest.raises(ObjectsMismatchError, match=where):
                store.restore("latest", model, objects={**objects, "optimizer": other})
        with pytest.raises(RefusedByObjectError, match="scaler"):
            store.restore("latest", model, objects={**objects, "scaler": _Disabled("cpu")})


if BACKEND == "torch":
    import torch

    class _Disabled(torch.amp.GradScaler):  # type: ignore[misc,unused-ignore]
        """Refuses whatever it is given."""

        __qualname__ = "GradScaler"

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if state_dict["scale"] != self.get_scale():
                raise RuntimeError("another scale")


@pytest.mark.skipif(BACKEND != "jax", reason="states of optax, arrays and keys of JAX")
def test_a_state_of_optax_is_rebuilt_on_the_live_structure(tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp

    optax = pytest.importorskip("optax")
    weights = {"kernel": jnp.ones((2, 3), jnp.bfloat16), "bias": jnp.zeros(3)}
    make = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(learning_rate=0.1))
    live = make.init(weights)
    _, trained = make.update(weights, live, weights)
    objects = {"state": trained, "key": jax.random.key(7), "weak": jnp.asarray(2.0), "count": 3}
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(_model(), epoch=0, objects=objects)
        again = {"state": live, "key": jax.random.key(0), "weak": jnp.asarray(0.0), "count": jnp.asarray(0)}
        store.resume(_model(), "default", objects=again)
        for other, where in (
            (optax.adam(0.1).init(weights), "state"),
            (make.init({**weights, "bias": jnp.zeros(4)}), "'bias'"),
            (make.init({"kernel": weights["kernel"]}), "'bias'"),
        ):
            with pytest.raises(ObjectsMismatchError, match=where):
                store.restore("latest", _model(), objects={**again, "state": other})
        with pytest.raises(InvalidArgumentError, match="must be a dict"):
            from types import MappingProxyType

            store.restore("latest", _model(), objects=MappingProxyType(again))
    assert jax.tree.structure(again["state"]) == jax.tree.structure(trained)
    for restored, saved in zip(jax.tree.leaves(again["state"]), jax.tree.leaves(trained), strict=True):
        assert (restored.dtype, restored.weak_type) == (saved.dtype, saved.weak_type)
        assert np.asarray(restored).tobytes() == np.asarray(saved).tobytes()
    assert jax.random.bits(again["key"]) == jax.random.bits(jax.random.key(7))
    assert again["weak"].weak_type
    assert again["count"] == 3


def test_two_optimizers_of_keras_in_a_loop_by_hand(tmp_path: Path) -> None:
    def made() -> tuple[keras.Model, dict[str, Any]]:
        model, critic = _model(), _model()
        pairs = ((model, keras.optimizers.Adam(0.1)), (critic, keras.optimizers.RMSprop(0.1)))
        for network, optimizer in pairs:
            optimizer.build(network.trainable_variables)
        return model, {"critic": critic, "own": pairs[0][1], "critics": pairs[1][1]}

    def train(model: keras.Model, objects: dict[str, Any]) -> None:
        for network, name in ((model, "own"), (objects["critic"], "critics")):
            variables = network.trainable_variables
            objects[name].apply([keras.ops.ones(variable.shape) for variable in variables], variables)

    model, objects = made()
    train(model, objects)
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0, objects=objects)
        train(model, objects)
        again, others = made()
        store.resume(again, "default", objects=others)
        train(again, others)
        unbuilt = {**others, "own": keras.optimizers.Adam(0.1)}
        with pytest.raises(ObjectsMismatchError, match=r"optimizer\.build\(model\.trainable_variables\)"):
            store.resume(again, "default", objects=unbuilt)
    assert _bits(again) == _bits(model)
    assert _bits(others["critic"]) == _bits(objects["critic"])


@pytest.mark.parametrize("kind", ["contains itself", "keys look alike"])
def test_a_tree_that_cannot_come_back_as_it_was_is_refused(kind: str, tmp_path: Path) -> None:
    within: list[Any] = [np.zeros(2)]
    within.append(within)
    alike = {float("nan"): 1, float("nan"): 2}
    tree = within if kind == "contains itself" else alike
    with ckptstore.CheckpointStore(tmp_path) as store:
        with pytest.raises(InvalidArgumentError, match=rf"objects\['tree'\].*{kind}"):
            store.save(_model(), epoch=0, objects={"tree": tree})
        assert not list(store.checkpoints())
