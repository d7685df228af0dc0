"""Tests that plain Keras loads our payloads, bit for bit wherever it loads its own files so."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest

import keras_zoo as zoo
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES

# Warnings of numpy 2 about Keras' variables.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

STATE = TrainingState(document={"epoch": 1}, arrays={"keys": np.arange(4, dtype=np.uint32)})


def snapshot_fields(file: h5py.File) -> dict[str, Any]:
    """Return everything that Keras wrote into an HDF5 file, as fields of a snapshot."""
    variables: list[Variable] = []
    attributes: dict[str, dict[str, str]] = {}

    def visit(name: str, item: Any) -> None:
        texts = dict(item.attrs)
        if isinstance(item, h5py.Group):
            if texts:
                attributes[name] = texts
            return
        array = np.array(item, dtype=ml_dtypes.bfloat16) if texts.get("dtype") == "bfloat16" else item[()]
        array = np.asarray(array)
        variables.append(
            Variable(path=name, shape=array.shape, dtype=array.dtype, read=lambda: array, attributes=texts)
        )

    file.visititems(visit)
    return {"variables": tuple(variables), "attributes": attributes}


def rewritten(path: Path, format: Format) -> Path:
    """Write the contents of a file of Keras as our payload, next to it."""
    if format == "keras":
        with zipfile.ZipFile(path) as archive:
            documents = {name: archive.read(name) for name in archive.namelist()}
        with h5py.File(io.BytesIO(documents.pop("model.weights.h5"))) as file:
            snapshot = Snapshot(format=format, documents=documents, state=STATE, **snapshot_fields(file))
    elif format == "weights":
        with h5py.File(path) as file:
            snapshot = Snapshot(format=format, state=STATE, **snapshot_fields(file))
    else:
        snapshot = Snapshot(format=format, state=STATE, fill=partial(copied, path))
    target = path.with_name(f"ours{SUFFIXES[format]}")
    encoded = payload.encode(snapshot, {"version": 1})
    with target.open("wb") as sink:
        encoded.members[0].write(sink)
    assert target.stat().st_size == encoded.nbytes
    assert payload.verify_payload(target) == []
    assert payload.read_layout(target) == payload.read_layout(path)
    return target


def copied(path: Path, file: h5py.File) -> None:
    with h5py.File(path) as source:
        file.attrs.update(source.attrs)
        for name in source:
            source.copy(name, file)


def small_model(policy: str = "float32") -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    with_policy = {"dtype": policy}
    hidden = keras.layers.Conv2D(4, 3, name="conv", **with_policy)(inputs)
    hidden = keras.layers.BatchNormalization(**with_policy)(hidden)
    hidden = keras.layers.Flatten(**with_policy)(hidden)
    hidden = keras.layers.Dropout(0.1, seed=1, **with_policy)(hidden)
    hidden = keras.layers.Dense(8, activation="relu", **with_policy)(hidden)
    return keras.Model(inputs, keras.layers.Dense(3, **with_policy)(hidden))


def with_an_optimizer(model: keras.Model) -> keras.Model:
    """Compile a model, and fill it and its optimizer with values that no new one has."""
    model.compile(keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    return zoo.scrambled(model)


def bits_of(model: keras.Model) -> list[tuple[str, bytes]]:
    variables = [*model.weights, *getattr(getattr(model, "optimizer", None), "variables", ())]
    arrays = [np.asarray(keras.ops.convert_to_numpy(variable)) for variable in variables]
    return [(array.dtype.name, array.tobytes()) for array in arrays]


POLICIES = ["float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]


@pytest.mark.parametrize("policy", POLICIES)
def test_whole_models_of_every_policy(tmp_path: Path, policy: str) -> None:
    model = with_an_optimizer(small_model(policy))
    model.save(tmp_path / "theirs.keras")
    ours = rewritten(tmp_path / "theirs.keras", "keras")
    assert bits_of(keras.saving.load_model(ours)) == bits_of(model)
    documents = payload.read_documents(ours)
    assert set(documents) == {"metadata.json", "config.json"}


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_of_every_policy(tmp_path: Path, policy: str) -> None:
    model = with_an_optimizer(small_model(policy))
    model.save_weights(tmp_path / "theirs.weights.h5")
    ours = rewritten(tmp_path / "theirs.weights.h5", "weights")
    fresh = zoo.scrambled(with_an_optimizer(small_model(policy)))
    for variable in fresh.weights:
        variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
    fresh.load_weights(ours)
    assert bits_of(fresh) == bits_of(model)


def test_a_keras_archive_is_a_file_of_weights_too(tmp_path: Path) -> None:
    model = with_an_optimizer(small_model())
    model.save(tmp_path / "theirs.keras")
    fresh = zoo.scrambled(with_an_optimizer(small_model()))
    fresh.load_weights(rewritten(tmp_path / "theirs.keras", "keras"))
    assert bits_of(fresh) == bits_of(model)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_older_whole_model_files(tmp_path: Path) -> None:
    model = with_an_optimizer(small_model())
    model.save(tmp_path / "theirs.h5")
    ours = rewritten(tmp_path / "theirs.h5", "h5")
    loaded = keras.saving.load_model(ours)
    assert bits_of(loaded) == bits_of(keras.saving.load_model(tmp_path / "theirs.h5"))
    assert sorted(bits_of(loaded)[: len(model.weights)]) == sorted(bits_of(model)[: len(model.weights)])


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method")
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantised_models(tmp_path: Path, mode: str) -> None:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    model.quantize(mode)
    model.save(tmp_path / "theirs.keras")
    ours = rewritten(tmp_path / "theirs.keras", "keras")
    loaded = keras.saving.load_model(ours)
    # In float8 layers the order of the variables differs after loading.
    assert sorted(bits_of(loaded)) == sorted(bits_of(model))
    assert bits_of(loaded) == bits_of(keras.saving.load_model(tmp_path / "theirs.keras"))


@keras.saving.register_keras_serializable("ckptstore-tests")
class Remembering(keras.layers.Layer):
    """A layer with an asset, like Keras' own with vocabularies."""

    text = ""

    def call(self, inputs: Any) -> Any:
        return inputs

    def save_assets(self, directory: str) -> None:
        Path(directory, "text.txt").write_text(self.text)

    def load_assets(self, directory: str) -> None:
        self.text = Path(directory, "text.txt").read_text()


