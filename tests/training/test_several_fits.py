"""Several fits of one script with one store: each is a run of its own, also when the script is started again."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.training.session.fit_order import fits_on
from resume_runs import Runs, found
from small_fits import AtBatch, fit, model

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.usefixtures("forked_writers"),
]
BACKEND = os.environ["KERAS_BACKEND"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(BACKEND, tmp_path_factory.mktemp("programs"), module="several_fits")
    yield started
    started.close()


# There the plain program itself ends in several ways: threads that read ahead draw from numpy's generator too.
draws_in_order = pytest.mark.skipif(BACKEND == "tensorflow", reason="threads of TensorFlow draw in any order")


def names(folder: Path) -> tuple[str, ...]:
    with ckptstore.CheckpointStore(folder, read_only=True) as store:
        return store.run_names()


# --- killed and started again ------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", ["folds", "epochs", "stages", pytest.param("continued", marks=draws_in_order)]
)
def test_folds_that_are_killed_end_as_those_that_were_not(
    programs: Runs, program: str, tmp_path: Path
) -> None:
    plain = found(programs.run(program))
    store = str(tmp_path / "store")
    batches = {"folds": 7, "epochs": 4, "stages": 9, "continued": 9}[program]
    for death in ([1, batches], [1, 2], [2, 3]):
        outcome = programs.run(program, store=store, die_in=death)
        assert outcome.status == -signal.SIGKILL, outcome.output
    outcome = programs.run(program, store=store)
    resumed = found(outcome)
    assert resumed["fits"] == plain["fits"]
    assert "not be exact" not in outcome.output
    assert resumed["runs"] == ["default", "default-2", "default-3"]
    # Nothing is left: all come back at once.
    assert found(programs.run(program, store=store))["fits"] == plain["fits"]


@draws_in_order
def test_a_run_that_a_second_fit_continues_is_as_without_us(programs: Runs, tmp_path: Path) -> None:
    """One name for both fits, and `initial_epoch`: History is the fit's own, and nothing is inexact."""
    plain = found(programs.run("continued"))
    outcome = programs.run("continued", store=str(tmp_path / "store"), saving={"run": "mine"})
    assert found(outcome)["fits"] == plain["fits"]
    assert found(outcome)["runs"] == ["mine"] * 3
    assert "may not be exact" not in outcome.output


# --- names -------------------------------------------------------------------------------------


def store_checkpoint(path: Any, **options: Any) -> ckptstore.StoreCheckpoint:
    return ckptstore.StoreCheckpoint(path, **{"monitor": "loss", "background": False, **options})


def fit_named(callback: ckptstore.StoreCheckpoint, *others: Any, **options: Any) -> str | None:
    fit(model(), callback, *others, **{"epochs": 1, **options})
    return callback.run


def test_a_store_is_one_however_its_path_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("store")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    callback = store_checkpoint("store")
    assert callback.run is None
    monkeypatch.chdir(tmp_path / "sub")
    spelled = [callback, store_checkpoint(tmp_path / "link"), store_checkpoint("../store")]
    # Copies, and the same callback again, are counted too.
    spelled += [copy.deepcopy(callback), pickle.loads(pickle.dumps(callback)), callback]
    assert [fit_named(each) for each in spelled] == [
        "default",
        *(f"default-{number}" for number in range(2, 7)),
    ]
    assert capsys.readouterr().out.count("is a run of its own: this one is default-2") == 1
    assert fit_named(store_checkpoint(tmp_path / "another")) == "default"
    assert callback.last is not None
    assert callback.last.run == "default-6"


def test_a_name_that_a_fit_of_this_process_was_given_is_taken(tmp_path: Path) -> None:
    assert fit_named(store_checkpoint(tmp_path, run="default")) == "default"
    assert fit_named(store_checkpoint(tmp_path)) == "default-2"


def test_a_store_that_was_removed_begins_with_the_first_name(tmp_path: Path) -> None:
    import shutil

    assert fit_named(store_checkpoint(tmp_path / "store")) == "default"
    shutil.rmtree(tmp_path / "store")
    with pytest.warns(UserWarning, match="the store is gone"):
        assert fit_named(store_checkpoint(tmp_path / "store")) == "default"


def test_a_forked_child_counts_on(tmp_path: Path) -> None:
    assert fit_named(store_checkpoint(tmp_path)) == "default"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, fits_on(tmp_path).next_run().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"default-2"
    os.close(read)
    os.close(write)


# --- how the fit before ended ------------------------------------------------------------------


