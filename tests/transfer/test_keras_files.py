"""Files that Keras wrote are imported, and plain Keras loads exported ones; bit for bit."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.cli.main import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]

X = np.random.default_rng(1).normal(size=(24, 4)).astype("float32")
Y = X[:, :2] * 2


def build() -> Any:
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, "relu"), keras.layers.Dropout(0.25), keras.layers.Dense(2)]
    )
    model.compile("adam", keras.losses.MeanSquaredError())
    return model


def trained() -> Any:
    model = build()
    model.fit(X, Y, epochs=1, batch_size=8, verbose=0)
    return model


def weights(model: Any) -> list[bytes]:
    return [
        keras.ops.convert_to_numpy(variable).tobytes()
        for variable in [*model.weights, *model.optimizer.variables]
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("keras")
    model = trained()
    model.save(folder / "m-02-0.125.keras")
    model.save_weights(folder / "m-01-0.250.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder / "m-03-0.500.h5")
    return folder, weights(model)


def test_files_of_keras_are_imported_with_the_values_in_their_names(
    files: tuple[Path, list[bytes]], tmp_path: Path
) -> None:
    folder, expected = files
    with ckptstore.CheckpointStore(tmp_path / "store") as store:
        for suffix, epoch, loss in ((".keras", 1, 0.125), (".weights.h5", 0, 0.25), (".h5", 2, 0.5)):
            [path] = folder.glob(f"*[05]{suffix}")
            before = path.read_bytes()
            [made] = store.import_files(path, pattern="m-{epoch:02d}-{val_loss:.3f}" + suffix)
            assert path.read_bytes() == before
            checkpoint = made.checkpoint
            assert (checkpoint.epoch, checkpoint.batch, checkpoint.metrics) == (
                epoch,
                None,
                {"val_loss": loss},
            )
            assert checkpoint.created_at.timestamp() == pytest.approx(path.stat().st_mtime, abs=1e-5)
            model = build()
            store.restore(checkpoint.version, model)
            assert weights(model) == expected, suffix
            if suffix != ".weights.h5":
                assert weights(checkpoint.load_model()) == weights(keras.saving.load_model(path)), suffix
        assert store.verify() == []
        assert store.best("val_loss").epoch == 1
        assert store.resume_point() is None, "nothing to resume from exactly"


def test_the_import_command_orders_by_epoch(
    files: tuple[Path, list[bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = files
    paths = [str(folder / "m-02-0.125.keras")]
    arguments = ["import", str(tmp_path / "s"), *paths, "--pattern", "m-{epoch:02d}-{val_loss:.3f}.keras"]
    assert main([*arguments, "--run", "old"]) == 0
    assert capsys.readouterr().out == "m-02-0.125.keras is version 1, epoch 1, end, val_loss 0.125\n"
    assert main([*arguments, "--run", "old", "--json"]) == 0
    [document] = json.loads(capsys.readouterr().out)
    assert document["existing"] is True and document["checkpoint"]["run"] == "old"
    assert main(["import", str(tmp_path / "t"), *paths, "--pattern", "{epoch}.keras"]) == 2
    assert "does not fit the name 'm-02-0.125.keras'" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
    assert main(["import", str(tmp_path / "s"), *paths, "--epoch", "4", "--metric", "loss", "0.5"]) == 0
    assert "epoch 4, end, loss 0.5" in capsys.readouterr().out


def test_a_damaged_archive_of_keras_is_refused(files: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    data = bytearray((files[0] / "m-02-0.125.keras").read_bytes())
    path = tmp_path / "bad.keras"
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        inside = archive.read("model.weights.h5")
    at = bytes(data).index(inside[len(inside) // 2 : len(inside) // 2 + 64])
    data[at + 5] ^= 1
    path.write_bytes(data)
    with ckptstore.CheckpointStore(tmp_path / "store") as store:
        with pytest.raises(ckptstore.CorruptPayloadError, match=r"bad\.keras: damaged"):
            store.import_files(path)
        assert store.checkpoints() == []


# --- BackupAndRestore -------------------------------------------------------------------------------


class Stop(keras.callbacks.Callback):
    def __init__(self, epoch: int, batch: int | None) -> None:
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch, None) == self.at:
            raise KeyboardInterrupt


def backup(folder: Path, stop: Stop, **options: Any) -> Any:
    """Train with Keras' own callback until it is stopped; returns the model."""
    model = build()
    callback = keras.callbacks.BackupAndRestore(folder, **options)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=4, batch_size=8, verbose=0, callbacks=[callback, stop])
    return model


