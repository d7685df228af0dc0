"""Tests that a restore reads a payload from the disk once, and changes a model only after all bytes are verified."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_zoo as zoo
from ckptstore import CheckpointStore, StoreCheckpoint
from ckptstore.errors import CorruptPayloadError, RefusedByLayerError, StorageError
from ckptstore.keras import private
from ckptstore.keras.model.adapter import adapter
from ckptstore.keras.private import has_custom_loading
from ckptstore.storage import random_access
from ckptstore.storage.random_access import open_random_access

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="/proc counts reads"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
WIDTH = 512
_PART = 1 << 18
# Reads of system files, the manifest, and late imports.
SLACK = 1 << 20


def wide() -> keras.Model:
    layers = [keras.layers.Dense(WIDTH) for _ in range(6)]
    model = keras.Sequential([keras.Input((WIDTH,)), *layers])
    model.compile("adam", "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def counted(name: str) -> int:
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)[name])


def restored(folder: Path, model: keras.Model) -> None:
    with CheckpointStore(folder) as store:
        store.restore("latest", model)


def weights_loaded(folder: Path, model: keras.Model) -> None:
    with CheckpointStore(folder) as store:
        store.get("latest").load_weights(model)


def resumed(folder: Path, model: keras.Model) -> None:
    with CheckpointStore(folder) as store:
        assert store.resume(model) is not None


def fit_resumed(folder: Path, model: keras.Model) -> None:
    callback = StoreCheckpoint(folder, run="default", monitor="loss", resume="must", background=False)
    x = np.zeros((2, WIDTH), "float32")
    model.fit(x, x, epochs=1, callbacks=[callback], verbose=0)


@pytest.mark.filterwarnings("ignore:.*was not saved by a callback that resumes:UserWarning")
@pytest.mark.parametrize("read", [restored, weights_loaded, resumed, fit_resumed])
@pytest.mark.parametrize("format", ["keras", "weights"])
def test_a_payload_is_read_twice_at_most_and_from_the_disk_once(
    read: Callable[[Path, keras.Model], None], format: Any, tmp_path: Path
) -> None:
    model = wide()
    with CheckpointStore(tmp_path) as store:
        nbytes = store.save(model, epoch=0, format=format).nbytes
        assert nbytes > 18 * WIDTH**2 * 4
        path = store.get("latest").path
    read(tmp_path, model)  # modules are imported
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    asked, from_disk = counted("rchar"), counted("read_bytes")
    read(tmp_path, model)
    asked, from_disk = counted("rchar") - asked, counted("read_bytes") - from_disk
    # On torch the second access is a view of the system's memory, and not a read at all.
    times = 1 if zoo.BACKEND == "torch" else 2
    assert nbytes <= asked <= times * nbytes + SLACK
    assert from_disk <= nbytes + SLACK


@pytest.mark.parametrize("load", [restored, weights_loaded, resumed])
def test_no_payload_stays_mapped(load: Callable[[Path, keras.Model], None], tmp_path: Path) -> None:
    """Otherwise its memory counts as this process', and its disk space is freed only when the process ends."""
    model = wide()
    with CheckpointStore(tmp_path) as store:
        path = store.save(model, epoch=0, format="weights").path
        load(tmp_path, model)
        assert not store.verify()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_damaged_payload_changes_nothing(tmp_path: Path) -> None:
    """Even if the damage is in the last bytes, after everything that a model loads."""
    model = wide()
    with CheckpointStore(tmp_path) as store:
        path = store.save(model, epoch=0).path
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        before = zoo.state_of(zoo.scrambled(model))
        for read in (restored, weights_loaded):
            with pytest.raises(CorruptPayloadError, match="its digest is"):
                read(tmp_path, model)
            assert zoo.state_of(model) == before


@contextmanager
def interrupted(variable: Any, error: BaseException | None = None, *, times: int = 1) -> Iterator[None]:
    """Make the first assignments to a variable raise KeyboardInterrupt or another error."""
    assign = variable.assign
    left = times

    def raises(value: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            raise error or KeyboardInterrupt
        assign(value)

    variable.__dict__["assign"] = raises
    try:
        yield
    finally:
        variable.__dict__.pop("assign", None)
    assert variable.assign == assign
    assert left < times


@pytest.fixture
def scrambled(tmp_path: Path) -> tuple[keras.Model, Any]:
    """Return a model that has changed since it was saved, and its saved values."""
    model = wide()
    saved = zoo.state_of(model)
    with CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0)
    return zoo.scrambled(model), saved


def test_an_interrupt_leaves_no_model_half_loaded(scrambled: tuple[keras.Model, Any], tmp_path: Path) -> None:
    model, saved = scrambled
    with interrupted(model.layers[3].kernel), pytest.raises(KeyboardInterrupt):
        restored(tmp_path, model)
    assert zoo.state_of(model) == saved