def test_assets(tmp_path: Path) -> None:
    layer = Remembering()
    layer.text = "eins\nzwei\n"
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(2)])
    model.save(tmp_path / "theirs.keras")
    ours = rewritten(tmp_path / "theirs.keras", "keras")
    loaded = keras.saving.load_model(ours)
    assert loaded.layers[0].text == layer.text
    assert bits_of(loaded) == bits_of(model)


class Holder(keras.layers.Layer):
    """A layer with one variable of any dtype."""

    def __init__(self, kind: str, shape: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind
        self.shape_of = shape

    def build(self, input_shape: Any) -> None:
        self.held = self.add_weight(
            shape=self.shape_of, dtype=self.kind, initializer="zeros", trainable=False, name="held"
        )

    def call(self, inputs: Any) -> Any:
        return inputs


def holding(kind: str, shape: tuple[int, ...]) -> tuple[keras.Model, Holder]:
    layer = Holder(kind, shape)
    return keras.Sequential([keras.Input((2,)), layer]), layer


def saved(tmp_path: Path, array: np.ndarray) -> Path:
    variable = Variable(path="layers/holder/vars/0", shape=array.shape, dtype=array.dtype, read=lambda: array)
    path = tmp_path / "held.weights.h5"
    with path.open("wb") as sink:
        payload.encode(Snapshot(format="weights", variables=(variable,), state=STATE), {}).members[0].write(
            sink
        )
    return path


def loaded(kind: str, array: np.ndarray, path: Path) -> np.ndarray:
    """Return the value of a variable of this dtype after Keras has loaded it from a file."""
    model, layer = holding(kind, array.shape)
    model.load_weights(path)
    return np.ascontiguousarray(keras.ops.convert_to_numpy(layer.held)).reshape(array.shape)


def theirs(tmp_path: Path, array: np.ndarray) -> Path:
    """Return the path of the same values as Keras itself writes them."""
    path = tmp_path / "theirs.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/holder/vars/0"] = array
        if array.dtype.name == "bfloat16":
            file["layers/holder/vars/0"].attrs["dtype"] = "bfloat16"
    return path


