"""Queries of a store: conditions, orders, the best few, histories across restarts, and runs compared."""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.errors import (
    CheckpointNotFoundError,
    InvalidArgumentError,
    MetricNotFoundError,
    MissingPackageError,
    RunNotFoundError,
)
from ckptstore.manifest.conditions import parse, parse_order
from ckptstore.store.store import CheckpointStore
from manifests import add

ODD = '"; DROP TABLE metrics; --'
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    """Ten checkpoints of two runs, without payloads: nothing here opens one."""
    with CheckpointStore(tmp_path_factory.mktemp("queries") / "store") as store:
        for number in range(1, 11):
            metrics = {"loss": [3.0, 1.0, 2.0, 1.0, math.nan][number % 5], ODD: float(number)}
            if number % 2:
                metrics["损失"] = -math.inf if number == 3 else number / 10
            add(
                store._manifest, "a" if number % 3 else "b", metrics=metrics, epoch=number // 2,
                batch=None if number % 2 else number, created_at=START + timedelta(hours=number),
                tags=("paper",) if number == 4 else (), resumable=number != 5,
            )  # fmt: skip
        store.pin(7)
        yield store


def versions(checkpoints: Any) -> list[int]:
    return [checkpoint.version for checkpoint in checkpoints]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("loss < 2", [1, 3, 6, 8]),
        ("not loss < 2", [2, 5, 7, 10]),
        ("loss == 1.0 and epoch >= 3", [6, 8]),
        ("2 <= loss <= 3", [2, 5, 7, 10]),
        ("loss is None", [4, 9]),
        ("loss is not None and version > 8", [10]),
        ("损失 >= 0.5", [5, 7, 9]),
        ("损失 < -1e300", [3]),
        ("损失 < loss", [1, 3, 5, 7]),
        (f"metric[{ODD!r}] > 8", [9, 10]),
        ('"paper" in tags', [4]),
        ('"paper" not in tags and run == "a" and version < 6', [1, 2, 5]),
        ("pinned or not resumable", [5, 7]),
        ("pinned == True", [7]),
        ('run in ("b", "c")', [3, 6, 9]),
        ("epoch in (0, -1, 5)", [1, 10]),
        ("epoch in ()", []),
        ("batch is None and version <= 3", [1, 3]),
        ("batch > 7", [8, 10]),
        ('created_at >= "2026-01-01T09:00:00+01:00"', [8, 9, 10]),
        ('created_at < "2026-01-01 02:00"', [1]),
        ("step == 99999999999999999999999", []),
        ("step < 99999999999999999999999 and version == 1", [1]),
        ('run == "a\' OR 1=1 --"', []),
    ],
)
def test_conditions(store: CheckpointStore, where: str, expected: list[int]) -> None:
    assert versions(store.checkpoints(where=where)) == expected
    assert versions(store.iterate(where=where)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "must be a condition"),
        ("loss <", "is no condition"),
        ("loss", "is no comparison"),
        ("loss < 'a'", "which is no number"),
        ("loss = 1", "is no condition"),
        ("run < 3", "which is no text"),
        ("run == loss", "of different kinds"),
        ("loss < loss + 1", "which is no number"),
        ("__import__('os').system('true') == 1", "neither a field nor a metric"),
        ("loss.real < 1", "neither a field nor a metric"),
        ("[x for x in (1,)] == 1", "neither a field nor a metric"),
        ("1 < 2", "neither a field nor a metric"),
        ("tags == 'x'", "in tags"),
        ("created_at > 'yesterday'", "is no time"),
        ("version == 1; DROP TABLE runs", "is no condition"),
        ("loss < True", "which is no number"),
        ("(" * 300 + "loss < 1" + ")" * 300, "is no condition"),
        ("loss < 1 and " * 200 + "loss < 1", "longer than 2000"),
        ("lo\0ss < 1", "is no condition"),
    ],
)
def test_an_invalid_condition_is_one_clear_line(store: CheckpointStore, where: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match="where=") as caught:
        store.checkpoints(where=where)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_condition_on_an_unknown_metric(store: CheckpointStore) -> None:
    for ask in (
        lambda: store.checkpoints(where="los < 1"),
        lambda: store.iterate(order_by="-los"),
        lambda: store.best("los", mode="min", k=3),
        lambda: store.compare(metrics=["los"]),
    ):
        with pytest.raises(MetricNotFoundError, match=r"metrics here: .*loss"):
            ask()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("loss", [1, 3, 6, 8, 2, 7, 5, 10, 4, 9]),
        ("-loss", [5, 10, 2, 7, 1, 3, 6, 8, 4, 9]),
        ("-version", list(range(10, 0, -1))),
        ("epoch", list(range(1, 11))),
        ("-batch", [10, 8, 6, 4, 2, 1, 3, 5, 7, 9]),
        (f"-metric[{ODD!r}]", list(range(10, 0, -1))),
        ("run", [1, 2, 4, 5, 7, 8, 10, 3, 6, 9]),
    ],
)
def test_orders_put_missing_values_last_and_earlier_versions_first(
    store: CheckpointStore, order: str, expected: list[int]
) -> None:
    assert versions(store.checkpoints(order_by=order)) == expected
    assert versions(store.checkpoints(order_by=order, limit=4)) == expected[:4]
    assert versions(store.checkpoints("b", order_by=order)) == [
        version for version in expected if version % 3 == 0
    ]


