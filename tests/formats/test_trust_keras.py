"""Tests that Keras never gets a forged payload: a digest in the manifest proves which file it is, not who made it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from ckptstore.errors import CorruptPayloadError
from ckptstore.records import Checkpoint, Format
from ckptstore.storage.files import digest_file
from ckptstore.store.store import CheckpointStore
from hostile_payloads import HOSTILE, MIB, exchange, little_memory, sql

# Warnings of numpy 2 about Keras' variables, from Keras' own code.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def model(*more: keras.Layer) -> keras.Model:
    built = keras.Sequential([keras.Input((4,)), *more, keras.layers.Dense(3)])
    built.compile("adam", "mse")
    return built


def with_its_row(store: CheckpointStore, checkpoint: Checkpoint) -> Checkpoint:
    """Forge the row of a replaced payload, so that size and digest are right."""
    facts = (digest_file(checkpoint.path), checkpoint.path.stat().st_size, checkpoint.version)
    sql(store.path, "UPDATE checkpoints SET digest = ?, nbytes = ? WHERE version = ?", *facts)
    return store.get(checkpoint.version)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.__name__)
@pytest.mark.parametrize("format", ["keras", "weights", "h5"])
def test_an_array_outside_the_file_is_not_loaded(
    tmp_path: Path, format: Format, hostile: Callable[..., None]
) -> None:
    live = model()
    before = [array.copy() for array in live.get_weights()]
    with CheckpointStore(tmp_path / "store") as store:
        checkpoint = store.save(live, epoch=0, format=format)
        exchange(checkpoint.path, hostile, tmp_path / "elsewhere.h5")
        checkpoint = with_its_row(store, checkpoint)
        ways: list[Callable[[], object]] = [
            lambda: store.restore(checkpoint, live),
            lambda: checkpoint.load_weights(live),
        ]
        for way in ways if format == "weights" else [*ways, checkpoint.load_model]:
            with little_memory(), pytest.raises(CorruptPayloadError):
                way()
    assert all(np.array_equal(*pair) for pair in zip(before, live.get_weights(), strict=True))


@pytest.mark.parametrize("document", ["config.json", "metadata.json"])
def test_a_model_that_unpacks_to_much_is_not_loaded(tmp_path: Path, document: str) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        checkpoint = store.save(model(), epoch=0)
        with zipfile.ZipFile(checkpoint.path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members[document] += b" " * (64 * MIB)
        checkpoint.path.chmod(0o644)
        with zipfile.ZipFile(checkpoint.path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if name == document else zipfile.ZIP_STORED)
        del members
        checkpoint = with_its_row(store, checkpoint)
        live = model()
        for way in (
            lambda: store.restore(checkpoint, live),
            lambda: checkpoint.load_weights(live),
            checkpoint.load_model,
        ):
            with little_memory(), pytest.raises(CorruptPayloadError, match="bytes that are not there"):
                way()


@pytest.mark.parametrize("format", ["keras", "h5"])
def test_code_in_a_model_is_not_run_unless_the_caller_allows_it(tmp_path: Path, format: Format) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        checkpoint = store.save(model(keras.layers.Lambda(lambda values: values * 2)), epoch=0, format=format)
        for options in ({}, {"safe_mode": True}, {"compile": False}):
            with pytest.raises(ValueError, match="Lambda"):
                checkpoint.load_model(**options)
        loaded = checkpoint.load_model(safe_mode=False, compile=False)
        assert isinstance(loaded.layers[0], keras.layers.Lambda)
