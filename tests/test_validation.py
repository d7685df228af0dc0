"""Valid and invalid names, metrics and positions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ckptstore import validation
from ckptstore.errors import InvalidArgumentError
from ckptstore.metrics import mode_of


@pytest.mark.parametrize("run", ["a", "digits", "lr=0.1", "2026-11-24_a+b@c", "_x", "x" * 100])
def test_valid_names_of_runs(run: str) -> None:
    assert validation.check_run(run) == run


@pytest.mark.parametrize(
    "run",
    [
        "",
        "a/b",
        "..",
        "../x",
        "a..b",
        ".hidden",
        "-x",
        "a\x00b",
        "a b",
        "a\n",
        "é",
        "x" * 300,
        "store",
        "Store",
        "a.weights",
        None,
        3,
        b"a",
    ],
)
def test_invalid_names_of_runs(run: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        validation.check_run(run)
    assert caught.value.argument == "run" and caught.value.value == run
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("run", "similar"),
    [
        ("lr=0.001/bs=32", "lr=0.001_bs=32"),
        ("größe, groß", "groe_gro"),
        ("../../x y", "x_y"),
        ("best.weights", "best"),
        ("学习率", ""),
        ("..", ""),
    ],
)
def test_a_name_made_of_parameters_is_answered_with_one_that_can_be_used(run: str, similar: str) -> None:
    with pytest.raises(InvalidArgumentError, match="ASCII letters") as caught:
        validation.check_run(run)
    assert caught.value.hint == (f"for example {similar!r}" if similar else "")
    assert not similar or validation.check_run(similar)


@pytest.mark.parametrize("tag", ["production", "v1.0", "best model", "über", "a/b"])
def test_tags(tag: str) -> None:
    assert validation.check_tag(tag) == tag


@pytest.mark.parametrize(
    "tag", ["", " a", "12", "٣", "latest", "resume-point", "best", "best:loss", "a\0", "x" * 201, 1]
)
def test_tags_that_look_like_another_ref(tag: object) -> None:
    with pytest.raises(InvalidArgumentError):
        validation.check_tag(tag)


def test_metrics_of_every_scalar_kind() -> None:
    given = {
        "int": 1,
        "bool": True,
        "numpy": np.float32(0.5),
        "0-d": np.array(2.5),
        "one": np.array([[3.0]]),
        "nan": math.nan,
        "inf": -math.inf,
        '"; DROP TABLE runs; --': 4,
        "🎯": 5,
    }
    checked = validation.check_metrics(given)
    assert all(type(value) is float for value in checked.values())
    assert list(checked.values())[:5] == [1.0, 1.0, 0.5, 2.5, 3.0]
    assert math.isnan(checked["nan"]) and checked["inf"] == -math.inf
    assert validation.check_metrics(None) == {}


@pytest.mark.parametrize(
    "metrics",
    [
        {"a": None},
        {"a": "1.0"},
        {"a": 1j},
        {"a": np.zeros(2)},
        {"a": np.zeros(0)},
        {"a": [1]},
        {"a": {}},
        {"": 1},
        {1: 1},
        {"a\n": 1},
        {"x" * 201: 1},
        [1],
        "loss",
        {"a": 10**400},
    ],
)
def test_metrics_that_are_not_numbers(metrics: object) -> None:
    with pytest.raises(InvalidArgumentError):
        validation.check_metrics(metrics)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [(0,), (np.int64(3), 4, 5), (0, None, 0), (2**63 - 1,)])
def test_positions(position: tuple[object, ...]) -> None:
    validation.check_position(*position)


@pytest.mark.parametrize(
    "position", [(-1,), (1.0,), ("1",), (None,), (True,), (0, -1), (0, 1.5), (0, 0, -2), (2**63,)]
)
def test_invalid_positions(position: tuple[object, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        validation.check_position(*position)


def test_extra_is_json() -> None:
    assert validation.check_extra({"a": [1, None, "x"]}) == {"a": [1, None, "x"]}
    for extra in ([1], {"a": object()}, {"a": math.nan}, "x"):
        with pytest.raises(InvalidArgumentError):
            validation.check_extra(extra)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("loss", "min"),
        ("head_loss", "min"),
        ("val_mean_absolute_error", "min"),
        ("val_accuracy", "max"),
        ("sparse_top_k_categorical_accuracy", "max"),
        ("auc_1", "max"),
        ("f1_score", "max"),
        ("binary_crossentropy", "min"),
        ("learning_rate", None),
        ("surface", None),
    ],
)
def test_direction_by_name(metric: str, mode: str | None) -> None:
    assert mode_of(metric) == mode