@pytest.mark.parametrize(
    ("stop", "options", "position"),
    [
        ((1, None), {}, (1, None)),
        ((1, 1), {"save_freq": 1}, (1, 1)),
        ((0, 1), {"save_freq": 2}, (0, 1)),
    ],
)
def test_a_fit_resumes_from_a_folder_of_backup_and_restore(
    tmp_path: Path, stop: tuple[int, int | None], options: dict[str, Any], position: tuple[int, int | None]
) -> None:
    model = backup(tmp_path / "backup", Stop(*stop), **options)
    with ckptstore.CheckpointStore(tmp_path / "store") as store:
        [made] = store.import_files(tmp_path / "backup", run="fit")
        assert "not bit for bit" in made.said
        assert "metrics, History, random generators, other callbacks and the order" in made.said
        assert (made.checkpoint.epoch, made.checkpoint.batch) == position
        assert store.resume_point("fit") == made.checkpoint
        again = build()
        store.restore(made.checkpoint, again)
        assert weights(again) == weights(model)
    seen: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build().fit(
            X, Y, epochs=4, batch_size=8, verbose=0,
            callbacks=[
                ckptstore.StoreCheckpoint(tmp_path / "store", run="fit"),
                keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch)),
            ],
        )  # fmt: skip
    warning_text = "History, the state of other callbacks and the position in the data are not known"
    assert any(warning_text in str(warning.message) for warning in caught)
    first = position[0] + (position[1] is None)
    assert seen == list(range(first, 4))


def test_the_older_backup_is_imported_if_the_newest_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "backup"
    backup(folder, Stop(2, None), double_checkpoint=True)
    (folder / "latest.weights.h5").write_bytes((folder / "latest.weights.h5").read_bytes()[:900])
    assert main(["import", str(tmp_path / "store"), str(folder)]) == 0
    printed = capsys.readouterr()
    assert "latest.weights.h5.bkp is version 1, epoch 1, end" in printed.out
    assert "latest.weights.h5 is damaged" in printed.err and "the one before was imported" in printed.err
    assert "but not bit for bit" in printed.err
    (folder / "latest.weights.h5.bkp").write_bytes(b"")
    assert main(["import", str(tmp_path / "other"), str(folder)]) == 5
    assert not (tmp_path / "other").exists()
    (folder / "latest.weights.h5.bkp").unlink()
    assert main(["import", str(tmp_path / "other"), str(folder)]) == 5


def test_plain_keras_loads_an_exported_file(tmp_path: Path) -> None:
    model = trained()
    with ckptstore.CheckpointStore(tmp_path / "store") as store:
        store.save(model, epoch=0, metrics={"loss": 0.5})
        whole = store.export(1, tmp_path / "m.keras")
        alone = store.export(1, tmp_path / "m.weights.h5")
        folder = store.export(1, tmp_path / "folder")
    expected = weights(model)
    assert weights(keras.saving.load_model(whole.path)) == expected
    assert weights(keras.saving.load_model(folder.path / "model.keras")) == expected
    fresh = trained()
    fresh.load_weights(alone.path)
    assert weights(fresh) == expected
    card = (folder.path / "README.md").read_text()
    assert f"| written with Keras | {keras.__version__} |" in card
