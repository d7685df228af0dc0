"""A training that is killed and started again ends as one that was never interrupted: the same bits everywhere."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptstore
from resume_cases import BACKENDS, CASES, INEXACT, NEEDS, RARE, is_installed
from resume_runs import Runs, found

# Its children import Keras.
pytestmark = pytest.mark.backend
BACKEND = os.environ["KERAS_BACKEND"]
# Also what is very like another case, in minutes more.
ALL = os.environ.get("CKPTSTORE_ALL_CASES", "") not in ("", "0")
HERE = [
    pytest.param(name, marks=pytest.mark.skipif(not is_installed(NEEDS[name]), reason=f"needs {NEEDS[name]}"))
    for name in sorted(CASES)
    if BACKEND in BACKENDS[name] and (ALL or BACKEND not in RARE[name].split())
]
# The others share what JAX compiles, and it optimizes little of that: most of their time would be JAX's compiler's.
AS_USERS_DO = {"cache": False, "optimized": True}
COMPILED_AS_USERS_DO = ("mixed_precision", "model_parallel_along_one_axis") if BACKEND == "jax" else ()
SAME = ("weights", "optimizer", "metrics", "steps", "history", "epochs", "initial_epoch")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(BACKEND, tmp_path_factory.mktemp("runs"))
    yield started
    started.close()


def assert_same(first: dict[str, Any], other: dict[str, Any]) -> None:
    for name in SAME:
        assert first[name] == other[name], name


@pytest.mark.parametrize("name", HERE)
def test_a_run_that_is_killed_ends_as_one_that_was_not(runs: Runs, name: str, tmp_path: Path) -> None:
    compiling = {"compiling": AS_USERS_DO} if name in COMPILED_AS_USERS_DO else {}
    plain = found(runs.run(name, **compiling))
    saved = found(runs.run(name, store=str(tmp_path / "uninterrupted"), **compiling))
    assert_same(saved, plain)
    assert saved["seen"] == plain["seen"]
    draw = random.Random(f"{name} {BACKEND}")
    store = str(tmp_path / "killed")
    third = plain["batches"] // 3
    deaths: list[dict[str, Any]] = [
        {"die_after": draw.randrange(third, 2 * third)},
        # In one of the first saves of the process that resumed.
        {"die_in_step": draw.randrange(17, 60), "saving": {"background": False}},
    ]
    if BACKEND == "tensorflow":
        # Each process traces its steps again, for seconds: one death, in one of the saves after the first.
        in_a_save = {"die_in_step": draw.randrange(70, 110), "saving": {"background": False}}
        # This case has another callback that changes files, before the first save.
        deaths = deaths[:1] if name == "mirrored_over_two_devices" else [in_a_save]
    for death in deaths:
        outcome = runs.run(name, store=store, **death, **compiling)
        assert outcome.status == -signal.SIGKILL, outcome.output
    resumed = found(runs.run(name, store=store, **compiling))
    assert_same(resumed, plain)
    assert resumed["batches"] < plain["batches"]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX has a cache of compiled programs")
def test_programs_of_the_cache_that_the_tests_share_compute_the_same_bits(runs: Runs) -> None:
    plain = found(runs.run("arrays"))
    assert_same(found(runs.run("arrays", compiling={"cache": True})), plain)
    assert_same(found(runs.run("arrays", compiling={"cache": False})), plain)


STEPLESS = ["optimizer_that_nobody_steps"] if BACKEND == "tensorflow" else []


@pytest.mark.parametrize("name", ["mixed_precision", *STEPLESS])
def test_an_optimizer_has_the_slots_of_an_uninterrupted_run(runs: Runs, name: str, tmp_path: Path) -> None:
    plain = found(runs.run(name))["built"]
    assert found(runs.run(name, store=str(tmp_path / "uninterrupted")))["built"] == plain
    store = str(tmp_path / "killed")
    assert runs.run(name, store=store, die_after=17).status == -signal.SIGKILL
    assert found(runs.run(name, store=store))["built"] == plain


@pytest.mark.parametrize("name", sorted(name for name in INEXACT if BACKEND in BACKENDS[name]))
def test_inexactness_is_a_warning(runs: Runs, name: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert runs.run(name, store=store, die_after=17).status == -signal.SIGKILL
    resumed = runs.run(name, store=store)
    assert resumed.status == 0, resumed.output
    assert "not be exact" in resumed.output


# Others take the order of arrays from generators that are set back.
UNSEEDED = "arrays" if BACKEND == "tensorflow" else "pipeline_shuffled_by_the_global_seed"


@pytest.mark.skipif(not is_installed("tensorflow"), reason="needs tensorflow")
def test_an_unseeded_shuffle_is_a_warning(runs: Runs, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert runs.run(UNSEEDED, store=store, die_after=17, seed=None).status == -signal.SIGKILL
    assert "no seed" in runs.run(UNSEEDED, store=store, seed=None).output


WITHOUT_WARNING: list[tuple[str, int, dict[str, Any]]] = [
    ("arrays", 17, {}),
    *(
        [
            ("validation_that_draws", 17, {}),
            ("validation_that_reshuffles", 17, {}),
            # To shuffle it would be a warning of Keras.
            ("generator_without_end", 11, {"shuffle": False}),
        ]
        if BACKEND == "tensorflow"
        else [("dataset_over_epochs", 11, {})]
    ),
]


@pytest.mark.parametrize(
    ("name", "after", "fit"), [pytest.param(*values, id=values[0]) for values in WITHOUT_WARNING]
)
def test_an_exact_resume_warns_of_nothing(
    runs: Runs, name: str, after: int, fit: dict[str, Any], tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    assert runs.run(name, store=store, die_after=after, **fit).status == -signal.SIGKILL
    resumed = runs.run(name, store=store, **fit)
    assert "Warning" not in resumed.output
    assert "resumed version" in resumed.output


# --- other devices ---------------------------------------------------------------------------------


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
@pytest.mark.parametrize(
    ("name", "now"), [("model_parallel_over_four_devices", "4 (batch 2, model 2)"), ("arrays", "1")]
)
def test_other_devices_begin_with_the_same_values_and_a_line_says_what_follows(
    runs: Runs, name: str, now: str, tmp_path: Path
) -> None:
    eight, store = "model_parallel_over_eight_devices", str(tmp_path / "store")
    ended = str(tmp_path / "ended")
    whole = found(runs.run(eight, store=ended))
    # Of a run that has ended nothing is left to train: what it holds is what was loaded.
    assert_same(found(runs.run(name, store=ended)), whole)
    assert runs.run(eight, store=store, die_after=17).status == -signal.SIGKILL
    resumed = runs.run(name, store=store)
    line = f"devices 8 (batch 2, model 4) -> {now} (sums are added in another order there"
    assert line in resumed.output
    assert resumed.output.count("Warning") == 1
    for metric, values in found(resumed)["history"].items():
        expected = list(map(float.fromhex, whole["history"][metric]))
        assert list(map(float.fromhex, values)) == pytest.approx(expected, rel=1e-3), metric


# --- ends that are asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "at"),
    [("on_train_batch_end", 14), ("on_test_batch_end", 4), ("on_epoch_end", 2), ("on_epoch_begin", 2)],
)
def test_a_signal_saves_stops_and_is_resumed_from_to_the_bit(
    runs: Runs, hook: str, at: int, tmp_path: Path
) -> None:
    plain = found(runs.run("arrays"))
    store = str(tmp_path / "store")
    stopped = runs.run("arrays", store=store, act=[hook, at, "SIGTERM"], saving={"save_freq": 1000})
    assert stopped.status == 75, stopped.output
    assert "SIGTERM received" in stopped.output
    resumed = found(runs.run("arrays", store=store, saving={"save_freq": 1000}))
    assert_same(resumed, plain)
    # Not one batch was lost, and none trained twice.
    assert resumed["batches"] < plain["batches"]
    if hook == "on_train_batch_end":
        assert resumed["batches"] == plain["batches"] - at


def test_an_interrupt_from_the_keyboard_saves_too(runs: Runs, tmp_path: Path) -> None:
    plain = found(runs.run("arrays"))
    store = str(tmp_path / "store")
    stopped = runs.run(
        "arrays", store=store, act=["on_train_batch_end", 5, "SIGINT"], saving={"save_freq": 1000}
    )
    assert stopped.status == 1
    assert "KeyboardInterrupt" in stopped.output
    resumed = found(runs.run("arrays", store=store))
    assert_same(resumed, plain)
    assert resumed["batches"] == plain["batches"] - 5


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_epoch_end"])
def test_an_exception_of_a_callback_saves_too(runs: Runs, hook: str, tmp_path: Path) -> None:
    plain = found(runs.run("arrays"))
    store = str(tmp_path / "store")
    stopped = runs.run("arrays", store=store, act=[hook, 2, "raise"], saving={"save_freq": 1000})
    assert stopped.status == 1
    assert "as the test asked" in stopped.output
    resumed = found(runs.run("arrays", store=store, saving={"save_freq": 1000}))
    assert_same(resumed, plain)
    assert resumed["batches"] < plain["batches"]


# --- runs ------------------------------------------------------------------------------------------


def test_a_finished_run_trains_nothing_and_ends_the_same(runs: Runs, tmp_path: Path) -> None:
    for name in ("averaged_weights", "stopping_early"):
        store = str(tmp_path / name)
        first = found(runs.run(name, store=store))
        again = runs.run(name, store=store)
        assert found(again)["batches"] == 0
        assert "nothing is left to train" in again.output
        assert_same(found(again), first)


def test_more_epochs_continue_a_finished_run(runs: Runs, tmp_path: Path) -> None:
    whole = found(runs.run("arrays", epochs=6))
    store = str(tmp_path / "store")
    found(runs.run("arrays", store=store))
    longer = found(runs.run("arrays", store=store, epochs=6))
    assert_same(longer, whole)
    assert longer["seen"][0] == [4, 0]


def test_a_run_that_never_resumes_starts_again_beside_the_old(runs: Runs, tmp_path: Path) -> None:
    plain = found(runs.run("arrays"))
    store = str(tmp_path / "store")
    assert runs.run("arrays", store=store, die_after=20).status == -signal.SIGKILL
    again = found(runs.run("arrays", store=store, saving={"resume": "never"}))
    assert_same(again, plain)
    assert again["batches"] == plain["batches"]


def test_a_run_that_must_resume_refuses_to_begin(runs: Runs, tmp_path: Path) -> None:
    refused = runs.run("arrays", store=str(tmp_path / "store"), saving={"resume": "must"})
    assert refused.status == 1
    assert "StoreNotFoundError" in refused.output


def test_a_run_that_is_killed_has_the_metrics_of_all_epochs(runs: Runs, tmp_path: Path) -> None:
    """Killed before, between and after saves; neither number nor time of the saves falls on the ends of epochs."""
    store = str(tmp_path / "store")
    options: dict[str, Any] = {"epochs": 6, "saving": {"save_freq": 11, "monitor": "val_loss"}}
    plain = found(runs.run("arrays", epochs=6))
    for after in (17, 6, 9):
        assert runs.run("arrays", store=store, die_after=after, **options).status == -signal.SIGKILL
    resumed = found(runs.run("arrays", store=store, **options))
    assert resumed["history"] == plain["history"]
    with ckptstore.CheckpointStore(store, read_only=True) as opened:
        history = opened.history()
        best = opened.best("val_loss")
    assert [(epoch.epoch, epoch.batch) for epoch in history.epochs] == [(epoch, None) for epoch in range(6)]
    for metric, values in plain["history"].items():
        assert [value.hex() for value in history.of(metric)[1]] == values, metric
    assert best is not None
    assert best.metrics["val_loss"] == min(map(float.fromhex, plain["history"]["val_loss"]))
