"""The callbacks that resume: saves, refusals and leftovers; exactness is tested in `test_exact_resume`."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore

# What Keras' own code does on torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
ROWS = 24


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Without a seed TensorFlow shuffles as no other process would, and a resume says so."""
    keras.utils.set_random_seed(1)


def data() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "x": draw.normal(size=(ROWS, 3)).astype("float32"),
        "y": draw.normal(size=(ROWS, 1)),
        "batch_size": 4,
    }


def model(units: int = 2, **compiled: Any) -> Any:
    made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    made.compile(**{"optimizer": "sgd", "loss": "mse", **compiled})
    return made


def fit(trained: Any, *callbacks: Any, **options: Any) -> Any:
    return trained.fit(**{**data(), "epochs": 2, "verbose": 0, **options}, callbacks=list(callbacks))


def positions(path: Path, run: str | None = None) -> list[tuple[int, int | None, int | None]]:
    with ckptstore.CheckpointStore(path, read_only=True) as store:
        return [
            (checkpoint.epoch, checkpoint.batch, checkpoint.step) for checkpoint in store.checkpoints(run)
        ]


def spoiling(trained: Any) -> Any:
    """Return a callback that makes the loss of the second epoch NaN."""

    def spoil(epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            trained.layers[0].bias.assign(np.full(2, np.nan))

    return keras.callbacks.LambdaCallback(on_epoch_begin=spoil)


class Raising(keras.callbacks.Callback):
    """Ends a fit at its n-th batch."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("as asked")

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Do nothing: each fit counts from 0."""


# --- what is saved -----------------------------------------------------------------------------


def test_each_epoch_is_saved_with_its_metrics(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, monitor="val_loss")
    history = fit(model(), callback, validation_split=0.25, epochs=3).history
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        found = store.checkpoints()
        best = store.best("val_loss")
    assert [(checkpoint.epoch, checkpoint.batch, checkpoint.step) for checkpoint in found] == [
        (0, None, 5),
        (1, None, 10),
        (2, None, 15),
    ]
    assert [checkpoint.metrics["val_loss"] for checkpoint in found] == history["val_loss"]
    assert all(checkpoint.resumable for checkpoint in found)
    assert best is not None
    assert callback.best == best.metrics["val_loss"] == min(history["val_loss"])
    assert callback.last == found[-1]


def test_batches_are_counted_across_epochs_and_the_end_is_saved(tmp_path: Path) -> None:
    fit(model(), ckptstore.StoreCheckpoint(tmp_path, save_freq=4, backpressure="wait"))
    assert positions(tmp_path) == [(0, 3, 4), (1, 1, 8), (1, 5, 12), (1, None, 12)]


def test_logs_added_by_any_callback_are_metrics(tmp_path: Path) -> None:
    saving = ckptstore.StoreCheckpoint(tmp_path)
    fit(model(), saving, keras.callbacks.ReduceLROnPlateau(monitor="loss"), epochs=1)
    assert saving.last is not None
    assert "learning_rate" in saving.last.metrics


def test_an_interval_saves_at_the_next_batch(tmp_path: Path) -> None:
    saving = ckptstore.StoreCheckpoint(tmp_path, save_freq=1000, save_interval=1e-9, backpressure="wait")
    fit(model(), saving, epochs=1)
    assert positions(tmp_path)[:6] == [(0, batch, batch + 1) for batch in range(6)]


def test_only_the_best_and_the_newest_stay(tmp_path: Path) -> None:
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = (0.5, 0.9, 0.3, 0.2, 0.1)[epoch]

    saving = ckptstore.StoreCheckpoint(tmp_path, monitor="score", mode="max", save_best_only=True)
    fit(model(), Worse(), saving, epochs=5)
    # The best, and the newest two: if one is damaged, there is another.
    assert [epoch for epoch, _, _ in positions(tmp_path)] == [1, 3, 4]
    assert saving.best == 0.9


def test_weights_alone_can_be_resumed_from_and_loaded(tmp_path: Path) -> None:
    first = model()
    fit(first, ckptstore.StoreCheckpoint(tmp_path, run="default", save_weights_only=True), epochs=1)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        saved = store.latest()
    assert saved is not None
    assert saved.format == "weights"
    again = model()
    again.load_weights(saved.path)
    assert all(np.array_equal(*pair) for pair in zip(first.get_weights(), again.get_weights(), strict=True))
    resumed = ckptstore.StoreCheckpoint(tmp_path, run="default", save_weights_only=True)
    fit(model(), resumed)
    assert resumed.resumed_from == saved


def test_a_loss_that_is_not_finite_is_no_resume_point(tmp_path: Path) -> None:
    trained = model()
    fit(trained, ckptstore.StoreCheckpoint(tmp_path), spoiling(trained))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        point = store.resume_point()
        assert len(store.checkpoints()) == 2
    assert point is not None
    assert point.epoch == 0


# --- what is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize("ends", [None, 3])
def test_a_fit_leaves_nothing_in_model_or_process(tmp_path: Path, ends: int | None) -> None:
    trained = model()
    fit(trained, epochs=1)
    before = (trained._initial_epoch, trained.train_function, signal.getsignal(signal.SIGTERM))
    others = [] if ends is None else [Raising(ends)]
    for _ in range(2):
        try:
            fit(trained, ckptstore.StoreCheckpoint(tmp_path, save_freq=2), *others)
        except RuntimeError:
            assert ends is not None
        assert (trained._initial_epoch, trained.train_function, signal.getsignal(signal.SIGTERM)) == before
    assert len(fit(trained, epochs=3).epoch) == 3
    ckptstore.CheckpointStore(tmp_path).claim("default")


def test_a_callback_serves_one_fit_after_another(tmp_path: Path) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, run="default")
    trained = model()
    fit(trained, callback, epochs=1)
    assert fit(trained, callback, epochs=3).epoch == [0, 1, 2]
    assert callback.resumed_from is not None
    assert positions(tmp_path)[-1] == (2, None, 18)


