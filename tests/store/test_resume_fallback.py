"""Damage of the newest payload is found before the model changes, and the one before is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

import ckptstore

# numpy 2 about Keras' own variables, on the way through Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def _model() -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(40), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def _set(model: keras.Model, value: float) -> None:
    for variable in (*model.weights, *model.optimizer.variables):
        variable.assign(np.full(variable.shape, value, variable.dtype))


def _values(model: keras.Model) -> set[float]:
    variables = (*model.weights, *model.optimizer.variables)
    return {
        float(value)
        for variable in variables
        for value in np.ravel(keras.ops.convert_to_numpy(variable.value))
    }


def _cut(path: Path, content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flip(path: Path, content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _zero_page(path: Path, content: bytes) -> bytes:
    return content[:4096] + bytes(4096) + content[8192:]


def _garbage_description(path: Path, content: bytes) -> bytes:
    assert content.count(b'"resumable"') == 1
    return content.replace(b'"resumable"', b'"\xff\xfe\x00[[{""""')


def _empty(path: Path, content: bytes) -> bytes:
    return b""


def _longer(path: Path, content: bytes) -> bytes:
    return content + b"\0"


def _another(path: Path, content: bytes) -> bytes:
    return path.with_name(path.name.replace("00000003", "00000001")).read_bytes()


DAMAGES = [_cut, _flip, _zero_page, _garbage_description, _empty, _longer, _another]


@pytest.mark.parametrize("format", ["keras", "weights"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found_before_the_model_changes(
    tmp_path: Path, damage: Callable[[Path, bytes], bytes], format: str
) -> None:
    model = _model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        for number in (1, 2, 3):
            _set(model, number)
            path = store.save(model, epoch=number, format=format, run="a").path
        path.chmod(0o644)
        path.write_bytes(damage(path, path.read_bytes()))
        _set(model, 7)
        with pytest.raises(ckptstore.CorruptPayloadError):
            store.restore(3, model)
        assert _values(model) == {7.0}
        with pytest.warns(UserWarning, match="version 3 is put aside"):
            assert store.resume(model, "a").version == 2
        assert _values(model) == {2.0}
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1, 2]
        assert len(os.listdir(tmp_path / "quarantine")) == 1
        assert {event.kind for event in store._manifest.events.find(version=3)} == {
            "saved",
            "resuming",
            "damaged",
        }
        assert store.verify()[0].kind == "damaged"
    warned = pytest.warns(UserWarning, match="skipped, since missing or damaged: version 3")
    with ckptstore.CheckpointStore(tmp_path) as store, warned:
        assert store.restore("resume-point", model).version == 2


def test_a_hole_in_the_file_is_found(tmp_path: Path) -> None:
    model = _model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        for number in (1, 2):
            _set(model, number)
            path = store.save(model, epoch=number).path
        path.chmod(0o644)
        with path.open("r+b") as file:
            content = file.read()
            file.seek(0)
            file.truncate()
            file.write(content[:8192])
            file.truncate(len(content))
        with pytest.warns(UserWarning, match="version 2"):
            assert store.resume(model).version == 1


@keras.saving.register_keras_serializable("ckptstore-tests")
class Touchy(keras.layers.Dense):
    refused: float | None = None

    def load_own_variables(self, store) -> None:
        if self.refused is not None and float(store["0"][0, 0]) == self.refused:
            raise RuntimeError("will not have this one")
        super().load_own_variables(store)


def test_a_payload_that_raises_while_loading_leaves_the_model_as_the_older_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = keras.Sequential([keras.Input((3,)), Touchy(2), Touchy(1)])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    with ckptstore.CheckpointStore(tmp_path) as store:
        for number in (1, 2):
            _set(model, number)
            store.save(model, epoch=number)
        monkeypatch.setattr(Touchy, "refused", 2.0)
        with pytest.warns(UserWarning, match="loading it raises .*will not have this one"):
            assert store.resume(model).version == 1
        assert _values(model) == {1.0}


def test_a_model_that_does_not_fit_is_an_error_and_quarantines_nothing(tmp_path: Path) -> None:
    with ckptstore.CheckpointStore(tmp_path) as store:
        store.save(_model(), epoch=0)
        other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        other.compile("adam", "mse")
        with pytest.raises(ckptstore.ModelMismatchError):
            store.resume(other)
        assert os.listdir(tmp_path / "quarantine") == [] and len(store.checkpoints()) == 1


def test_resuming_claims_the_run(tmp_path: Path) -> None:
    with ckptstore.CheckpointStore(tmp_path) as store, ckptstore.CheckpointStore(tmp_path) as other:
        model = _model()
        store.save(model, epoch=0, run="a")
        with pytest.raises(ckptstore.RunLockedError):
            other.resume(model, "a")
        assert other.resume(model).version == 1


@pytest.mark.filterwarnings("ignore:version 1 is skipped")
def test_starts_that_end_well_are_not_counted_as_crashes(tmp_path: Path) -> None:
    model = _model()
    with ckptstore.CheckpointStore(tmp_path) as store:
        for number in (1, 2):
            store.save(model, epoch=number)
    for _ in range(5):
        with ckptstore.CheckpointStore(tmp_path) as store:
            assert store.resume(model).version == 2
    for _ in range(3):
        with pytest.raises(RuntimeError), ckptstore.CheckpointStore(tmp_path) as store:
            assert store.resume(model).version == 2
            raise RuntimeError("the training's own")
    with (
        pytest.warns(UserWarning, match="version 2 is skipped: started from 3 times"),
        ckptstore.CheckpointStore(tmp_path) as store,
    ):
        assert store.resume(model).version == 1
