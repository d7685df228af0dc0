"""The manifest's answers, compared with a reference model, from many threads, processes and forks."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import (
    CheckpointNotFoundError,
    InvalidArgumentError,
    RunTakenOverError,
    StoreRemovedError,
)
from ckptstore.manifest.checkpoints import latest_version, resume_version
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.metrics import best_version
from ckptstore.manifest.retention.checks import Decision, RetentionCheck
from ckptstore.records import Checkpoint, Holder, Mode, Published, State
from ckptstore.system import fork_safety
from manifests import add, files, fill, in_fork, new, steps_of

ODD_NAMES = [
    '"; DROP TABLE runs;--',
    "🎯",
    "a b",
    "%s",
    "' OR 1=1",
    "x" * 300,
    "val_loss:0",
    ":name",
    "?",
    "\0",
    "",
]


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    yield manifest
    assert manifest.integrity_problems() == []
    manifest.close()


def version_of(checkpoint: Checkpoint | None) -> int | None:
    return None if checkpoint is None else checkpoint.version


# --- records -----------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was_saved(manifest: Manifest) -> None:
    saved_at = datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    fields: dict[str, Any] = {
        "metrics": {
            "loss": 0.1,
            "count": 3.0,
            "high": math.inf,
            "low": -math.inf,
            "tiny": 5e-324,
        },
        "created_at": saved_at,
        "batch": 7,
        "step": 2**40,
        "nbytes": 2**41,
        "format": "weights",
        "resumable": False,
        "pinned": True,
        "tags": ("second", "first"),
        "extra": {"a": [1, None, "ü"], "b": {"c": 0.5}},
        "blocked_s": 0.25,
        "total_s": 1.5,
    }
    added = manifest.add_checkpoint(new(1, **fields))
    assert manifest.checkpoints.get(1) == added
    assert added.tags == ("first", "second")
    assert added.path == manifest.path.parent / "checkpoints" / "00000001-a.keras"
    assert added.created_at == saved_at
    assert added.created_at.tzinfo is UTC
    for name in fields.keys() - {"created_at", "tags"}:
        assert getattr(added, name) == fields[name]
    assert isinstance(added.metrics["count"], float)
    assert list(added.metrics) == list(fields["metrics"])


def test_nan_comes_back_as_nan(manifest: Manifest) -> None:
    add(manifest, metrics={"loss": math.nan, "accuracy": 0.5})
    for found in (manifest.checkpoints.get(1), *manifest.checkpoints.all()):
        assert found is not None
        assert math.isnan(found.metrics["loss"])
        assert found.metrics["accuracy"] == 0.5


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_names_are_stored_as_they_are(manifest: Manifest, name: str) -> None:
    add(manifest, name, metrics={name: 2.0}, tags=(name,), file="checkpoints/00000001-a.keras")
    found = manifest.checkpoints.best(name, "min", name)
    assert found is not None
    assert (found.run, found.metrics, found.tags) == (name, {name: 2.0}, (name,))
    assert manifest.tags.checkpoint(name) == found
    assert manifest.runs.names() == manifest.metrics.names() == manifest.metrics.names(name) == (name,)
    manifest.events.add(name, run=name, detail={name: name})
    assert manifest.events.find(kind=name)[0].detail == {name: name}


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": -1},
        {"batch": -1},
        {"step": -1},
        {"nbytes": -1},
        {"format": "zip"},
        {"epoch": 2**70},
        {"run": "\ud800"},
        {"extra": {"nan": math.nan}},
        {"extra": {"set": {1}}},
        {"created_at": datetime(2026, 1, 1)},
        {"version": 0},
        {"version": 1},
        {"file": "checkpoints/00000001-a.keras"},
        {"digest": None},
        {"file": object()},
    ],
)
def test_a_value_that_cannot_be_stored_changes_nothing(manifest: Manifest, fields: dict[str, Any]) -> None:
    add(manifest, metrics={"loss": 1.0}, tags=("tag",))
    before = (
        manifest.checkpoints.all(),
        manifest.runs.names(),
        manifest.metrics.names(),
        manifest.events.find(),
    )
    with pytest.raises(InvalidArgumentError) as caught:
        manifest.add_checkpoint(new(**({"version": 2, "tags": ("tag",), "metrics": {"new": 1.0}} | fields)))
    assert "\n" not in str(caught.value)
    assert (
        manifest.checkpoints.all(),
        manifest.runs.names(),
        manifest.metrics.names(),
        manifest.events.find(),
    ) == before
    assert add(manifest) == 2


# --- changes -----------------------------------------------------------------------------------------


def test_versions_are_never_reused(manifest: Manifest) -> None:
    assert [manifest.reserve_version() for _ in range(3)] == [1, 2, 3]
    manifest.add_checkpoint(new(7))  # an adopted orphan
    assert manifest.reserve_version() == 8
    manifest.add_checkpoint(new(5))
    manifest.checkpoints.remove([5, 7])
    assert manifest.reserve_version() == 9
    with closing(Manifest.open(manifest.path)) as again:
        assert again.reserve_version() == 10


def test_tags_move_and_are_removed_with_their_checkpoint(manifest: Manifest) -> None:
    for _ in range(3):
        add(manifest, tags=("newest",))
    assert version_of(manifest.tags.checkpoint("newest")) == 3
    manifest.tags.put(1, "newest")
    manifest.tags.put(1, "other")
    assert [point.tags for point in manifest.checkpoints.all()] == [("newest", "other"), (), ()]
    manifest.checkpoints.remove([1])
    assert manifest.tags.checkpoint("newest") is None
    for change in (lambda: manifest.tags.put(1, "x"), lambda: manifest.checkpoints.pin(99)):
        with pytest.raises(CheckpointNotFoundError):
            change()
    assert manifest.tags.checkpoint("x") is None


def test_pins(manifest: Manifest) -> None:
    add(manifest)
    manifest.checkpoints.pin(1)
    assert manifest.checkpoints.all()[0].pinned
    manifest.checkpoints.pin(1, False)
    assert not manifest.checkpoints.all()[0].pinned


def test_states(manifest: Manifest) -> None:
    for value in (3.0, 1.0, 2.0):
        add(manifest, metrics={"loss": value})
    manifest.checkpoints.set_state([2, 99], "damaged")
    manifest.checkpoints.set_state([3], "deleting")
    manifest.checkpoints.set_state([], "missing")
    assert [point.version for point in manifest.checkpoints.all()] == [1]
    assert [(point.version, point.state) for point in manifest.checkpoints.all(states=None)] == [
        (1, "complete"),
        (2, "damaged"),
        (3, "deleting"),
    ]
    assert [point.version for point in manifest.checkpoints.all("a", states=("damaged", "deleting"))] == [
        2,
        3,
    ]
    assert manifest.checkpoints.all(states=()) == []
    assert [point.version for point in manifest.checkpoints.in_state("damaged")] == [2]
    assert manifest.checkpoints.files_by_version().keys() == {1, 2, 3}
    assert (
        version_of(manifest.checkpoints.best("loss", "min")) == version_of(manifest.checkpoints.latest()) == 1
    )
    manifest.checkpoints.set_state([2], "complete")
    assert version_of(manifest.checkpoints.best("loss", "min")) == 2


def test_published_paths(manifest: Manifest) -> None:
    for _ in range(2):
        manifest.add_checkpoint(new(manifest.reserve_version()), published_path="../best.keras")
    assert manifest.published.all() == [Published(path="../best.keras", run="a", version=2, pending=True)]
    manifest.published.confirm("../best.keras")
    shown = manifest.published.at("../best.keras")
    assert shown is not None
    assert not shown.pending
    manifest.add_checkpoint(new(3), published_path="../other.keras")
    manifest.published.forget("../best.keras")
    assert manifest.published.at("../best.keras") is None
    manifest.checkpoints.remove([3])
    assert manifest.published.all() == []


def test_monitors(manifest: Manifest) -> None:
    manifest.add_checkpoint(new(1), monitor=("odd", "min"))
    manifest.add_checkpoint(new(2), monitor=("odd", "max"))
    manifest.add_checkpoint(new(3, "b", metrics={"odd": 1.0}), monitor=("odd", "max"))
    assert manifest.runs.monitors("a") == manifest.runs.monitors("b") == {"odd": "max"}
    assert manifest.runs.monitored_mode("odd") == manifest.runs.monitored_mode("odd", "b") == "max"
    manifest.add_checkpoint(new(4, "b"), monitor=("odd", "min"))
    assert manifest.runs.monitored_mode("odd") is None
    assert manifest.runs.monitored_mode("odd", "b") == "min"
    assert manifest.runs.monitored_mode("odd", "c") is manifest.runs.monitored_mode("loss") is None
    assert manifest.runs.monitors("c") == {}
    assert manifest.metrics.names("a") == ()


def test_holders(manifest: Manifest) -> None:
    assert manifest.runs.holder("a") is None
    holder = Holder(host="here", pid=2**22, started_at=datetime(2026, 1, 1, tzinfo=UTC))
    claim = manifest.runs.claim("a", holder)
    assert (claim.run, claim.store) == ("a", manifest.uuid)
    assert manifest.runs.holder("a") == holder
    assert manifest.runs.names() == ("a",)


def test_a_claim_ends_all_writing_under_the_one_before(tmp_path: Path) -> None:
    """Every method that changes rows of a run refuses, and changes nothing; other runs and unclaimed ones go on."""
    path = tmp_path / "manifest.sqlite"
    holder = Holder(host="here", pid=2**22, started_at=datetime(2026, 1, 1, tzinfo=UTC))
    with closing(Manifest.open(path)) as old, closing(Manifest.open(path)) as young:
        old.runs.claim("a", replace(holder, pid=7))
        old.runs.claim("b", holder)
        add(old, "a")
        young.runs.claim("a", holder)
        before = (young.events.last_id(), young.next_version)
        check = RetentionCheck(
            decide=lambda view: Decision(expired=[young.checkpoints.get(1)], progress=None),
            is_intact=lambda _: True,
            is_shown=lambda *_: False,
        )
        for change in (
            lambda: old.reserve_version(run="a"),
            lambda: old.add_checkpoint(new(2, "a")),
            lambda: old.retention.apply("a", check),
            lambda: old.retention.expire("a", [1]),
            lambda: old.beginnings.begin("a"),
            lambda: old.events.add("ended", run="a"),
            lambda: old.runs.set_monitors("a", {"loss": "min"}),
            lambda: old.published.confirm("best.keras", run="a"),
        ):
            with pytest.raises(
                RunTakenOverError, match=r"run 'a' was taken over by process 4194304 on here"
            ) as caught:
                change()
            assert (caught.value.run, caught.value.pid) == ("a", holder.pid)
        assert (young.events.last_id(), young.next_version) == before
        assert [checkpoint.version for checkpoint in young.checkpoints.all()] == [1]
        add(old, "b")
        add(old, "c")
        add(young, "a")


def test_another_manifest_in_its_place_is_not_written(tmp_path: Path) -> None:
    path, other = tmp_path / "manifest.sqlite", tmp_path / "other.sqlite"
    holder = Holder(host="here", pid=7, started_at=datetime(2026, 1, 1, tzinfo=UTC))
    with closing(Manifest.open(path)) as manifest:
        claim = manifest.runs.claim("a", holder)
    with closing(Manifest.open(other)) as manifest:
        manifest.runs.write_under(claim)
        with pytest.raises(StoreRemovedError, match="another manifest was put in its place"):
            manifest.reserve_version(run="a")
        manifest.runs.claim("a", holder)
        assert manifest.reserve_version(run="a") == 1


def test_events_outlive_checkpoints(manifest: Manifest) -> None:
    add(manifest)
    manifest.events.add("resumed", run="b", version=1, detail={"skipped": [2]})
    manifest.events.add("swept")
    manifest.checkpoints.remove([1])
    assert [(event.kind, event.run, event.version) for event in manifest.events.find()] == [
        ("swept", None, None),
        ("resumed", "b", 1),
        ("saved", "a", 1),
    ]
    assert [event.detail for event in manifest.events.find(kind="resumed")] == [{"skipped": [2]}]
    assert len(manifest.events.find(run="b")) == len(manifest.events.find(limit=1)) == 1
    assert len(manifest.events.find(version=1)) == 2
    assert abs(manifest.events.find()[0].at - datetime.now(UTC)) < timedelta(minutes=1)


def test_removing_is_repeatable(manifest: Manifest) -> None:
    for _ in range(3):
        add(manifest, metrics={"loss": 1.0}, tags=("t",))
    manifest.checkpoints.remove([1, 3])
    manifest.checkpoints.remove([1, 3])
    manifest.checkpoints.remove([])
    assert [point.version for point in manifest.checkpoints.all()] == [2]


def test_each_store_has_its_own_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for _ in range(2):
            with closing(Manifest.open(tmp_path / name / "manifest.sqlite")) as manifest:
                ids.add(manifest.uuid)
    assert len(ids) == 2


# --- best, latest, resume points ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equals_the_lower_version_is_best(manifest: Manifest, mode: Mode) -> None:
    for run, value in (("a", math.nan), ("b", 1.0), ("a", 1.0), ("b", 1.0), ("a", math.nan)):
        add(manifest, run, metrics={"loss": value})
    for run, best in ((None, 2), ("b", 2), ("a", 3)):
        assert version_of(manifest.checkpoints.best("loss", mode, run)) == best
    manifest.checkpoints.set_state([2], "missing")
    assert version_of(manifest.checkpoints.best("loss", mode)) == 3


def test_a_metric_run_or_tag_that_does_not_exist(manifest: Manifest) -> None:
    add(manifest, metrics={"nan": math.nan, "inf": math.inf})
    assert (
        manifest.checkpoints.best("nan", "min")
        is manifest.checkpoints.best("nothing", "max")
        is manifest.checkpoints.best("inf", "min", "b")
        is None
    )
    assert (
        version_of(manifest.checkpoints.best("inf", "min"))
        == version_of(manifest.checkpoints.best("inf", "max"))
        == 1
    )
    assert (
        manifest.checkpoints.latest("b")
        is manifest.checkpoints.get(2)
        is manifest.tags.checkpoint("x")
        is None
    )
    assert manifest.metrics.names() == ("inf", "nan")
    assert manifest.metrics.names("b") == ()
    assert manifest.checkpoints.all("b") == []


VALUES = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1.0, 2.0])
STATES = st.sampled_from(["complete", "complete", "missing", "damaged", "deleting"])
HISTORY = st.lists(
    st.tuples(st.sampled_from("ab"), st.dictionaries(st.sampled_from("xy"), VALUES), STATES, st.booleans()),
    max_size=8,
)


def model_best(points: list[Checkpoint], metric: str, mode: Mode) -> int | None:
    ranked = [
        (p.metrics[metric], p.version) for p in points if not math.isnan(p.metrics.get(metric, math.nan))
    ]
    sign = 1 if mode == "min" else -1
    return min(ranked, key=lambda pair: (sign * pair[0], pair[1]))[1] if ranked else None


@settings(max_examples=40)
@given(history=HISTORY)
def test_answers_equal_those_of_a_reference_model(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, dict[str, float], State, bool]]
) -> None:
    with closing(Manifest.open(tmp_path_factory.mktemp("store") / "manifest.sqlite")) as manifest:
        for run, metrics, state, resumable in history:
            version = add(manifest, run, metrics=metrics, resumable=resumable)
            manifest.checkpoints.set_state([version], state)
        for run in (None, "a", "b"):
            every = [p for p in manifest.checkpoints.all(states=None) if run in (None, p.run)]
            assert manifest.checkpoints.all(run) == (points := [p for p in every if p.state == "complete"])
            assert version_of(manifest.checkpoints.latest(run)) == max(
                (p.version for p in points), default=None
            )
            assert [p.version for p in manifest.checkpoints.resume_points(run)] == sorted(
                (p.version for p in points if p.resumable), reverse=True
            )
            assert manifest.metrics.names(run) == tuple(sorted({name for p in points for name in p.metrics}))
            for metric in "xy":
                for mode in ("min", "max"):
                    assert version_of(manifest.checkpoints.best(metric, mode, run)) == model_best(
                        points, metric, mode
                    )
        assert manifest.integrity_problems() == []


def test_resume_points_keep_no_transaction_open(manifest: Manifest) -> None:
    for _ in range(3):
        add(manifest)
    walk = manifest.checkpoints.resume_points()
    assert next(walk).version == 3
    manifest.checkpoints.set_state([2], "damaged")
    assert next(walk).version == 1
    assert list(walk) == []


# --- cost --------------------------------------------------------------------------------------------

LOOK_UPS = {
    f"{name}{' of a run' if run else ''}": statement
    for run in (None, "a")
    for name, statement in {
        "latest": latest_version(run),
        "resume point": resume_version(run, None),
        "next resume point": resume_version(run, 5),
        "least": best_version("x", "min", run),
        "greatest": best_version("x", "max", run),
    }.items()
}


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("name", LOOK_UPS)
def test_look_ups_read_only_the_end_of_an_index(manifest: Manifest, name: str, analyzed: bool) -> None:
    """Whatever ANALYZE has recorded for the planner, no table is scanned and nothing is sorted."""
    for number in range(30):
        add(manifest, "a" if number % 3 else "b", metrics={"x": float(number % 7), "y": 1.0})
    with manifest._transactions.writing("test") as connection:
        if analyzed:
            connection.exec_driver_sql("ANALYZE")
        text = str(LOOK_UPS[name].compile(connection, compile_kwargs={"literal_binds": True}))
    with manifest._transactions.reading() as connection:
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    steps = [step for step in plan if "SCALAR SUBQUERY" not in step and step != "SCAN CONSTANT ROW"]
    assert steps
    rows = [step for step in steps if "USING INTEGER PRIMARY KEY (rowid=?)" in step]
    assert len(rows) <= 3 * ("resume" in name)  # of a point, and of the beginning of its attempt
    for step in (step for step in steps if step not in rows):
        assert step.startswith("SEARCH ")
        assert "INDEX" in step
    ends = [step for step in steps if step.startswith(("SEARCH metrics", "SEARCH checkpoints"))]
    assert all("USING COVERING INDEX" in step for step in ends)
    # Every condition is met by the index itself, so that no row is passed over.
    conditions = ["metric_id=?"] if "metrics." in text else ["state=?"]
    conditions += ["run_id=?"] * ("of a run" in name) + ["resumable=?"] * ("resume" in name)
    for step in ends:
        assert all(condition in step for condition in conditions), step


def test_the_cost_of_a_look_up_does_not_grow(tmp_path: Path) -> None:
    """Also where the newest and best are NaN, missing, being deleted, or without training state."""
    work: dict[int, list[int]] = {}
    for size in (100, 4000):
        (tmp_path / str(size)).mkdir()
        manifest = Manifest.open(tmp_path / str(size) / "manifest.sqlite")
        fill(manifest, size)
        calls = [
            lambda run=run, manifest=manifest, ask=ask: ask(manifest, run)
            for run in (None, "a")
            for ask in (
                lambda manifest, run: manifest.checkpoints.latest(run),
                lambda manifest, run: next(manifest.checkpoints.resume_points(run)),
                lambda manifest, run: manifest.checkpoints.best("x", "min", run),
                lambda manifest, run: manifest.checkpoints.best("x", "max", run),
                lambda manifest, run: manifest.checkpoints.best("y", "max", run),
                lambda manifest, run: manifest.metrics.names(run),
            )
        ]
        assert all(call() is not None for call in calls)
        work[size] = [steps_of(manifest, call) for call in calls]
        manifest.close()
    assert max(work[4000]) < 100  # under a thousand instructions
    for small, large in zip(*work.values(), strict=True):
        assert large <= 1.2 * small + 2


def test_the_cost_of_the_best_few_grows_only_with_their_number(tmp_path: Path) -> None:
    work: dict[int, list[int]] = {}
    for size in (400, 4000):
        (tmp_path / str(size)).mkdir()
        manifest = Manifest.open(tmp_path / str(size) / "manifest.sqlite")
        fill(manifest, size)
        work[size] = [
            steps_of(manifest, partial(manifest.checkpoints.ranked, "x", mode, run, limit=10))
            for mode in ("min", "max")
            for run in (None, "a")
        ]
        assert len(manifest.checkpoints.ranked("x", "max", limit=10)) == 10
        manifest.close()
    for small, large in zip(*work.values(), strict=True):
        assert large <= 1.2 * small + 2


def test_listing_takes_a_constant_number_of_queries(manifest: Manifest) -> None:
    counts = []
    for _ in range(2):
        for _ in range(5):
            add(manifest, metrics={"loss": 1.0}, tags=("t",))
        statements: list[str] = []
        with manifest._transactions.reading() as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_trace_callback(statements.append)
        manifest.checkpoints.all("a")
        driver.set_trace_callback(None)
        counts.append(len([text for text in statements if text.startswith("SELECT")]))
    assert counts[0] == counts[1] <= 5


# --- people with a SQL shell -------------------------------------------------------------------------


def test_views_for_a_sql_shell(manifest: Manifest) -> None:
    for run, metrics in (
        ("a", {"loss": 0.5, "nan": math.nan}),
        ("b", {"loss": 0.25}),
        ("a", {"loss": 0.125}),
    ):
        add(manifest, run, metrics=metrics)
    manifest.tags.put(2, "prod")
    manifest.tags.put(2, "best")
    manifest.checkpoints.set_state([3], "missing")
    code = (
        "import sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "for query in sys.argv[2:]: print(database.execute(query).fetchall())"
    )
    asked = {
        "SELECT version, run, epoch, metric, value, state FROM checkpoint_metrics ORDER BY 1, 4": [
            (1, "a", 1, "loss", 0.5, "complete"),
            (1, "a", 1, "nan", None, "complete"),
            (2, "b", 2, "loss", 0.25, "complete"),
            (3, "a", 3, "loss", 0.125, "missing"),
        ],
        "SELECT version, run, tags, file FROM checkpoint_list ORDER BY version DESC LIMIT 2": [
            (3, "a", None, "checkpoints/00000003-a.keras"),
            (2, "b", "best, prod", "checkpoints/00000002-b.keras"),
        ],
        "SELECT run, metric, min_value, min_version, max_value, max_version FROM metric_ranges ORDER BY 1": [
            ("a", "loss", 0.5, 1, 0.5, 1),
            ("b", "loss", 0.25, 2, 0.25, 2),
        ],
        "SELECT datetime(created_at) FROM checkpoint_list WHERE version = 1": [("2026-01-02 03:04:05",)],
    }
    done = subprocess.run(
        [sys.executable, "-c", code, manifest.path, *asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(answer) for answer in asked.values()]


# --- damage ------------------------------------------------------------------------------------------


def test_integrity_problems_are_found(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    for _ in range(3):
        add(manifest, metrics={"loss": 1.0})
    with closing(sqlite3.connect(manifest.path)) as database, database:
        database.execute("UPDATE store SET next_version = 2")
        database.execute("DELETE FROM runs")
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute("UPDATE checkpoints SET epoch = -1 WHERE version = 2")
    problems = manifest.integrity_problems()
    assert any("CHECK constraint failed" in problem for problem in problems)
    assert any("of checkpoints refers to a row of runs" in problem for problem in problems)
    assert "the next version is 2, though there is a checkpoint 3" in problems
    manifest.close()
    page = 3 * 4096
    content = manifest.path.read_bytes()
    manifest.path.write_bytes(content[:page] + os.urandom(12 * 4096) + content[page + 12 * 4096 :])
    with closing(Manifest.open(manifest.path)) as damaged:
        assert damaged.integrity_problems()


# --- threads, processes, forks -----------------------------------------------------------------------


def work_hard(path: str, count: int, run: str) -> None:
    with closing(Manifest.open(Path(path))) as manifest:
        for _ in range(count):
            add(manifest, run, metrics={"loss": 1.0})
            assert manifest.checkpoints.latest() is not None


def test_processes_share_a_manifest(manifest: Manifest) -> None:
    """Even without the store's lock no process is locked out, and no version is reserved twice."""
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=work_hard, args=(str(manifest.path), 25, f"run{n}")) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert [point.version for point in manifest.checkpoints.all()] == list(range(1, 101))
    assert all(len(manifest.checkpoints.all(f"run{n}")) == 25 for n in range(4))