def test_the_best_survives_a_restart(tmp_path: Path) -> None:
    first = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss")
    fit(model(), first)
    second = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss")
    fit(model(), second)
    assert second.best == first.best


@pytest.mark.parametrize("change", [{"monitor": "mae"}, {"mode": "max"}])
def test_the_best_by_another_metric_comes_from_the_store(change: dict[str, Any], tmp_path: Path) -> None:
    fit(
        model(metrics=["mae"]),
        ckptstore.StoreCheckpoint(tmp_path, run="default", **{"monitor": "loss", **change}),
    )
    callback = ckptstore.StoreCheckpoint(tmp_path, run="default", monitor="loss")
    was = f"monitor={change.get('monitor', 'loss')!r}, mode={change.get('mode', 'min')!r}"
    with pytest.warns(UserWarning, match=f"{was}, and continues with monitor='loss', mode='min'") as warned:
        history = fit(model(metrics=["mae"]), callback)
    assert callback.best == min(history.history["loss"])
    (said,) = [str(warning.message) for warning in warned if warning.category is UserWarning]
    assert f"mode='min': best is {callback.best} (version " in said


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("save_freq", 0),
        ("save_freq", "batch"),
        ("monitor", None),
        ("resume", "always"),
        ("run", "../elsewhere"),
        ("save_interval", 0),
        ("save_interval", timedelta(seconds=-1)),
        ("keep", 3),
        ("on_save_error", "ignore"),
        ("signals", [signal.SIGKILL]),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_made(tmp_path: Path, argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        callback = ckptstore.StoreCheckpoint(tmp_path / "store", **{argument: value})
        fit(model(), callback)
    assert not list((tmp_path / "store").glob("checkpoints/*"))


@pytest.mark.parametrize(
    "name", ["best.keras", "m/{epoch:02d}-{val_loss:.2f}", "best.weights.h5", "", "~/runs"]
)
def test_the_name_of_a_file_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ckptstore.errors.InvalidArgumentError):
        ckptstore.StoreCheckpoint(name)
    assert list(tmp_path.iterdir()) == []
    # A store of that name is one.
    if name and "~" not in name:
        Path(name).mkdir(parents=True)
        assert ckptstore.StoreCheckpoint(name).store_path == tmp_path / name