@pytest.mark.parametrize(
    "order", ["", "loss,", "loss desc", "1", "tags", "--loss", "loss; DROP TABLE runs", None]
)
def test_an_invalid_order(order: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="order_by="):
        parse_order(order)


OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
TESTS = st.tuples(
    st.sampled_from(["loss", f"metric[{ODD!r}]", "epoch", "version"]),
    st.sampled_from(list(OPERATORS)),
    st.sampled_from([0, 1, 2.0, 2.5, 3, 7]),
)


@settings(max_examples=40)
@given(tests=st.lists(TESTS, min_size=1, max_size=3), joint=st.sampled_from([" and ", " or "]))
def test_conditions_equal_those_of_python(store: CheckpointStore, tests: Any, joint: str) -> None:
    def value(checkpoint: ckptstore.Checkpoint, name: str) -> float:
        if name.startswith("metric"):
            return checkpoint.metrics[ODD]
        return checkpoint.metrics["loss"] if name == "loss" else getattr(checkpoint, name)

    def meets(checkpoint: ckptstore.Checkpoint) -> bool:
        met = []
        for name, sign, number in tests:
            left = value(checkpoint, name)
            met.append(not math.isnan(left) and OPERATORS[sign](left, number))
        return all(met) if joint == " and " else any(met)

    where = joint.join(f"{name} {sign} {number}" for name, sign, number in tests)
    assert versions(store.checkpoints(where=where)) == versions(filter(meets, store.checkpoints()))


def test_the_best_few(store: CheckpointStore) -> None:
    assert versions(store.best("loss", k=3)) == [1, 3, 6]
    assert versions(store.best("loss", mode="max", k=3)) == [5, 10, 2]
    assert versions(store.best("loss", k=99)) == [1, 3, 6, 8, 2, 7, 5, 10]
    assert versions(store.best("loss", mode="max", k=99, run="b")) == [3, 6]
    assert versions(store.best("loss", k=1)) == [store.best("loss").version]
    assert versions(store.best("损失", mode="min", k=2)) == [3, 1]
    for k in (0, -1, True, "2", 1.5):
        with pytest.raises(InvalidArgumentError, match="k="):
            store.best("loss", k=k)