def raises(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("error", [ValueError("as asked"), KeyboardInterrupt(), SystemExit(75)])
def test_a_fit_that_an_exception_ended_is_resumed_by_the_next(error: BaseException, tmp_path: Path) -> None:
    assert fit_named(store_checkpoint(tmp_path)) == "default"
    with pytest.raises(type(error)):
        fit(model(), store_checkpoint(tmp_path), AtBatch(4, raises(error)))
    again = store_checkpoint(tmp_path)
    history = fit(model(), again)
    assert again.run == "default-2"
    assert again.resumed_from is not None
    assert again.resumed_from.batch == 4
    assert history.epoch == [0, 1]
    assert fit_named(store_checkpoint(tmp_path)) == "default-3"


def test_a_fit_that_ended_unnoticed_is_resumed_by_the_next(tmp_path: Path) -> None:
    """An error in the step itself: no hook of any callback sees it."""
    trained = model()
    saved = store_checkpoint(tmp_path, save_freq=2)
    step: Any = None

    def break_step() -> None:
        nonlocal step
        step = trained.train_function

        def broken(*_: Any) -> Any:
            raise MemoryError("as asked")

        trained.train_function = broken

    with pytest.raises(MemoryError):
        fit(trained, saved, AtBatch(5, break_step))
    again = store_checkpoint(tmp_path)
    fit(model(), again)
    assert again.run == "default"
    assert again.resumed_from is not None


def test_a_signal_interrupts_a_fit_and_the_next_resumes(tmp_path: Path) -> None:
    interrupting = AtBatch(4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(model(), store_checkpoint(tmp_path), interrupting)
    again = store_checkpoint(tmp_path)
    assert fit_named(again, epochs=2) == "default"
    assert again.resumed_from is not None


def test_a_fit_that_a_callback_stopped_has_ended(tmp_path: Path) -> None:
    trained = model()

    def stop() -> None:
        trained.stop_training = True

    fit(trained, store_checkpoint(tmp_path), AtBatch(11, stop), epochs=4)
    assert fit_named(store_checkpoint(tmp_path)) == "default-2"


# --- together ----------------------------------------------------------------------------------


def test_a_fit_inside_another_needs_a_name(tmp_path: Path) -> None:
    inner: list[BaseException] = []

    def nested() -> None:
        try:
            fit(model(), store_checkpoint(tmp_path))
        except ckptstore.InvalidArgumentError as error:
            inner.append(error)
        fit(model(), store_checkpoint(tmp_path, run="inner"))

    outer = store_checkpoint(tmp_path)
    fit(model(), outer, AtBatch(3, nested), epochs=1)
    assert outer.run == "default"
    [error] = inner
    assert "run 'default'" in str(error)
    assert isinstance(error, ckptstore.InvalidArgumentError)
    assert "run='...'" in error.hint
    assert set(names(tmp_path)) == {"default", "inner"}
    assert fit_named(store_checkpoint(tmp_path)) == "default-2"


def test_a_fit_in_another_thread_needs_a_name(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def other() -> None:
        try:
            fit(model(), store_checkpoint(tmp_path, signals=[]))
        except ckptstore.InvalidArgumentError as error:
            refused.append(error)

    def start() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    fit(model(), store_checkpoint(tmp_path), AtBatch(3, start), epochs=1)
    assert len(refused) == 1
    assert names(tmp_path) == ("default",)


# --- resume= -----------------------------------------------------------------------------------


def test_the_first_fit_alone_must_resume(tmp_path: Path) -> None:
    with pytest.raises(ckptstore.NotFoundError):
        fit(model(), store_checkpoint(tmp_path, resume="must"))
    with pytest.raises(ValueError, match="as asked"):
        fit(model(), store_checkpoint(tmp_path), AtBatch(4, raises(ValueError("as asked"))))
    first, second = store_checkpoint(tmp_path, resume="must"), store_checkpoint(tmp_path, resume="must")
    assert [fit_named(first, epochs=2), fit_named(second)] == ["default", "default-2"]
    assert first.resumed_from is not None
    assert second.resumed_from is None


def test_fits_that_never_resume_have_names_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        callback = store_checkpoint(tmp_path, resume="never")
        assert fit_named(callback) == ["default", "default-2"][number]
    with pytest.raises(ValueError, match="as asked"):
        fit(model(), store_checkpoint(tmp_path, resume="never"), AtBatch(4, raises(ValueError("as asked"))))
    again = store_checkpoint(tmp_path, resume="never")
    assert fit_named(again) == "default-3"
    assert again.resumed_from is None


# --- scikit-learn ------------------------------------------------------------------------------


def test_scikit_learn_trains_each_fold(tmp_path: Path) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    if not hasattr(keras, "wrappers"):
        pytest.skip("this Keras has no wrappers")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(30, 3)).astype("float32")
    y = x[:, 0] + 0.1

    def scores(*callbacks: Any) -> Any:
        keras.utils.set_random_seed(1)
        # A clone of Keras' wrapper loses its `fit_kwargs`.
        options = {"epochs": 2, "verbose": 0, "batch_size": 5, "callbacks": list(callbacks)}
        wrapped = keras.wrappers.SKLearnRegressor(model())
        return selection.cross_val_score(wrapped, x, y, cv=3, error_score="raise", params=options)

    assert (scores() == scores(store_checkpoint(tmp_path))).all()
    assert names(tmp_path) == ("default", "default-2", "default-3")
