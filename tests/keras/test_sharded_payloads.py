"""Models saved by one process in the format ``sharded``, on each backend: all that a store does with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.formats import payload
from ckptstore.formats.sharded.shards import member_of
from ckptstore.storage.payloads.at import payload_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X[:, :2] * 2


@keras.saving.register_keras_serializable(package="sharded_payloads")
class OwnLoading(keras.layers.Layer):
    """A layer that stores its variable under a name of its own, by code of its own."""

    def build(self, input_shape: Any) -> None:
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale

    def save_own_variables(self, store: Any) -> None:
        store["mine"] = self.scale

    def load_own_variables(self, store: Any) -> None:
        self.scale.assign(store["mine"])


def make(seed: int, *, fitted: bool = True) -> Any:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, "relu", name="hidden"),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.BatchNormalization(),
            OwnLoading(),
            keras.layers.Dense(2, dtype="bfloat16"),
        ],
        name="small",
    )
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    if fitted:
        model.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    return model


def values_of(model: Any) -> list[tuple[Any, ...]]:
    variables = [*model.variables, *model.optimizer.variables]
    arrays = [np.asarray(keras.ops.convert_to_numpy(variable.value)) for variable in variables]
    return [(array.dtype.name, array.shape, array.tobytes()) for array in arrays]


def weights_of(model: Any) -> list[bytes]:
    return [value.tobytes() for value in map(keras.ops.convert_to_numpy, model.weights)]


@pytest.fixture(scope="module")
def trained() -> Any:
    return make(1)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with ckptstore.CheckpointStore(tmp_path / "store") as opened:
        yield opened


def test_it_is_saved_and_restored_to_the_bit(store: Any, trained: Any) -> None:
    for epoch, loss in enumerate((2.0, 1.0, 3.0)):
        saved = store.save(trained, epoch=epoch, metrics={"loss": loss}, format="sharded")
    assert saved.format == "sharded" and saved.payload == "00000003-default.sharded" and saved.resumable
    assert saved.path.is_dir() and store.verify() == [] and store.verify(deep=False) == []
    best = store.best("loss", mode="min")
    assert best.version == 2
    for model in (make(2), make(2, fitted=False)):
        store.restore(best, model)
        assert weights_of(model) == weights_of(trained)
    model = make(2)
    store.restore(best, model)
    assert values_of(model) == values_of(trained)
    assert store.resume(make(3)).version == 3
    assert all(change.change_max == 0 for change in store.diff(1, 3).variables)


def test_a_model_is_made_from_it_without_its_code(store: Any, trained: Any) -> None:
    saved = store.save(trained, epoch=0, format="sharded")
    loaded = saved.load_model()
    assert weights_of(loaded) == weights_of(trained)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), trained.predict(X, verbose=0))
    model = make(4)
    saved.load_weights(model)
    assert weights_of(model) == weights_of(trained)


def test_it_becomes_files_that_keras_loads(store: Any, trained: Any, tmp_path: Path) -> None:
    store.save(trained, epoch=0, format="sharded", metrics={"loss": 1.0})
    store.export(1, tmp_path / "x.keras")
    assert weights_of(keras.saving.load_model(tmp_path / "x.keras")) == weights_of(trained)
    store.export(1, tmp_path / "x.weights.h5")
    model = make(5)
    model.load_weights(tmp_path / "x.weights.h5")
    assert weights_of(model) == weights_of(trained)
    folder = store.export(1, tmp_path / "folder")
    assert weights_of(keras.saving.load_model(tmp_path / "folder" / "model.keras")) == weights_of(trained)
    card = (tmp_path / "folder" / "README.md").read_text()
    assert folder.digest in card and 'load_model("model.keras")' in card
    safetensors = pytest.importorskip("safetensors.numpy")
    store.export(1, tmp_path / "x.safetensors")
    assert "layers/dense/vars/0" in safetensors.load_file(tmp_path / "x.safetensors")
    with pytest.raises(ckptstore.InvalidArgumentError, match="it can become"):
        store.export(1, tmp_path / "x.sharded")
    # A file that was exported, and the directory itself, are read back.
    (file, directory) = store.import_files(tmp_path / "x.keras", store.get(1).path, run="imported")
    assert [file.checkpoint.format, directory.checkpoint.format] == ["keras", "sharded"]
    for imported in (file, directory):
        restored = make(6)
        store.restore(imported.checkpoint, restored)
        assert values_of(restored) == values_of(trained)


def test_a_copy_and_a_rebuilt_store_have_it(store: Any, trained: Any, tmp_path: Path) -> None:
    saved = store.save(trained, epoch=0, format="sharded", tags=["paper"])
    with ckptstore.CheckpointStore(tmp_path / "other") as other:
        copied = store.copy(1, other).checkpoint
        model = make(7)
        other.restore(copied, model)
        assert values_of(model) == values_of(trained) and copied.format == "sharded"
    store.close()
    (store.path / "manifest.sqlite").unlink()
    ckptstore.CheckpointStore.rebuild(store.path)
    with ckptstore.CheckpointStore(store.path) as rebuilt:
        found = rebuilt.get("paper")
        assert (found.format, found.nbytes, found.digest) == ("sharded", saved.nbytes, saved.digest)
        assert rebuilt.verify() == []


@pytest.mark.parametrize("damaged", [member_of(0), "description.json", "documents/config.json"])
def test_a_resume_steps_back_over_a_damaged_member(store: Any, trained: Any, damaged: str) -> None:
    store.save(trained, epoch=0, format="sharded")
    path = store.save(trained, epoch=1, format="sharded").path / damaged
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    model = make(8)
    before = values_of(model)
    with pytest.raises(ckptstore.CorruptPayloadError):
        store.restore(2, model)
    assert values_of(model) == before
    with pytest.warns(UserWarning, match="version 2"):
        assert store.resume(model).version == 1
    assert values_of(model) == values_of(trained)
    assert [entry.name for entry in (store.path / "quarantine").iterdir()] == ["00000002-default.sharded"]


def test_the_background_process_saves_it(store: Any, trained: Any) -> None:
    store.claim("default")
    queue = store.open_save_queue("default")
    try:
        for epoch in range(2):
            queue.submit(*store.prepare(trained, epoch=epoch, format="sharded"), droppable=False)
        queue.drain()
        assert [outcome.error for outcome in queue.outcomes()] == [None, None]
    finally:
        queue.close()
    model = make(9)
    assert store.resume(model).version == 2 and values_of(model) == values_of(trained)
    with payload_of(store.get(1)).open() as first, payload_of(store.get(2)).open() as second:
        assert first.members.keys() == second.members.keys() and len(first.members) == 4


def test_weights_alone_are_saved(store: Any, trained: Any) -> None:
    saved = store.save(trained, epoch=0, format="sharded", weights_only=True)
    assert not saved.resumable
    with payload.open_checkpoint(saved) as found:
        assert found.state() is None and not any(path.startswith("optimizer") for path in found.layout())
    model = make(10)
    saved.load_weights(model)
    assert weights_of(model) == weights_of(trained)
    assert weights_of(saved.load_model(compile=False)) == weights_of(trained)


def test_it_is_no_file_that_a_callback_could_show(tmp_path: Path, trained: Any) -> None:
    with pytest.raises(ckptstore.InvalidArgumentError, match=r"must end in `\.keras`"):
        ckptstore.ModelCheckpoint(tmp_path / "x.sharded").set_model(trained)