def test_iterating_reads_pages_and_leaves_out_removed_checkpoints(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for _ in range(1203):
            add(store._manifest, metrics={"loss": 1.0})
        assert versions(store.iterate()) == list(range(1, 1204))
        assert versions(store.iterate(order_by="-version")) == list(range(1203, 0, -1))
        for walk in (store.iterate(), store.iterate(order_by="loss")):
            assert next(walk).version == 1
            gone = 1200 if store._manifest.checkpoints.get(1200) else 1201
            store._manifest.checkpoints.remove([gone])
            assert gone not in versions(walk)
        assert len(list(itertools.islice(store.iterate(limit=7), 99))) == 7
        for limit in (-1, True, "3"):
            with pytest.raises(InvalidArgumentError):
                store.checkpoints(limit=limit)


# --- histories ------------------------------------------------------------------------------------


def test_a_history_spans_restarts_and_outlives_checkpoints(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        manifest = store._manifest
        saves = [
            (0, 3, 9.0), (0, None, 1.0), (1, 3, 9.0), (1, None, 2.0),
            (1, 5, 8.0),  # trained again from the middle: the end that was known stays known
            (1, None, 2.5), (2, 3, 7.0), (2, 5, math.nan),
        ]  # fmt: skip
        for epoch, batch, loss in saves:
            add(manifest, epoch=epoch, batch=batch, metrics={"loss": loss})
            if (epoch, batch) == (1, None) and loss == 2.0:
                manifest.events.add("resumed", run="a", version=3, detail={"epoch": 1, "batch": 3})
        manifest.checkpoints.remove([1, 2, 3, 4])
        history = store.history("a")
        assert [(epoch.epoch, epoch.batch, epoch.version) for epoch in history.epochs] == [
            (0, None, 2),
            (1, None, 6),
            (2, 5, 8),
        ]
        assert history.of("loss")[0] == [0, 1, 2]
        assert history.of("loss")[1][:2] == [1.0, 2.5] and math.isnan(history.of("loss")[1][2])
        assert [(resume.epoch, resume.batch, resume.version) for resume in history.resumes] == [(1, 3, 3)]
        assert history.metrics == ("loss",)
        manifest.beginnings.begin("a")
        assert store.history("a").epochs == store.history("a").resumes == ()
        add(manifest, epoch=1, batch=2, metrics={"loss": 5.0, "new": 1.0})
        assert [(epoch.epoch, epoch.batch) for epoch in store.history("a").epochs] == [(1, 2)]
        assert store.history("a").of("new") == ([1], [1.0])
        with pytest.raises(RunNotFoundError, match="runs here: a"):
            store.history("default")


def test_a_history_is_read_in_pages(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for epoch in range(1001):
            add(store._manifest, epoch=epoch, metrics={"loss": float(epoch)})
        assert store.history("a").of("loss") == (list(range(1001)), [float(n) for n in range(1001)])


def test_runs_are_compared(store: CheckpointStore) -> None:
    first, second = store.compare()
    assert (first.run, first.checkpoints, second.run, second.checkpoints) == ("a", 7, "b", 3)
    assert (first.best["loss"].version, second.best["loss"].version) == (1, 3)
    assert first.modes == {"loss": "min"} and first.best_value("none") != first.best_value("none")
    assert first.latest is not None and first.latest.version == 10
    assert [summary.run for summary in store.compare("b", "a", "b", metrics=["loss"])] == ["b", "a"]
    assert second.to_json()["best"] == {"loss": {"mode": "min", "value": 1.0, "version": 3}}
    with pytest.raises(RunNotFoundError):
        store.compare("a", "c")


# --- names ----------------------------------------------------------------------------------------


def test_a_tag_moves_and_events_record_its_past(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for _ in range(3):
            add(store._manifest, "a")
        store.tag(1, "production")
        store.tag("latest", "production")
        store.tag("production", "production")
        assert store.get("production").version == 3 and store.tags() == {"production": 3}
        add(store._manifest, "a", tags=("production",))
        assert store.untag("production") == 4
        assert store.tags() == {}
        past = [
            (event.kind, event.version, event.run, event.detail)
            for event in store.events()
            if "tagged" in event.kind
        ]
        assert past == [
            ("untagged", 4, "a", {"tag": "production", "to": None}),
            ("tagged", 4, "a", {"tag": "production", "from": 3}),
            ("untagged", 3, "a", {"tag": "production", "to": 4}),
            ("tagged", 3, "a", {"tag": "production", "from": 1}),
            ("untagged", 1, "a", {"tag": "production", "to": 3}),
            ("tagged", 1, "a", {"tag": "production", "from": None}),
        ]
        with pytest.raises(CheckpointNotFoundError):
            store.untag("production")
        store.pin(2)
        store.pin(2)
        store.pin(2, False)
        assert [event.version for event in store.events(kind="pinned")] == [2]
        assert [event.version for event in store.events(kind="unpinned")] == [2]


# --- tables ---------------------------------------------------------------------------------------


def test_a_dataframe_without_pandas_names_what_to_install(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'ckptstore\[pandas\]'") as caught:
        store.to_dataframe()
    assert isinstance(caught.value, ImportError)


def test_a_dataframe(store: CheckpointStore, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    table = store.to_dataframe(where="version < 4", order_by="-version")
    assert list(table["version"]) == [3, 2, 1]
    assert table["batch"].isna().tolist() == [True, False, True] and str(table["batch"].dtype) == "Int64"
    assert table["损失"].isna().tolist() == [False, True, False]
    assert str(table["created_at"].dt.tz) == "UTC" and table["tags"][0] == ()
    with CheckpointStore(tmp_path / "store") as other:
        assert other.to_dataframe().empty
        add(other._manifest, metrics={"epoch": 2.5})
        assert other.to_dataframe()["metric.epoch"].tolist() == [2.5]
        epochs = other.history("a").to_dataframe()
        assert list(epochs.columns) == ["epoch", "batch", "step", "version", "created_at", "metric.epoch"]
        assert epochs["version"].tolist() == [1] and str(epochs["batch"].dtype) == "Int64"


def test_a_condition_is_parsed_into_records() -> None:
    assert parse("a < 1") == parse("1 > a")