def test_threads_share_a_manifest(manifest: Manifest) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                add(manifest, f"run{number % 3}", metrics={"loss": float(number)}, tags=("tag",))
                assert manifest.checkpoints.best("loss", "min") is not None
                assert len(manifest.checkpoints.all()) > 0
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [point.version for point in manifest.checkpoints.all()] == list(range(1, 201))


def test_a_forked_child_has_its_own_connections(manifest: Manifest) -> None:
    add(manifest)
    with manifest._transactions.reading() as connection:
        inherited = connection.connection.driver_connection

    def child() -> None:
        with manifest._transactions.reading() as connection:
            assert connection.connection.driver_connection is not inherited
        assert add(manifest) == 2
        gc.collect()
        manifest.close()

    assert in_fork(child) == 0
    with manifest._transactions.reading() as connection:
        assert connection.connection.driver_connection is inherited
    assert add(manifest) == 3
    assert [point.version for point in manifest.checkpoints.all()] == [1, 2, 3]


def test_forking_waits_for_open_transactions(manifest: Manifest) -> None:
    """A child of an open transaction would inherit SQLite's records of its locks, but not the locks."""
    inside, may_end = threading.Event(), threading.Event()

    def save() -> None:
        with manifest._transactions.writing("test") as connection:
            connection.exec_driver_sql("UPDATE store SET next_version = 50")
            inside.set()
            may_end.wait(60)

    thread = threading.Thread(target=save)
    thread.start()
    inside.wait(60)
    threading.Timer(0.3, may_end.set).start()

    def child() -> None:
        assert manifest.reserve_version() == 50
        gc.collect()

    assert in_fork(child) == 0
    assert may_end.is_set()
    thread.join()
    assert manifest.reserve_version() == 51