@pytest.mark.parametrize(
    "kind", ["bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32"]
)
@pytest.mark.parametrize("shape", [(), (3, 4), (0, 3), (2, 1, 3, 1, 2)])
def test_variables_of_every_dtype_and_shape(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    count = int(np.prod(shape))
    array = (np.arange(count) % 2 if kind == "bool" else np.arange(count)).astype(dtype).reshape(shape)
    held = loaded(kind, array, saved(tmp_path, array))
    # torch has no arithmetic of unsigned integers, so Keras makes some of them signed.
    assert held.dtype == dtype or (kind, held.dtype.name) == ("uint32", "int64")
    assert np.array_equal(held, array)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_floats_keep_every_bit(tmp_path: Path, kind: str) -> None:
    """NaNs with payloads, signed zeros, subnormals, infinities, if the backend preserves them."""
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    every = np.arange(1 << 16, dtype=np.uint16)
    some = np.random.default_rng(0).integers(0, 1 << 32, 9999, np.uint32)
    array = (every if dtype.itemsize == 2 else some).view(dtype)
    held = loaded(kind, array, saved(tmp_path, array))
    assert held.tobytes() == loaded(kind, array, theirs(tmp_path, array)).tobytes()
    if keras.backend.backend() == "jax":
        assert held.tobytes() == array.tobytes()


# Before 3.11, Keras passed the dataset itself to the backend, which asks h5py for a type that it does not know.
KERAS_READS = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 11)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras sets float8 variables on jax only")
@pytest.mark.skipif(not KERAS_READS, reason="this Keras cannot read float16 into float8")
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_variables_that_keras_itself_cannot_save(tmp_path: Path, kind: str) -> None:
    every = np.arange(256, dtype=np.uint8)
    array = every.view(getattr(ml_dtypes, kind))
    model, layer = holding(kind, array.shape)
    layer.held.assign(array)
    with pytest.raises((TypeError, ValueError)):
        model.save_weights(tmp_path / "theirs.weights.h5")
        model.load_weights(tmp_path / "theirs.weights.h5")
    path = saved(tmp_path, array)
    model.load_weights(path)
    held = np.asarray(keras.ops.convert_to_numpy(layer.held))
    # Only a NaN's payload may differ, by the backend's own cast.
    numbers = ~np.isnan(array.astype(np.float16))
    assert held.dtype == array.dtype
    assert np.array_equal(held.view(np.uint8)[numbers], every[numbers])
    assert np.isnan(held.astype(np.float16)[~numbers]).all()
    with payload.open_variables(path) as found:
        assert found["layers/holder/vars/0"].tobytes() == array.tobytes()


def test_many_layers(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(2) for _ in range(120))])
    model.save_weights(tmp_path / "theirs.weights.h5")
    ours = rewritten(tmp_path / "theirs.weights.h5", "weights")
    before = bits_of(model)
    for variable in model.weights:
        variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
    model.load_weights(ours)
    assert bits_of(model) == before


def test_names_that_are_not_ascii(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="schicht_größe_層")])
    model.save(tmp_path / "theirs.keras")
    ours = rewritten(tmp_path / "theirs.keras", "keras")
    assert [layer.name for layer in keras.saving.load_model(ours).layers] == ["schicht_größe_層"]
    with (
        zipfile.ZipFile(ours) as archive,
        archive.open("model.weights.h5") as member,
        h5py.File(member) as file,
    ):
        assert file["layers/dense/vars"].attrs["name"] == "schicht_größe_層"


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_older_whole_model_files_with_names_that_are_not_ascii(tmp_path: Path) -> None:
    layers = [keras.layers.Dense(2, name=f"schicht_ä{index}") for index in range(12)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.save(tmp_path / "theirs.h5")
    ours = rewritten(tmp_path / "theirs.h5", "h5")
    assert bits_of(keras.saving.load_model(ours, compile=False)) == bits_of(model)
