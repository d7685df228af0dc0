"""The direction of a metric and the best value, compared with Keras' own rules, and beyond them."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore.errors import InvalidArgumentError
from ckptstore.metrics import better_of, is_better, scalar, scalars
from ckptstore.training.saving.monitor import Verdict, judge, resolve_mode

NAN, INF = math.nan, math.inf


def compiled(metrics: Any = None, **kwargs: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=metrics, **kwargs)
    return model


def mode_for(monitor: str, model: Any, mode: str = "auto") -> str:
    return resolve_mode(monitor, mode, model, callback="ModelCheckpoint")


@pytest.mark.parametrize(
    ("monitor", "metrics", "expected"),
    [
        ("loss", None, "min"),
        ("val_loss", None, "min"),
        ("val_score", [keras.metrics.AUC(name="score")], "max"),
        ("val_gap", [keras.metrics.MeanSquaredError(name="gap")], "min"),
        ("gap", [[keras.metrics.MeanSquaredError(name="gap")]], "min"),
        ("accuracy", ["accuracy"], "max"),
        ("val_acc", ["acc"], "max"),
        ("mae", ["mae"], "min"),
        ("R2Score", ["R2Score"], "max"),
        # What only the name tells: of several outputs, or logged by another callback.
        ("val_left_accuracy", None, "max"),
        ("val_left_score", [keras.metrics.AUC(name="score")], "max"),
        ("val_wer", None, "min"),
    ],
)
def test_the_direction_is_known_before_the_first_batch(monitor: str, metrics: Any, expected: str) -> None:
    assert mode_for(monitor, compiled(metrics)) == expected


def test_the_metric_goes_before_its_name() -> None:
    model = compiled([keras.metrics.MeanSquaredError(name="accuracy")])
    assert mode_for("val_accuracy", model) == "min"
    assert mode_for("val_accuracy", model, mode="max") == "max"


def test_weighted_metrics_count() -> None:
    assert mode_for("val_x", compiled(weighted_metrics=[keras.metrics.AUC(name="x")])) == "max"


def test_the_direction_is_the_same_after_the_first_batch() -> None:
    model = compiled(["mae", keras.metrics.R2Score(name="fit")])
    x = np.ones((4, 2), "float32")
    model.fit(x, x[:, :1], verbose=0)
    assert (mode_for("mae", model), mode_for("val_fit", model)) == ("min", "max")


@pytest.mark.parametrize("monitor", ["temperature", "val_lr", "unknown"])
def test_an_unknown_direction_is_refused_in_keras_words(monitor: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Keras isn't able to automatically determine") as raised:
        mode_for(monitor, compiled([keras.metrics.Mean(name="temperature")]))
    assert f"ModelCheckpoint callback received monitor={monitor}" in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert mode_for(monitor, None, mode="min") == "min"


@pytest.mark.parametrize(
    ("value", "best", "mode", "verdict"),
    [
        (0.5, None, "min", Verdict.BETTER),
        (0.5, 0.6, "min", Verdict.BETTER),
        (0.6, 0.6, "min", Verdict.NOT_BETTER),
        (0.7, 0.6, "max", Verdict.BETTER),
        (0.5, NAN, "min", Verdict.BETTER),
        (INF, None, "min", Verdict.BETTER),
        (INF, 1.0, "min", Verdict.NOT_BETTER),
        (-INF, 1.0, "min", Verdict.BETTER),
        (NAN, None, "min", Verdict.NAN),
        (np.float32("nan"), 0.5, "max", Verdict.NAN),
        (None, 0.5, "min", Verdict.MISSING),
        (np.ones(1), 0.5, "min", Verdict.NOT_SCALAR),
        ([0.1], 0.5, "min", Verdict.NOT_SCALAR),
        ("0.1", 0.5, "min", Verdict.NOT_SCALAR),
        (np.float64(0.1), 0.5, "min", Verdict.BETTER),
        (np.array(0.1), 0.5, "min", Verdict.BETTER),
        (True, 0.5, "max", Verdict.BETTER),
    ],
)
def test_a_value_against_the_best(value: Any, best: float | None, mode: Any, verdict: Verdict) -> None:
    assert judge(value, best, mode) is verdict


def test_values_of_the_backend_are_numbers() -> None:
    assert judge(keras.ops.convert_to_tensor(0.25), 0.5, "min") is Verdict.BETTER
    assert judge(keras.ops.convert_to_tensor([0.25]), 0.5, "min") is Verdict.NOT_SCALAR
    assert scalar(keras.ops.convert_to_tensor(0.25)) == 0.25


def test_the_better_of_two_that_may_be_missing() -> None:
    assert better_of(None, None, "min") is None
    assert better_of(1.0, None, "min") == better_of(None, 1.0, "max") == 1.0
    assert (better_of(1.0, 2.0, "min"), better_of(1.0, 2.0, "max")) == (1.0, 2.0)
    assert not is_better(NAN, None, "max")


def test_logs_that_can_be_recorded() -> None:
    logs = {
        "loss": np.float32(0.5),
        "nan": NAN,
        "inf": INF,
        "flag": True,
        "": 1.0,
        "matrix": np.eye(2),
        "text": "x",
    }
    kept, dropped = scalars(logs)
    assert list(kept) == ["loss", "nan", "inf", "flag"]
    assert kept["loss"] == 0.5
    assert math.isnan(kept["nan"])
    assert dropped == ["", "matrix", "text"]