def test_another_architecture_is_refused_and_named(tmp_path: Path) -> None:
    fit(model(), ckptstore.StoreCheckpoint(tmp_path, run="default"))
    other = model(units=5)
    before = other.get_weights()
    with pytest.raises(ckptstore.ModelMismatchError, match=r"units"):
        fit(other, ckptstore.StoreCheckpoint(tmp_path, run="default"), epochs=5)
    assert all(np.array_equal(*pair) for pair in zip(before, other.get_weights(), strict=True))
    assert other._initial_epoch is None


def test_other_settings_are_one_warning(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="as asked"):
        fit(model(), ckptstore.StoreCheckpoint(tmp_path), Raising(6))
    with pytest.warns(UserWarning, match="mae") as warned:
        fit(model(loss="mae"), ckptstore.StoreCheckpoint(tmp_path))
    (ours,) = [warning for warning in warned if warning.category is UserWarning]
    # The line that the user sees is their own, not one of this package or of Keras.
    assert ours.filename == __file__


def test_two_that_resume_one_fit_are_refused(tmp_path: Path) -> None:
    first, second = (ckptstore.StoreCheckpoint(tmp_path / name) for name in "ab")
    with pytest.raises(ckptstore.InvalidArgumentError, match="resumes it already"):
        fit(model(), first, second)
    with pytest.raises(ckptstore.InvalidArgumentError, match="resumes it already"):
        fit(model(), first, ckptstore.StoreCheckpoint(tmp_path / "a"))
    beside = ckptstore.ModelCheckpoint(tmp_path / "best.keras", monitor="loss")
    fit(model(), ckptstore.StoreCheckpoint(tmp_path / "c"), beside, epochs=1)
    assert (tmp_path / "best.keras").exists()


WRITER = """
import sys, ckptstore
store = ckptstore.CheckpointStore(sys.argv[1])
store.claim("default")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], text=True, **pipes) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(ckptstore.RunLockedError, match=str(writer.pid)) as caught:
            fit(model(), ckptstore.StoreCheckpoint(tmp_path))
        # Such as the workers of joblib, each of which counts its fits for itself.
        assert "run='...'" in caught.value.hint
        writer.communicate()


# --- BackupAndRestore --------------------------------------------------------------------------


def test_a_backup_is_removed_once_the_fit_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    fit(model(), ckptstore.BackupAndRestore(folder))
    assert not folder.exists()


def test_foreign_files_stay_beside_the_backup(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    fit(model(), ckptstore.BackupAndRestore(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_backup_stays_after_an_early_stop(tmp_path: Path) -> None:
    stopping = keras.callbacks.EarlyStopping(monitor="loss", patience=0, min_delta=1e9)
    fit(model(), ckptstore.BackupAndRestore(tmp_path), stopping, epochs=9)
    assert positions(tmp_path)


def test_a_backup_stays_after_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    trained = model()
    fit(trained, ckptstore.BackupAndRestore(tmp_path), spoiling(trained))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        point = store.resume_point()
    assert point is not None
    assert point.epoch == 0


def test_without_a_frequency_only_exceptions_are_backed_up(tmp_path: Path) -> None:
    backup = ckptstore.BackupAndRestore(tmp_path, save_freq=False, save_on_exception=True)
    with pytest.raises(RuntimeError, match="as asked"):
        fit(model(), backup, Raising(4))
    assert positions(tmp_path) == [(0, 3, 4)]
