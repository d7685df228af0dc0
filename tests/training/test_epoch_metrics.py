"""Whatever is saved when: the best epoch's end is, and each epoch's metrics reach the manifest, across restarts too."""

from __future__ import annotations

import re
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.formats import payload
from ckptstore.manifest.transactions import Transactions
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from page_examples import blocks
from small_fits import fit, model

pytestmark = [
    pytest.mark.backend,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
SCORES = [0.3, 0.5, 0.4, 0.45, 0.8, 0.7, 0.6, 0.75]
# The ends at which the score is the best so far, and the last.
ENDS = [0, 1, 4, 7]
BATCHES = 12


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Without a seed TensorFlow shuffles as no other process would, and a resume says so."""
    keras.utils.set_random_seed(1)


class Scoring(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds two metrics as a validation does: one whose values are known, and one of which the name tells nothing."""

    def __init__(self, scores: list[float] = SCORES) -> None:
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs.update(val_score=self.scores[epoch], val_odd=1.0)

    def get_state(self) -> None:
        return None

    def set_state(self, state: None) -> None:
        pass


def saving(path: Path, **options: Any) -> Any:
    return ckptstore.StoreCheckpoint(path, monitor="val_score", mode="max", **options)


def train(callback: Any, *others: Any, trained: Any = None, **options: Any) -> Any:
    trained = model() if trained is None else trained
    return fit(trained, Scoring(), callback, *others, **{"epochs": len(SCORES), **options})


def scores(store: ckptstore.CheckpointStore, run: str = "default") -> list[float]:
    history = store.history(run)
    assert [(epoch.epoch, epoch.batch) for epoch in history.epochs] == [
        (number, None) for number in range(len(history.epochs))
    ]
    return history.of("val_score")[1]


@pytest.mark.parametrize(
    "options",
    [
        {"save_freq": 7},
        {"save_freq": 10_000, "save_weights_only": True, "background": False},
        {"save_freq": "auto"},
        {"save_freq": 10_000, "save_interval": 3600},
        {"save_freq": 7, "save_best_only": True},
        {"save_freq": 5, "keep": ckptstore.keep_last(1)},
    ],
    ids=["number", "weights in the foreground", "auto", "interval", "best only", "few are kept"],
)
def test_the_best_epoch_is_saved_and_all_epochs_are_known(tmp_path: Path, options: dict[str, Any]) -> None:
    callback = saving(tmp_path, **options)
    train(callback)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        best = store.best("val_score")
        assert best is not None
        assert (best.epoch, best.batch, best.metrics["val_score"]) == (4, None, 0.8)
        assert callback.best == 0.8
        assert scores(store) == SCORES
        ends = [checkpoint.epoch for checkpoint in store.checkpoints() if checkpoint.batch is None]
        if "keep" in options or "save_best_only" in options:
            assert set(ends) <= {4, 7}
        else:
            assert ends == ENDS
        # The same in SQL, and in all that is drawn and written from it.
        (seen,) = (
            store._manifest._transactions._engine.connect()
            .exec_driver_sql("SELECT count(*) FROM run_history WHERE metric = 'val_score' AND batch IS NULL")
            .one()
        )
        assert seen == len(SCORES)


def test_the_first_example_of_the_readme_keeps_its_best_with_a_number_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    readme = Path(__file__).parent.parent.parent / "README.md"
    example = blocks(readme.read_text(encoding="utf-8"), "python")[0].code
    changed = example.replace('monitor="val_loss")', 'monitor="val_loss", save_freq=20)')
    changed = changed.replace("model.fit(", "history = model.fit(").replace(
        '"adam"', "keras.optimizers.Adam(0.05)"
    )
    assert changed != example
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(changed, names)
    losses = names["history"].history["val_loss"]
    assert names["best"].metrics["val_loss"] == min(losses)
    with ckptstore.CheckpointStore("runs/digits", read_only=True) as store:
        assert store.history().of("val_loss") == ([0, 1, 2, 3], losses)


def test_the_end_of_a_fit_that_stops_early_is_saved(tmp_path: Path) -> None:
    stopping = keras.callbacks.EarlyStopping("val_score", mode="max", patience=2)
    train(saving(tmp_path, save_freq=10_000), stopping)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [0, 1, 3]
        assert [event.version for event in store.events(kind="finished")] == [3]
        assert scores(store) == SCORES[:4]


def test_epochs_that_were_not_saved_come_again_after_an_interruption(tmp_path: Path) -> None:
    """Epochs 2 and 3 are in no save when the fit ends; they are trained again from epoch 1's end."""

    class Dying(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.model.optimizer.iterations == 4 * BATCHES + 3:
                raise RuntimeError("as asked")

    options = {"save_freq": 10_000, "save_on_exception": False}
    with pytest.raises(RuntimeError, match="as asked"):
        train(saving(tmp_path, **options), Dying())
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert scores(store) == SCORES[:2]
    train(saving(tmp_path, **options))
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert scores(store) == SCORES
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == ENDS


def test_metrics_of_a_save_that_fails_go_with_the_next(tmp_path: Path) -> None:
    tmp = Layout(tmp_path).tmp
    away = tmp.with_name("away")

    class Failing(keras.callbacks.Callback):  # type: ignore[misc]
        """From the end of epoch 1 to that of epoch 3 there is a file in place of the folder."""

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                tmp.rename(away)
                tmp.touch()
            elif epoch == 4:
                tmp.unlink()
                away.rename(tmp)

    callback = saving(tmp_path, save_freq=10_000, background=False, max_save_failures=9)
    with pytest.warns(UserWarning, match="training continues without"):
        train(callback, Failing())
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [0, 4, 7]
        assert scores(store) == SCORES


def test_metrics_of_saves_that_are_left_out_go_with_the_next(tmp_path: Path) -> None:
    """The store's lock is held in each epoch, so that saves wait, are replaced by newer ones, or left out."""

    class Holding(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.go, held = threading.Event(), threading.Event()

            def hold() -> None:
                with store_lock(Layout(tmp_path).locks):
                    held.set()
                    self.go.wait()

            threading.Thread(target=hold).start()
            held.wait()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == BATCHES - 1:
                self.go.set()

    train(saving(tmp_path, save_freq=1), Holding())
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        assert len(store.checkpoints()) < len(SCORES) * BATCHES
        assert scores(store) == SCORES


def test_a_save_brings_what_is_new_and_takes_no_transaction_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    writing = Transactions.writing

    def noted(self: Transactions, name: str, **options: Any) -> Any:
        names.append(name)
        return writing(self, name, **options)

    monkeypatch.setattr(Transactions, "writing", noted)
    train(saving(tmp_path, save_freq=10_000, background=False))
    assert names.count("reserve_version") == names.count("add_checkpoint") == len(ENDS)
    assert not {name for name in names if "epoch" in name}
    described = [payload.read_description(path) for path in sorted((tmp_path / "checkpoints").iterdir())]
    brought = [[earlier["epoch"] for earlier in found["earlier_epochs"]] for found in described]
    assert brought == [[], [], [2, 3], [5, 6]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"monitor": "val_acc"},
            r"monitor='val_acc' is not among the metrics of epoch 1 \(loss, val_score, val_odd\)",
        ),
        ({"monitor": "val_odd"}, "whether a lower or a higher val_odd is better"),
    ],
    ids=["misspelled", "direction"],
)
def test_a_fit_without_a_best_says_so(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.warns(UserWarning, match="no checkpoint counts as the best") as caught:
        train(ckptstore.StoreCheckpoint(tmp_path, **options), epochs=2)
    texts = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(texts) == 1 and re.search(said, texts[0])


@pytest.mark.parametrize("best_only", [False, True])
def test_a_fit_without_validation_is_told_so_only_if_it_wants_the_best(
    tmp_path: Path, best_only: bool
) -> None:
    callback = ckptstore.StoreCheckpoint(tmp_path, save_best_only=best_only)
    with pytest.warns(UserWarning, match="monitor='val_loss'") if best_only else nullcontext():
        fit(model(), callback)


# --- the drop-in -----------------------------------------------------------------------------------


def dropped_in(path: Path, **options: Any) -> Any:
    return ckptstore.ModelCheckpoint(path / "best.keras", monitor="val_score", mode="max", **options)


@pytest.mark.parametrize(
    ("options", "saved"),
    [({"save_best_only": True}, [0, 1, 4]), ({"save_freq": 30}, [2, 4, 7])],
    ids=["best only", "number"],
)
def test_a_drop_in_saves_what_keras_saves_and_records_all_epochs(
    tmp_path: Path, options: dict[str, Any], saved: list[int]
) -> None:
    train(dropped_in(tmp_path, keep="all", **options))
    with ckptstore.CheckpointStore(tmp_path / ".ckptstore", read_only=True) as store:
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == saved
        assert scores(store, "best") == SCORES


def test_a_drop_in_beside_a_callback_that_resumes_loses_no_epoch(tmp_path: Path) -> None:
    class Dying(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 4:
                raise RuntimeError("as asked")

    def callbacks() -> list[Any]:
        return [dropped_in(tmp_path, save_best_only=True), saving(tmp_path / "store")]

    with pytest.raises(RuntimeError, match="as asked"):
        train(*callbacks(), Dying())
    train(*callbacks())
    with ckptstore.CheckpointStore(tmp_path / ".ckptstore", read_only=True) as store:
        assert scores(store, "best") == SCORES


# --- what is not in the fit's own store --------------------------------------------------------------


def test_the_epochs_come_back_from_the_payloads_alone_and_go_along_to_another_store(tmp_path: Path) -> None:
    train(saving(tmp_path / "store", save_freq=10_000))
    with (
        ckptstore.CheckpointStore(tmp_path / "store") as store,
        ckptstore.CheckpointStore(tmp_path / "b") as other,
    ):
        exported = [
            store.export(checkpoint, tmp_path / f"{checkpoint.version}.keras")
            and tmp_path / f"{checkpoint.version}.keras"
            for checkpoint in store.checkpoints()
        ]
        store.prune(ckptstore.keep_last(1))  # the best stays, too
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [4, 7]
        for checkpoint in store.checkpoints():
            store.copy(checkpoint, other)
        assert other.history().epochs[0].version == 1
        assert scores(other) == SCORES
        other.import_files(*exported, run="imported")
        assert scores(other, "imported") == SCORES
    shutil.copytree(tmp_path / "b", tmp_path / "lost")
    (tmp_path / "lost" / "manifest.sqlite").unlink()
    ckptstore.CheckpointStore.rebuild(tmp_path / "lost")
    with ckptstore.CheckpointStore(tmp_path / "lost", read_only=True) as store:
        assert scores(store) == SCORES
        assert np.array_equal(scores(store, "imported"), SCORES)


# --- the end of a run --------------------------------------------------------------------------------


def test_a_finished_run_that_is_started_again_was_not_interrupted(tmp_path: Path) -> None:
    class Dying(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 5 and self.params["epochs"] == 4:
                raise RuntimeError("as asked")

    train(saving(tmp_path, run="again"), epochs=1)
    train(saving(tmp_path, run="again"), epochs=1)  # nothing is left to train
    with pytest.raises(RuntimeError, match="as asked"):
        train(saving(tmp_path, run="again"), Dying(), epochs=4)
    train(saving(tmp_path, run="again"), epochs=3)
    train(saving(tmp_path, run="again"), epochs=3)
    with ckptstore.CheckpointStore(tmp_path, read_only=True) as store:
        history = store.history("again")
    resumes = [(resumed.epoch, resumed.batch, resumed.interrupted) for resumed in history.resumes]
    assert resumes == [(0, None, False), (0, None, False), (1, 5, True), (2, None, False)]
    assert [(resumed.epoch, resumed.batch) for resumed in history.interruptions] == [(1, 5)]