def test_a_load_that_fails_is_retried_once(
    scrambled: tuple[keras.Model, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, saved = scrambled
    load, loads = private.load_variables, list[str]()

    def counted_load(*arguments: Any, **options: Any) -> None:
        # Keras itself retries within one load: all of these must fail.
        failing = interrupted(model.layers[3].kernel, MemoryError("none left"), times=99)
        with nullcontext() if loads else failing:
            loads.append("")
            load(*arguments, **options)

    monkeypatch.setattr(private, "load_variables", counted_load)
    restored(tmp_path, model)
    assert len(loads) == 2
    assert zoo.state_of(model) == saved


def test_the_error_says_that_a_model_is_half_loaded(
    scrambled: tuple[keras.Model, Any], tmp_path: Path
) -> None:
    model, saved = scrambled
    failure = OSError(errno.EIO, "Input/output error")
    with (
        interrupted(model.layers[3].kernel, failure, times=99),
        pytest.raises(RefusedByLayerError, match=r"Input/output error.*changed in part") as error,
    ):
        restored(tmp_path, model)
    assert not error.value.put_back
    assert "changed in part" in error.value.__notes__[0]
    with interrupted(model.layers[3].kernel, times=2), pytest.raises(KeyboardInterrupt) as interrupt:
        restored(tmp_path, model)
    assert "changed in part" in interrupt.value.__notes__[0]
    restored(tmp_path, model)
    assert zoo.state_of(model) == saved


@pytest.mark.skipif(zoo.BACKEND != "jax", reason="elsewhere a variable keeps its memory")
@pytest.mark.parametrize("load", [restored, weights_loaded])
def test_old_values_are_freed_while_the_rest_is_loaded(load: Any, tmp_path: Path) -> None:
    model = wide()
    with CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0)
    variables = [*model.variables, *model.optimizer.variables]
    held = [weakref.ref(variable.value) for variable in variables]
    left: list[int] = []
    last = variables[-1]
    assign = last.assign

    def counts(value: Any) -> Any:
        left.append(sum(reference() is not None for reference in held))
        return assign(value)

    last.__dict__["assign"] = counts
    load(tmp_path, model)
    del last.__dict__["assign"]
    assert left == [1]


def test_an_interrupt_restores_a_model_whose_layers_have_loading_of_their_own(tmp_path: Path) -> None:
    model = zoo.own_way()
    assert has_custom_loading(model)
    assert not has_custom_loading(wide())
    with CheckpointStore(tmp_path) as store:
        store.save(model, epoch=0)
        before = zoo.state_of(zoo.scrambled(model))
        with interrupted(model.layers[-1].kernel), pytest.raises(KeyboardInterrupt):
            restored(tmp_path, model)
    assert zoo.state_of(model) == before


class Keeps(keras.layers.Layer):  # type: ignore[misc]
    """Keeps the arrays that it loads, and writes into them."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(WIDTH,), initializer="ones")

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self.kept = store["0"]
        self.kept += 1


def test_arrays_that_a_layer_keeps_have_their_own_memory(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((WIDTH,)), Keeps(), keras.layers.Dense(2)])
    model.compile("adam", "mse", jit_compile=False)
    with CheckpointStore(tmp_path) as store:
        checkpoint = store.save(model, epoch=0)
        content = checkpoint.path.read_bytes()
        adapter.restore(model, checkpoint)
        assert checkpoint.path.read_bytes() == content
    assert model.layers[0].kept.tolist() == [2.0] * WIDTH
    assert model.layers[0].scale.numpy().tolist() == [1.0] * WIDTH


# --- views of bytes ----------------------------------------------------------------------------


def test_a_view_has_the_bytes_of_a_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * _PART + 17))
    with open_random_access(path) as file, random_access.section_of(file, 5, file.nbytes - 9) as part:
        for offset, count in (
            (0, 1),
            (4095, 3),
            (_PART, _PART + 1),
            (part.nbytes - 2, 2),
            (7, 0),
        ):
            view = part.view(offset, count)
            assert view.readonly
            assert bytes(view) == part.read(offset, count) == path.read_bytes()[5:][offset : offset + count]
        with pytest.raises(CorruptPayloadError, match="cut short"):
            part.view(part.nbytes - 1, 2)


def test_bytes_are_read_where_pages_cannot_be_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_access, "_POPULATE_READ", 9999)
    (tmp_path / "file").write_bytes(b"0123456789")
    with open_random_access(tmp_path / "file") as file:
        assert bytes(file.view(2, 3)) == b"234"


def test_pages_that_the_disk_cannot_read_raise_an_error(tmp_path: Path) -> None:
    """And not the signal that accessing them would cause."""
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * 4096))
    with open_random_access(path) as file:
        file.view(0, 1)
        os.truncate(path, 4096)
        with pytest.raises(StorageError, match="read"):
            file.view(8192, 100)