def test_forking_while_threads_write(manifest: Manifest) -> None:
    failed: list[BaseException] = []

    def write() -> None:
        try:
            # Not until they are told to stop: SQLite may let the same ones write next for ever.
            for _ in range(20):
                add(manifest, metrics={"loss": 1.0})
        except BaseException as error:
            failed.append(error)

    def child() -> None:
        for _ in range(3):
            add(manifest, "child")
        gc.collect()

    codes = []
    for _ in range(3):
        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes.append(in_fork(child))
        for thread in threads:
            thread.join()
    assert (codes, failed) == ([0] * 3, [])
    assert len(manifest.checkpoints.all("child")) == 9
    versions = [point.version for point in manifest.checkpoints.all()]
    assert versions == list(range(1, 3 * 3 * 20 + 9 + 1))


def test_a_thread_may_fork_inside_its_own_transaction(manifest: Manifest) -> None:
    with manifest._transactions.reading():
        assert in_fork(lambda: None) == 0


def test_a_manifest_is_not_kept_alive(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    add(manifest)
    engine = weakref.ref(manifest._transactions._engine)
    gone = weakref.ref(manifest)
    del manifest
    gc.collect()
    assert gone() is engine() is None
    descriptors = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert not [name for name in descriptors if name.startswith(str(tmp_path))]
    assert not fork_safety._gate.open


def test_a_moved_store_still_works(manifest: Manifest, tmp_path: Path) -> None:
    add(manifest)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files(tmp_path).items():
        (copy / name).write_bytes(content)
    with closing(Manifest.open(copy / "manifest.sqlite")) as moved:
        assert moved.checkpoints.all()[0].path == copy / "checkpoints" / "00000001-a.keras"
        assert add(moved) == 2
