"""Tests of the Keras adapter: models of every sort are saved and restored bit for bit, or not at all."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import keras_zoo as zoo
from ckptstore.errors import (
    CorruptPayloadError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotReadyError,
)
from ckptstore.formats import payload
from ckptstore.keras import private
from ckptstore.keras.model import torch_tensors
from ckptstore.keras.model.adapter import adapter
from ckptstore.keras.private import fallback, modules, saving
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.records import Checkpoint, Format
from ckptstore.storage.durable_writer import DurableWriter
from ckptstore.storage.payloads.names import SUFFIXES
from ckptstore.store.store import CheckpointStore

# Warnings of numpy 2 about Keras' variables, from Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

# In the older format bfloat16 loses its name, the loss "mse" is an unknown metric, some layers lose their state.
BEYOND_KERAS = {(name, "h5") for name in ("bfloat16", "several_ends", "subclassed", "float8", "int8")}
FORMATS: tuple[Format, ...] = ("keras", "weights", "h5")


def stored(model: Any, folder: Path, *, format: Format = "keras", **how: Any) -> Checkpoint:
    """Save a model as a payload without a store, and return its record."""
    snapshot = adapter.snapshots().take(model, format=format, **how)
    encoded = payload.encode(snapshot, {"epoch": 0})
    payloads = folder / "checkpoints"
    payloads.mkdir(exist_ok=True)
    path = payloads / f"{len(list(payloads.iterdir())):08d}-run{SUFFIXES[format]}"
    writer = DurableWriter(path, reserve=encoded.nbytes)
    encoded.members[0].write(writer)
    written = writer.finish()
    return Checkpoint(
        version=1,
        run="run",
        epoch=0,
        batch=None,
        step=None,
        metrics={},
        path=path,
        nbytes=written.nbytes,
        digest=written.digest,
        created_at=datetime.now(UTC),
        format=format,
    )


def weights_of(model: Any) -> list[Any]:
    return [zoo.bits(variable) for variable in model.weights]


# --- the capture -------------------------------------------------------------------------------


def datasets(path: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """Return every array, and every group's attributes, of a weights file."""
    arrays: dict[str, np.ndarray] = {}
    attributes: dict[str, dict[str, str]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = np.array(node)
        elif node.attrs:
            attributes[name] = dict(node.attrs)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays, attributes


@pytest.mark.parametrize("name", zoo.WHOLE)
def test_the_capture_equals_what_keras_writes(name: str, tmp_path: Path) -> None:
    model = zoo.WHOLE[name]()
    captured = private.capture_model(model)
    model.save_weights(tmp_path / "keras.weights.h5")
    arrays, attributes = datasets(tmp_path / "keras.weights.h5")

    assert {entry.path for entry in captured.entries} == set(arrays)
    assert captured.attributes == attributes
    for entry in captured.entries:
        array = host_array(entry.value)
        assert shape_and_dtype(entry.value) == (array.shape, array.dtype)
        assert array.tobytes() == arrays[entry.path].tobytes(), entry.path
    assert captured.exact


def test_the_capture_copies_nothing() -> None:
    model = zoo.dense()
    captured = private.capture_model(model)
    saved = captured.saved_ids()
    assert {id(variable) for variable in [*model.weights, *model.optimizer.variables]} <= saved
    assert len(saved) == len(captured.entries)


@pytest.mark.skipif(zoo.BACKEND != "torch", reason="only torch changes its variables in place")
def test_arrays_of_torch_variables_are_views() -> None:
    kernel = zoo.dense().layers[0].kernel
    view = host_array(kernel)
    kernel.assign(kernel + 1)
    assert np.array_equal(view, keras.ops.convert_to_numpy(kernel))


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype")
def test_dtypes_are_those_of_the_backend() -> None:
    variable = keras.Variable(np.ones(2), dtype="float64")  # JAX stores it as float32 by default
    assert shape_and_dtype(variable) == ((2,), host_array(variable).dtype)


def test_the_capture_leaves_optimizers_unchanged() -> None:
    model = zoo.WHOLE["mixed_float16"]()
    before = [dict(vars(optimizer)) for optimizer in (model.optimizer, model.optimizer.inner_optimizer)]
    private.capture_model(model)
    assert [
        dict(vars(optimizer)) for optimizer in (model.optimizer, model.optimizer.inner_optimizer)
    ] == before


@pytest.mark.parametrize("name", ["dense", "several_ends", "vocabulary", "bfloat16", "own_way"])
@pytest.mark.parametrize("documents", [False, True])
def test_the_fallback_captures_the_same(name: str, documents: bool) -> None:
    model = zoo.WHOLE[name]()
    walked = private.capture_model(model, documents=documents)
    fallen_back = fallback.capture(model, None, documents)

    assert {entry.path: zoo.bits(entry.value) for entry in walked.entries} == {
        entry.path: zoo.bits(entry.value) for entry in fallen_back.entries
    }
    assert {entry.path: entry.owner for entry in walked.entries} == {
        entry.path: entry.owner for entry in fallen_back.entries
    }
    assert walked.attributes == fallen_back.attributes
    assert list(walked.documents) == list(fallen_back.documents)
    assert walked.documents.get("config.json") == fallen_back.documents.get("config.json")


def old_keras(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Turn this Keras into one whose saving is different."""
    if how == "moved":
        monkeypatch.setattr(modules, "saving_lib", None)
    else:

        def changed(model: Any, store: Any) -> None:
            """Has other arguments than those that we use."""

        monkeypatch.setattr(modules.saving_lib, "_save_state", changed)
    saving._warn_of_fallback.cache_clear()


@pytest.mark.parametrize("how", ["moved", "changed"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_keras_with_other_private_interfaces_is_saved_by_the_fallback(
    how: str, format: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.dense()
    before = zoo.state_of(model)
    if how == "moved":
        old_keras(monkeypatch, how)
        with pytest.warns(RuntimeWarning, match="into memory instead"):
            checkpoint = stored(model, tmp_path, format=format)
        adapter.restore(zoo.scrambled(model), checkpoint)
    else:
        public = {"keras": "_save_model_to_fileobj", "weights": "save_weights_only"}.get(format)
        if public is None:
            pytest.skip("the older format does not go that way")
        real = modules.saving_lib._save_state
        old_keras(monkeypatch, how)
        undone = getattr(modules.saving_lib, public)

        def with_the_real_save_state(*args: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(modules.saving_lib, "_save_state", real)
                return undone(*args)

        monkeypatch.setattr(modules.saving_lib, public, with_the_real_save_state)
        with pytest.warns(RuntimeWarning, match="into memory instead"):
            checkpoint = stored(model, tmp_path, format=format)
        monkeypatch.undo()
        adapter.restore(zoo.scrambled(model), checkpoint)
    assert zoo.state_of(model) == before


# --- save and restore --------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.WHOLE)
def test_a_model_is_restored_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, fresh = zoo.WHOLE[name](), zoo.WHOLE[name]()
    before, weights = zoo.state_of(model), weights_of(model)
    for format in FORMATS:
        checkpoint = stored(model, tmp_path, format=format)
        assert zoo.state_of(model) == before
        assert payload.verify_payload(checkpoint.path) == []

        adapter.restore(zoo.scrambled(model), checkpoint)
        assert zoo.state_of(model) == before
        adapter.restore(fresh, checkpoint)
        assert zoo.state_of(fresh) == before
        adapter.load_weights(checkpoint, zoo.scrambled(fresh))
        if name != "lora":  # Keras saves LoRA merged into its kernel
            assert weights_of(fresh) == weights


@pytest.mark.skipif(zoo.BACKEND != "torch", reason="other backends get arrays")
@pytest.mark.parametrize("name", zoo.WHOLE)
def test_values_that_keras_gets_as_tensors_are_restored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    make = torch_tensors._tensor
    monkeypatch.setattr(torch_tensors, "_LARGE", 0)
    monkeypatch.setattr(torch_tensors, "_tensor", lambda array: given.append(make(array)) or given[-1])
    model = zoo.WHOLE[name]()
    before, weights = zoo.state_of(model), weights_of(model)
    formats: tuple[Format, ...] = ("keras", "weights")
    for format in formats:
        checkpoint = stored(model, tmp_path, format=format)
        adapter.restore(zoo.scrambled(model), checkpoint)
        assert zoo.state_of(model) == before
        adapter.load_weights(checkpoint, zoo.scrambled(model))
        assert name == "lora" or weights_of(model) == weights
        adapter.restore(model, checkpoint)
    # Layers with loading of their own get arrays.
    assert bool(given) == (name not in ("own_way", "vocabulary", "lora"))
    memory = {tensor.data_ptr() for tensor in given}
    # The payload is closed: changing a variable that still uses its memory would crash the process.
    assert not memory.intersection(variable.value.data_ptr() for variable in model.variables)
    zoo.scrambled(model)


@pytest.mark.skipif(zoo.BACKEND != "torch", reason="other backends get arrays")
@pytest.mark.parametrize("how", ["a kind of variable of the user's own", "within a scope that keeps it"])
def test_no_variable_keeps_the_memory_of_a_payload(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.dense()
    checkpoint = stored(model, tmp_path, format="weights")
    kernel = model.layers[0].kernel
    before = zoo.bits(kernel)
    given: list[Any] = []
    monkeypatch.setattr(torch_tensors, "_LARGE", 0)
    monkeypatch.setattr(torch_tensors, "_tensor", lambda array: given.append(array) or array)

    class Rebinding(keras.Variable):  # type: ignore[misc]
        def _direct_assign(self, value: Any) -> None:
            self._value = value

    if how == "within a scope that keeps it":
        with keras.StatelessScope() as scope:
            adapter.restore(model, checkpoint)
        value = scope.get_current_value(kernel)
    else:
        kernel.__class__ = Rebinding
        adapter.restore(zoo.scrambled(model), checkpoint)
        value = kernel._value
    # Changing a variable that uses the file's memory would crash the process.
    assert not given
    value.mul_(2)
    value.div_(2)
    assert zoo.bits(value.detach().numpy()) == before


@pytest.mark.skipif(zoo.BACKEND != "torch", reason="other backends get arrays")
def test_large_values_are_copied_only_once(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2048,)), keras.layers.Dense(2048)])
    model.compile("sgd", "mse")
    before = zoo.state_of(model)
    checkpoint = stored(model, tmp_path, format="weights")
    zoo.scrambled(model)
    tracemalloc.start()
    try:
        adapter.restore(model, checkpoint)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert zoo.state_of(model) == before
    assert peak < 2048 * 2048 * 4 // 2


@pytest.mark.parametrize("format", ["keras", "h5"])
@pytest.mark.parametrize("name", zoo.WHOLE)
def test_plain_keras_loads_the_whole_model(name: str, format: Format, tmp_path: Path) -> None:
    if (name, format) in BEYOND_KERAS:
        pytest.skip("Keras' older format cannot: it writes what it does not read")
    model = zoo.WHOLE[name]()
    checkpoint = stored(model, tmp_path, format=format)
    elsewhere = shutil.copy(checkpoint.path, tmp_path / f"copy{SUFFIXES[format]}")
    classes = {kind.__name__: kind for kind in (zoo.Subclassed, zoo.Vocabulary, zoo.OwnWay)}
    with zoo.under(name):
        loaded = keras.saving.load_model(elsewhere, custom_objects=classes)
    x = [np.ones((4, zoo.FEATURES)), np.ones((4, 2))]
    x = x if name == "several_ends" else x[0]
    expected, found = model.predict(x, verbose=0), loaded.predict(x, verbose=0)
    keras.tree.map_structure(partial(np.testing.assert_allclose, rtol=1e-3), expected, found)


@pytest.mark.parametrize(
    "name", ["dense", "several_ends", "mixed_float16", "bfloat16", "own_way", "vocabulary"]
)
def test_plain_keras_loads_the_weights(name: str, tmp_path: Path) -> None:
    model = zoo.WHOLE[name]()
    checkpoint = stored(model, tmp_path, format="weights")
    other = zoo.scrambled(zoo.WHOLE[name]())
    other.load_weights(checkpoint.path)
    assert weights_of(other) == weights_of(model)
    slots = [[zoo.bits(variable) for variable in trained.optimizer.variables] for trained in (other, model)]
    assert slots[0] == slots[1]


@pytest.mark.parametrize("name", zoo.OPTIMIZERS)
def test_optimizers_of_all_kinds_are_restored(name: str, tmp_path: Path) -> None:
    model = zoo.dense(zoo.OPTIMIZERS[name]())
    before = zoo.state_of(model)
    for format in FORMATS:
        if (name, format) == ("Adafactor", "h5"):  # several of its variables have the same name
            with pytest.raises(ModelNotReadyError, match="not storable in the older"):
                stored(model, tmp_path, format=format)
            continue
        checkpoint = stored(model, tmp_path, format=format)
        adapter.restore(zoo.scrambled(model), checkpoint)
        assert zoo.state_of(model) == before

        fresh = zoo.stack(keras.layers.Dense(5, activation="relu"), keras.layers.Dropout(0.3))
        fresh.compile(zoo.OPTIMIZERS[name](), "mse")
        adapter.restore(fresh, checkpoint)  # whose optimizer has not been built
        assert zoo.state_of(fresh) == before


def test_training_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model = zoo.dense()
    checkpoint = stored(model, tmp_path)
    x, y = zoo.data()
    generators = {"torch": _torch_state}.get(zoo.BACKEND, lambda: None)
    kept = generators()
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    uninterrupted = zoo.state_of(model)

    fresh = zoo.dense()
    adapter.restore(fresh, checkpoint)
    if kept is not None:
        import torch

        torch.set_rng_state(kept)
    fresh.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert zoo.state_of(fresh) == uninterrupted


def _torch_state() -> Any:
    import torch

    return torch.get_rng_state()


def test_metrics_are_restored(tmp_path: Path) -> None:
    model = zoo.dense()
    metrics = [zoo.bits(variable) for variable in model.metrics_variables]
    checkpoint = stored(model, tmp_path)
    model.reset_metrics()
    assert [zoo.bits(variable) for variable in model.metrics_variables] != metrics
    adapter.restore(model, checkpoint)
    assert [zoo.bits(variable) for variable in model.metrics_variables] == metrics


def test_a_resume_captures_the_model_once_unless_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.dense()
    saved = stored(model, tmp_path)
    walks: list[Any] = []
    capture = private.capture_model

    def noted(*arguments: Any, **options: Any) -> Any:
        walks.append(arguments)
        return capture(*arguments, **options)

    monkeypatch.setattr(private, "capture_model", noted)
    state = adapter.restore(model, saved)
    seeds = [variable for variable in model.variables if "seed" in variable.path]
    before = [host_array(variable).copy() for variable in seeds]
    for variable in seeds:
        variable.assign(variable.value + 1)
    adapter.restore_state(model, state, metrics=True)
    assert len(walks) == 1 and seeds
    for variable, value in zip(seeds, before, strict=True):
        np.testing.assert_array_equal(host_array(variable), value)
    model.compile("adam", "mse")
    adapter.restore_state(model, state, metrics=True)
    assert len(walks) == 2


def test_metrics_that_are_not_built_yet_are_left_out(tmp_path: Path) -> None:
    checkpoint = stored(zoo.dense(), tmp_path)
    fresh = zoo.stack(keras.layers.Dense(5, activation="relu"), keras.layers.Dropout(0.3))
    fresh.compile("adam", "mse", metrics=["mae", "accuracy"])
    adapter.restore(fresh, checkpoint)


def test_assets_are_restored_into_a_live_model(tmp_path: Path) -> None:
    model = zoo.vocabulary()
    checkpoint = stored(model, tmp_path)
    model.layers[0].words = ["cow"]
    adapter.restore(model, checkpoint)
    assert model.layers[0].words == ["ape", "bee"]
    assert adapter.load_model(checkpoint).layers[0].words == ["ape", "bee"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_loop_written_by_hand_has_its_own_optimizer(format: Format, tmp_path: Path) -> None:
    model = zoo.stack(keras.layers.Dense(4))
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.ones(variable.shape) for variable in model.trainable_variables])
    before = zoo.state_of(model, optimizer)
    checkpoint = stored(model, tmp_path, format=format, optimizer=optimizer)
    if format != "h5":
        compiled_place = {
            path for path in payload.read_layout(checkpoint.path) if path.startswith("optimizer/")
        }
        assert compiled_place == {f"optimizer/vars/{i}" for i in range(len(optimizer.variables))}

    adapter.restore(zoo.scrambled(model, optimizer), checkpoint, optimizer=optimizer)
    assert zoo.state_of(model, optimizer) == before
    unbuilt = keras.optimizers.Adam()
    adapter.restore(model, checkpoint, optimizer=unbuilt)
    assert zoo.state_of(model, unbuilt) == before


def test_a_compiled_optimizer_may_be_given_too(tmp_path: Path) -> None:
    model = zoo.dense()
    checkpoint = stored(model, tmp_path, optimizer=model.optimizer)
    adapter.restore(model, checkpoint, optimizer=model.optimizer)
    with pytest.raises(InvalidArgumentError, match="compiled with another optimizer"):
        stored(model, tmp_path, optimizer=keras.optimizers.SGD())


@pytest.mark.parametrize("format", ["keras", "weights"])
def test_weights_only_saves_nothing_else(format: Format, tmp_path: Path) -> None:
    for model in (zoo.dense(), zoo.stack(keras.layers.Dropout(0.5))):
        checkpoint = stored(model, tmp_path, format=format, weights_only=True)
        assert not any(path.startswith("optimizer") for path in payload.read_layout(checkpoint.path))
        assert payload.read_state(checkpoint.path) is None
        expected = weights_of(model)
        adapter.load_weights(checkpoint, zoo.scrambled(model))
        assert weights_of(model) == expected


@pytest.mark.parametrize("format", FORMATS)
def test_a_save_that_is_not_a_resume_point_has_no_training_state(format: Format, tmp_path: Path) -> None:
    model = zoo.dense()
    with CheckpointStore(tmp_path) as store:
        saved = store.save(model, epoch=0, format=format)
        checkpoint = store.save(model, epoch=1, format=format, resumable=False)
        assert not checkpoint.resumable and store.latest() == checkpoint
        assert payload.read_state(checkpoint.path) is None
        assert store.resume_point() == saved
        # Model and optimizer are complete.
        expected = weights_of(model), [zoo.bits(variable) for variable in model.optimizer.variables]
        store.restore(checkpoint, zoo.scrambled(model))
        assert (weights_of(model), [zoo.bits(variable) for variable in model.optimizer.variables]) == expected
        assert store.resume(model) == saved


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_an_optimizer_that_made_no_step_stays_unbuilt(
    format: Format, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = zoo.stack(keras.layers.Dense(4))
    model.compile(keras.optimizers.Adagrad(0.5), keras.losses.MeanSquaredError())
    checkpoint = stored(model, tmp_path, format=format)
    assert not model.optimizer.built
    assert len(model.optimizer.variables) == 2

    adapter.restore(model, checkpoint)
    assert not model.optimizer.built
    # One that has been built since begins again: Adagrad's slots do not begin with zeros.
    model.optimizer.build(model.trainable_variables)
    begun = [zoo.bits(variable) for variable in model.optimizer.variables]
    adapter.restore(zoo.scrambled(model), checkpoint)
    assert [zoo.bits(variable) for variable in model.optimizer.variables] == begun

    assert not [str(warning.message) for warning in recwarn if "optimizer" in str(warning.message)]

    if format == "keras":  # from the older format Keras builds the optimizer for no variable
        # As for a file of Keras' own: it builds the optimizer, and finds no slots for it.
        with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
            loaded = adapter.load_model(checkpoint)
        assert [zoo.bits(variable) for variable in loaded.optimizer.variables] == begun


@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_slots_that_were_built_without_a_step_are_loaded(
    format: Format, resumable: bool, tmp_path: Path
) -> None:
    model = zoo.stack(keras.layers.Dense(4))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    zoo.scrambled(model)
    model.optimizer.iterations.assign(0)
    before = [zoo.bits(variable) for variable in model.optimizer.variables]
    checkpoint = stored(model, tmp_path, format=format, resumable=resumable)
    model.compile("adam", "mse")
    adapter.restore(model, checkpoint)
    assert model.optimizer.built
    assert [zoo.bits(variable) for variable in model.optimizer.variables] == before


def test_an_unbuilt_model_is_built_as_it_was_saved(tmp_path: Path) -> None:
    model = zoo.subclassed()
    checkpoint = stored(model, tmp_path)
    fresh = zoo.Subclassed()
    fresh.compile("adam", "mse")
    adapter.restore(fresh, checkpoint)
    assert weights_of(fresh) == weights_of(model)


# --- models that are not ready, and mismatches -------------------------------------------------


def test_an_unbuilt_model_cannot_be_saved(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Dense(3)], name="lazy")
    with pytest.raises(ModelNotReadyError, match=r"model 'lazy' is not built \(call it once"):
        stored(model, tmp_path)
    # Without training state, a payload does not tell how to build a model.
    checkpoint = stored(zoo.dense(), tmp_path, format="weights", weights_only=True)
    with pytest.raises(ModelNotReadyError, match=r"call it once on data, or model.build\(input_shape\); the"):
        adapter.restore(model, checkpoint)
    with pytest.raises(ModelNotReadyError, match="not built"):
        adapter.load_weights(checkpoint, model)
    model(np.ones((1, zoo.FEATURES)))
    with pytest.raises(ModelMismatchError):
        adapter.load_weights(checkpoint, model)


def test_a_model_that_cannot_be_built_again_can_be_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.subclassed()
    checkpoint = stored(model, tmp_path)
    fresh = zoo.Subclassed()
    fresh.compile("adam", "mse")

    def refuse(_: Any, config: Any) -> None:
        raise ValueError("no shapes")

    with monkeypatch.context() as patched:
        patched.setattr(zoo.Subclassed, "build_from_config", refuse)
        patched.setattr(keras.layers.Dense, "build_from_config", refuse)
        with pytest.raises(
            ModelNotReadyError,
            match=r"or take a new one from Checkpoint.load_model\(\);.*ValueError: no shapes",
        ):
            adapter.restore(fresh, checkpoint)
    assert weights_of(checkpoint.load_model()) == weights_of(model)


def test_an_uncompiled_model_needs_an_optimizer(tmp_path: Path) -> None:
    model = zoo.stack(keras.layers.Dense(4), name="raw")
    for format in FORMATS:
        with pytest.raises(ModelNotReadyError, match=r"model 'raw' is not compiled .*optimizer=") as raised:
            stored(model, tmp_path, format=format)
        assert raised.value.missing == "compiled"


def _keras_refuses(model: Any) -> bool:
    try:
        model.to_json()
    except NotImplementedError:
        return True
    return False


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_a_model_without_a_configuration_can_save_weights_only(format: Format, tmp_path: Path) -> None:
    model = zoo.unconfigured()
    if not _keras_refuses(model):
        pytest.skip("this Keras saves a model without its configuration, and says nothing")
    with pytest.raises(ModelNotReadyError, match=r"get_config\(\).*save_weights_only=True"):
        stored(model, tmp_path, format=format)
    before = zoo.state_of(model)
    checkpoint = stored(model, tmp_path, format="weights")
    adapter.restore(zoo.scrambled(model), checkpoint)
    assert zoo.state_of(model) == before


@pytest.fixture
def untouched() -> Iterator[keras.Model]:
    """Yield a model that must not change in the test."""
    model = zoo.dense(units=8)
    before = zoo.state_of(model)
    yield model
    assert zoo.state_of(model) == before


def test_another_shape_is_named_with_both_sides(untouched: keras.Model, tmp_path: Path) -> None:
    for format in ("keras", "weights"):
        checkpoint = stored(zoo.dense(units=5), tmp_path, format=format)
        for attempt in (adapter.restore, lambda model, checkpoint: adapter.load_weights(checkpoint, model)):
            with pytest.raises(ModelMismatchError) as raised:
                attempt(untouched, checkpoint)
            assert str(raised.value).startswith(
                "the checkpoint does not fit the model: layers/dense/vars/0 is (6, 5) float32 in the "
                "checkpoint and (6, 8) float32 in the model"
            )
    checkpoint = stored(zoo.dense(units=5), tmp_path, format="h5")
    with pytest.raises(
        ModelMismatchError, match=r"kernel is \(6, 5\) float32 in the checkpoint and \(6, 8\)"
    ):
        adapter.restore(untouched, checkpoint)


def test_another_dtype_is_a_mismatch_but_its_weights_load(tmp_path: Path) -> None:
    checkpoint = stored(zoo.WHOLE["float16"](), tmp_path)
    model = zoo.trained(zoo.stack(keras.layers.Dense(5)))
    with pytest.raises(ModelMismatchError, match=r"\(6, 5\) float16 in the checkpoint and \(6, 5\) float32"):
        adapter.restore(model, checkpoint)
    adapter.load_weights(checkpoint, model)
    with payload.open_variables(checkpoint.path) as saved:
        assert np.array_equal(
            host_array(model.layers[0].kernel), saved["layers/dense/vars/0"].astype("float32")
        )


def test_a_layer_too_many_or_too_few_is_a_mismatch(tmp_path: Path) -> None:
    small, large = (zoo.trained(zoo.stack(*[keras.layers.Dense(4) for _ in range(n)])) for n in (1, 2))
    for saved, live in ((small, large), (large, small)):
        for format in FORMATS:
            with pytest.raises(ModelMismatchError):
                adapter.restore(live, stored(saved, tmp_path, format=format))


def test_another_optimizer_is_a_mismatch(tmp_path: Path) -> None:
    for saved, live, message in (
        (
            "adam",
            "sgd",
            r"optimizer/vars/2 is .* in the checkpoint and nothing in the model .*optimizers differ",
        ),
        ("sgd", "adam", r"optimizer/vars/2 is nothing in the checkpoint and .*optimizers differ"),
        ("adam", "adamw", r"optimizer is Adam in the checkpoint and AdamW in the model"),
    ):
        model = zoo.dense(live)
        before = zoo.state_of(model)
        checkpoint = stored(zoo.dense(saved), tmp_path)
        with pytest.raises(ModelMismatchError, match=message):
            adapter.restore(model, checkpoint)
        assert zoo.state_of(model) == before
        adapter.load_weights(checkpoint, model)


def test_an_uncompiled_model_is_told_to_compile(tmp_path: Path) -> None:
    checkpoint = stored(zoo.trained(zoo.stack()), tmp_path)
    model = zoo.stack()
    with pytest.raises(
        ModelMismatchError, match=r"optimizer/vars/0 .* compile the model, or pass optimizer="
    ):
        adapter.restore(model, checkpoint)
    adapter.load_weights(checkpoint, model)


def test_a_checkpoint_of_weights_is_not_enough_for_an_optimizer(tmp_path: Path) -> None:
    model = zoo.dense()
    checkpoint = stored(model, tmp_path, weights_only=True)
    with pytest.raises(ModelMismatchError, match=r"is nothing in the checkpoint .*loads the weights alone"):
        adapter.restore(model, checkpoint)


def test_an_additional_dropout_layer_is_a_mismatch(tmp_path: Path) -> None:
    checkpoint = stored(zoo.trained(zoo.stack(keras.layers.Dense(4))), tmp_path)
    model = zoo.trained(zoo.stack(keras.layers.Dense(4), keras.layers.Dropout(0.5)))
    with pytest.raises(ModelMismatchError, match="seed_generator_state is nothing in the checkpoint"):
        adapter.restore(model, checkpoint)


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_payload_is_not_loaded(format: Format, untouched: keras.Model, tmp_path: Path) -> None:
    checkpoint = stored(untouched, tmp_path, format=format)
    whole = checkpoint.path.read_bytes()
    checkpoint.path.chmod(0o644)
    for damage, reason in (
        (whole[:-1], "bytes"),
        (
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
            "digest",
        ),
        (None, "missing"),
    ):
        if damage is None:
            checkpoint.path.unlink()
        else:
            checkpoint.path.write_bytes(damage)
        with pytest.raises(CorruptPayloadError, match=reason):
            adapter.restore(untouched, checkpoint)
        with pytest.raises(CorruptPayloadError, match=reason):
            adapter.load_weights(checkpoint, untouched)
        if format != "weights":
            with pytest.raises(CorruptPayloadError, match=reason):
                adapter.load_model(checkpoint)


def test_a_model_is_restored_when_a_layer_refuses_halfway(tmp_path: Path) -> None:
    model = zoo.own_way()
    layer = model.layers[0]
    layer.count.assign(-1)
    checkpoint = stored(model, tmp_path)
    layer.count.assign(1)
    zoo.scrambled(model)
    before = zoo.state_of(model)
    with pytest.raises(ModelMismatchError, match=r"a negative count.*restored to their earlier values"):
        adapter.restore(model, checkpoint)
    assert zoo.state_of(model) == before


def test_a_file_of_weights_is_not_a_model(tmp_path: Path) -> None:
    checkpoint = stored(zoo.dense(), tmp_path, format="weights")
    with pytest.raises(InvalidArgumentError, match="holds weights only"):
        adapter.load_model(checkpoint)
    with pytest.raises(InvalidArgumentError, match="holds whole models"):
        stored(zoo.dense(), tmp_path, format="h5", weights_only=True)


def test_load_model_passes_its_arguments_on(tmp_path: Path) -> None:
    checkpoint = stored(zoo.dense(), tmp_path)
    assert not adapter.load_model(checkpoint, compile=False).compiled
    assert adapter.load_model(checkpoint).compiled


def test_loading_weights_leaves_an_optimizer_of_another_kind_unchanged(tmp_path: Path) -> None:
    """Adam and Adamax have variables of the same shapes but with different meanings."""
    with CheckpointStore(tmp_path) as store:
        checkpoint = store.save(zoo.dense("adam"), epoch=np.int64(0), batch=np.int32(1), step=np.int64(2))
    assert (checkpoint.epoch, checkpoint.batch, checkpoint.step) == (0, 1, 2)
    model = zoo.dense("adamax")
    before = [np.array(variable) for variable in model.optimizer.variables]
    adapter.load_weights(checkpoint, model)
    assert all(
        np.array_equal(variable, old) for variable, old in zip(model.optimizer.variables, before, strict=True)
    )
