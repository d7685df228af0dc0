"""After a save only new checkpoints and those they push out are checked, with the result of a full check."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptstore.commit.retention.plan import plan_run
from ckptstore.commit.retention.runner import RetentionRunner
from ckptstore.errors import InvalidArgumentError
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.lookups import NEAR
from ckptstore.retention import (
    Policy,
    keep_best,
    keep_every,
    keep_last,
    keep_tagged,
    keep_within,
    max_bytes,
)
from ckptstore.retention.incremental import is_incremental
from ckptstore.storage.layout import Layout
from manifests import new

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICIES = (
    keep_last(1),
    keep_last(4),
    keep_last(70),
    keep_best("loss", 3),
    keep_best("score", 2, "max"),
    keep_every(epochs=3),
    keep_every(steps=7),
    keep_every(hours=2),
    keep_within(timedelta(hours=3)),
    keep_tagged(),
    max_bytes(900),
    max_bytes(900, "loss"),
    keep_last(3) | keep_best("score", 1, "max") | keep_every(epochs=4),
    keep_tagged() | keep_within(timedelta(hours=1)) | keep_every(steps=10),
    (keep_every(epochs=2) | keep_last(5)) & max_bytes(800, "score", "max"),
    keep_last(6) & max_bytes(700),
    keep_last(2) | max_bytes(700),
    keep_every(epochs=3) | keep_best("loss", 2) | max_bytes(600),
    keep_every(epochs=4) | max_bytes(600, "loss"),
)


class Small:
    """A store whose payloads are sparse files, and its retention."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.make()
        self.manifest = Manifest.open(self.layout.manifest)
        self.retention = RetentionRunner(self.layout, self.manifest)

    def save(self, run: str = "a", **fields: Any) -> int:
        version = self.manifest.reserve_version()
        checkpoint = new(version, run, **{"nbytes": 100, **fields})
        path = self.layout.root / checkpoint.file
        path.touch()
        with path.open("r+b") as file:
            file.truncate(checkpoint.nbytes)
        self.manifest.add_checkpoint(checkpoint, published_path=fields.pop("published_path", None))
        return version

    def apply(self, policy: Policy, run: str = "a") -> set[int]:
        """Apply a policy, and compare what expires with the result of a full check."""
        expected = {
            checkpoint.version for checkpoint in plan_run(self.layout, self.manifest, run, policy).expired
        }
        going = self.retention.mark(run, policy)
        assert {checkpoint.version for checkpoint in going} == expected, policy
        for checkpoint in going:
            checkpoint.path.unlink()
        self.manifest.checkpoints.remove([checkpoint.version for checkpoint in going])
        return expected

    def versions(self, run: str = "a") -> list[int]:
        return [checkpoint.version for checkpoint in self.manifest.checkpoints.all(run)]


@st.composite
def saves(draw: st.DrawFn) -> dict[str, Any]:
    values = st.sampled_from((0.0, 1.0, 2.0, 3.0, math.nan, math.inf))
    return {
        "do": "save",
        "run": draw(st.sampled_from("aaab")),
        "epochs": draw(st.integers(-1, 2)),
        "batch": draw(st.sampled_from((None, None, 3))),
        # Now and then the clock is set back or forward.
        "minutes": draw(st.one_of(st.integers(-30, 120), st.sampled_from((-50_000, 50_000)))),
        "nbytes": draw(st.sampled_from((100, 100, 250))),
        "resumable": draw(st.sampled_from((True, True, False))),
        "metrics": {"loss": draw(values), "score": draw(values)},
        "tags": draw(st.sampled_from(((), (), ("x",), ("y",)))),
        "shown": draw(st.sampled_from((False, False, True))),
    }


CHANGES = st.fixed_dictionaries(
    {
        "do": st.sampled_from(("tag", "untag", "pin", "unpin", "resume", "cut", "lose", "find")),
        "which": st.integers(0, 30),
        "name": st.sampled_from("xy"),
    }
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    policy=st.sampled_from(POLICIES),
    moves=st.lists(st.one_of(saves(), saves(), saves(), CHANGES), min_size=5, max_size=40),
    monitored=st.sampled_from((None, ("loss", "min"), ("score", "max"))),
)
def test_an_incremental_check_expires_what_a_full_check_does(
    policy: Policy, moves: list[dict[str, Any]], monitored: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = Small(Path(folder))
        (small.layout.root.parent / "shown.keras").touch()
        epoch, step, at = 0, 0, START
        with closing(small.manifest):
            for move in moves:
                if move["do"] == "save":
                    epoch, step = max(0, epoch + move["epochs"]), step + 3
                    at += timedelta(minutes=move["minutes"])
                    fields = {
                        name: move[name] for name in ("batch", "nbytes", "resumable", "metrics", "tags")
                    }
                    shown = {"published_path": "../shown.keras"} if move["shown"] else {}
                    version = small.save(move["run"], epoch=epoch, step=step, created_at=at, **fields)
                    if shown:
                        _show(small, version)
                    if monitored:
                        _watch(small, move["run"], monitored)
                else:
                    _change(small, move, budget="max_bytes" in repr(policy))
                if small.manifest.metrics.names("a"):
                    small.apply(policy)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_long_run_that_loses_and_finds_checkpoints_again(tmp_path: Path, policy: Policy) -> None:
    small = Small(tmp_path / "store")
    expired: set[int] = set()
    for number in range(45):
        metrics = {"loss": float(number * 7 % 11), "score": float(number * 5 % 13)}
        small.save(
            epoch=number // 3, batch=None if number % 3 == 2 else 4, step=3 * number, metrics=metrics,
            created_at=START + timedelta(minutes=25 * number), resumable=number % 4 != 1,
            tags=(f"t{number % 4}",) if number % 5 == 0 else (),
        )  # fmt: skip
        expired |= small.apply(policy)
        if number in (20, 30, 40):
            lost = small.versions()[1]
            small.manifest.checkpoints.set_state([lost], "missing", event="missing")
            expired |= small.apply(policy)
            small.manifest.checkpoints.set_state([lost], "complete", event="found")
            expired |= small.apply(policy)
            small.manifest.events.add("resumed", run="a", version=small.versions()[:3][-1])
            expired |= small.apply(policy)
    assert expired or policy == keep_last(70)
    small.manifest.close()


def test_a_kept_checkpoint_may_lie_beyond_the_newest_that_are_read_at_once(tmp_path: Path) -> None:
    """The newest that can be resumed from, and the newest that are whole."""
    small = Small(tmp_path / "store")
    for number in range(NEAR + 6):
        small.save(epoch=number, resumable=number < 3)
        small.apply(keep_last(NEAR + 2))
    newest = [*range(5, NEAR + 7)]
    assert small.versions() == [2, 3, *newest]
    for checkpoint in small.manifest.checkpoints.all("a")[-NEAR:]:
        os.truncate(checkpoint.path, 1)
    small.save(epoch=NEAR + 6, resumable=False)
    assert small.apply(keep_last(2)) == {5}
    assert small.versions() == [2, 3, *newest[1:], NEAR + 7]
    small.manifest.close()


def _show(small: Small, version: int) -> None:
    from ckptstore.manifest.published import confirm_published, put_published

    with small.manifest._transactions.writing("test") as connection:
        put_published(connection, "../shown.keras", "a", version)
        confirm_published(connection, "../shown.keras")


def _watch(small: Small, run: str, monitored: Any) -> None:
    small.manifest.runs.set_monitors(run, dict([monitored]))


def _change(small: Small, move: dict[str, Any], *, budget: bool) -> None:
    every = small.manifest.checkpoints.all(states=None)
    if not every:
        return
    checkpoint = every[move["which"] % len(every)]
    match move["do"]:
        case "tag":
            small.manifest.tags.put(checkpoint.version, move["name"])
        case "untag":
            if move["name"] in small.manifest.tags.all():
                small.manifest.tags.remove(move["name"])
        case "pin" | "unpin":
            small.manifest.checkpoints.pin(checkpoint.version, move["do"] == "pin")
        case "resume":
            small.manifest.events.add("resumed", run=checkpoint.run, version=checkpoint.version)
        case "lose":
            small.manifest.checkpoints.set_state([checkpoint.version], "missing", event="missing")
        case "find":
            small.manifest.checkpoints.set_state([checkpoint.version], "complete", event="found")
        # The bytes of what was cut since are still counted: what a budget then finds is another thing.
        case "cut" if checkpoint.path.exists() and not budget:
            with checkpoint.path.open("r+b") as file:
                file.truncate(1)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_builtin_policies_are_incremental(policy: Policy) -> None:
    assert is_incremental(policy)
    assert not is_incremental(policy | (lambda checkpoints: []))
    assert not is_incremental(policy & keep_last(2))


def _save_better(small: Small) -> None:
    number = small.manifest.next_version
    small.save(epoch=number, metrics={"loss": 1000.0 - number}, tags=(f"t{number}",))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small and a large store that another policy has checked completely, keeping all."""
    small = Small(tmp_path_factory.mktemp("kept") / "store")
    roots = []
    for size in (60, 600):
        while len(small.versions()) < size:
            _save_better(small)
        small.apply(keep_every(epochs=1) | keep_tagged())
        roots.append(Path(shutil.copytree(small.layout.root, small.layout.root.with_name(str(size)))))
    small.manifest.close()
    return roots


@pytest.mark.parametrize(
    "policy",
    [
        keep_every(epochs=1),
        keep_last(3) | keep_every(epochs=1),
        keep_tagged() | keep_within(timedelta(days=999)),
        keep_last(40) | keep_best("loss", 3),
        keep_every(epochs=1) & max_bytes(10**9),
        keep_every(epochs=1) | max_bytes(10**9),
        keep_every(epochs=1) | max_bytes(500),
    ],
    ids=repr,
)
def test_kept_checkpoints_cost_nothing(
    kept: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    """The work of a check, in instructions of SQLite, is the same however many checkpoints stay."""
    from manifests import steps_of

    monkeypatch.setattr("ckptstore.retention.max_bytes_progress.RECHECKED", 8)
    work = []
    for root in kept:
        small = Small(Path(shutil.copytree(root, tmp_path / root.name)))
        small.retention.mark("a", policy)
        small.manifest.checkpoints.remove(
            [checkpoint.version for checkpoint in small.manifest.checkpoints.in_state("deleting")]
        )
        _save_better(small)
        work.append(steps_of(small.manifest, lambda small=small: small.retention.mark("a", policy)))
        small.manifest.close()
    assert work[1] <= 1.3 * work[0] + 5


@pytest.mark.parametrize(
    "policy",
    [max_bytes(500), keep_last(3) | max_bytes(500), keep_every(steps=10**6) | max_bytes(500)],
    ids=repr,
)
def test_a_budgets_later_checks_cost_only_what_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    """Also before the first scan has ended: neither what stays nor what is still to expire is read again."""
    from manifests import steps_of

    monkeypatch.setattr("ckptstore.retention.incremental.MAX_EXPIRED", 4)
    work = []
    for size in (40, 160):
        small = Small(tmp_path / str(size))
        for number in range(size):
            small.save(epoch=number)
        first = [checkpoint.version for checkpoint in small.retention.mark("a", policy)]
        assert first == [1, 2, 3, 4]
        small.manifest.checkpoints.remove(first)
        small.save(epoch=size)
        work.append(steps_of(small.manifest, lambda small=small: small.retention.mark("a", policy)))
        small.manifest.close()
    assert work[1] <= 1.3 * work[0] + 5


def test_a_budget_drops_its_progress_if_anything_but_a_save_came_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptstore.retention.max_bytes_progress.RECHECKED", 1)
    monkeypatch.setattr("ckptstore.retention.incremental.MAX_EXPIRED", 2)
    small = Small(tmp_path / "store")
    policy = keep_every(epochs=5) | max_bytes(500)
    for number in range(14):
        small.save(epoch=number)
    assert [checkpoint.version for checkpoint in small.retention.mark("a", policy)] == [1, 2]
    # The transaction of the next turn fails, and some that were counted go by another hand.
    with pytest.raises(RuntimeError), monkeypatch.context() as patched:
        patched.setattr("ckptstore.manifest.retention.checks._expire", _fail)
        small.retention.mark("a", policy)
    small.manifest.checkpoints.remove([1, 2])
    small.manifest.retention.expire("a", [11, 12, 13])
    small.manifest.checkpoints.remove([11, 12, 13])
    expired: set[int] = set()
    for _ in range(8):
        expired |= {checkpoint.version for checkpoint in small.retention.mark("a", policy)}
        small.manifest.checkpoints.remove(sorted(expired))
    # Nine were left, and the four oldest do not fit; of these the other rule keeps one.
    assert expired == {3, 4, 6}
    assert small.apply(policy) == set()
    for name in ("pin", "unpin"):
        small.manifest.checkpoints.pin(5, name == "pin")
        small.save(epoch=20, nbytes=100)
        small.apply(policy)
    small.manifest.close()


def _fail(*arguments: object) -> None:
    raise RuntimeError


def test_a_full_scan_comes_first_and_when_the_policy_changes(tmp_path: Path) -> None:
    small = Small(tmp_path / "store")
    for number in range(6):
        small.save(metrics={"loss": float(number)})
    assert small.apply(keep_last(3)) == {1, 2, 3}
    small.save()
    assert small.apply(keep_last(5)) == set()
    assert small.apply(keep_last(2)) == {4, 5}
    small.manifest.close()


def test_another_removal_drops_the_recorded_progress(tmp_path: Path) -> None:
    """A budget continues from the recorded bytes: they must be dropped if checkpoints are removed otherwise."""
    small = Small(tmp_path / "store")
    for _ in range(4):
        small.save()
    policy = max_bytes(350)
    assert small.apply(policy) == {1}
    small.manifest.checkpoints.set_state([2], "deleting")
    small.manifest.checkpoints.remove([2])
    small.save()
    assert small.apply(policy) == set()
    small.manifest.close()


def test_a_metric_that_is_missing_yet_removes_nothing_and_is_reported_once(tmp_path: Path) -> None:
    small = Small(tmp_path / "store")
    policy = keep_best("val_loss", 1)
    for number in range(5):
        small.save(metrics={"loss": 1.0}, batch=number)
    assert small.retention.mark("a", policy) == []
    small.save(metrics={"loss": 1.0})
    with pytest.warns(UserWarning, match=r"nothing is removed from run 'a'.*'val_loss'.*metrics here: loss"):
        assert small.retention.mark("a", policy) == []
    assert small.retention.mark("a", policy) == []
    small.save(metrics={"val_loss": 1.0})
    assert small.apply(policy) == {1, 2, 3, 4, 5}
    small.manifest.close()


def test_a_budget_below_best_and_resume_point_removes_nothing(tmp_path: Path) -> None:
    small = Small(tmp_path / "store")
    for value in (0.0, 1.0, 2.0, 3.0):
        small.save(metrics={"loss": value})
    _watch(small, "a", ("loss", "min"))
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=r"200 bytes \(version 1, 4\).*nothing was removed"):
            small.retention.mark("a", max_bytes(150))
    assert small.apply(max_bytes(200)) == {2}
    small.save(metrics={"loss": 4.0}, nbytes=300)
    with pytest.raises(InvalidArgumentError, match="400 bytes"):
        small.retention.mark("a", max_bytes(200))
    assert small.versions() == [1, 3, 4, 5]
    small.manifest.close()


def test_a_direction_that_contradicts_the_runs_removes_nothing(tmp_path: Path) -> None:
    small = Small(tmp_path / "store")
    for value in (0.0, 1.0, 2.0, 3.0):
        small.save(metrics={"loss": value})
    _watch(small, "a", ("loss", "min"))
    with pytest.raises(InvalidArgumentError, match="better the other way than the run"):
        small.retention.mark("a", keep_best("loss", 1, "max"))
    assert small.versions() == [1, 2, 3, 4]
    small.manifest.close()


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_first_check_removes_a_limited_number_and_later_ones_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    monkeypatch.setattr("ckptstore.retention.incremental.MAX_EXPIRED", 3)
    monkeypatch.setattr("ckptstore.manifest.retention.run_rows._KEYS_PER_PAGE", 4)
    monkeypatch.setattr("ckptstore.manifest.retention.run_rows._CHECKPOINTS_PER_PAGE", 2)
    small = Small(tmp_path / "store")
    for number in range(25):
        # Twice over the same epochs, as where a run was started over.
        small.save(
            epoch=number % 14 // 2, batch=None if number % 2 else 4, step=3 * (number % 14), nbytes=50,
            metrics={"loss": float(number * 7 % 11), "score": float(number * 5 % 13)},
            created_at=START + timedelta(minutes=25 * number), tags=(f"t{number}",) if number % 5 == 0 else (),
        )  # fmt: skip
    expected = {
        checkpoint.version for checkpoint in plan_run(small.layout, small.manifest, "a", policy).expired
    }
    turns: list[set[int]] = []
    while len(turns) < 12:
        turns.append({checkpoint.version for checkpoint in small.retention.mark("a", policy)})
        small.manifest.checkpoints.remove(sorted(turns[-1]))
        if len(turns[-1]) < 3:
            break
    assert set().union(*turns) == expected
    assert [len(turn) for turn in turns] == [3] * (len(expected) // 3) + [len(expected) % 3]
    assert small.apply(policy) == set()
    with small.manifest._transactions.reading() as connection:
        noted = connection.exec_driver_sql("SELECT count(*) FROM retention").scalar()
    assert noted == 1, "from now on only what is new is checked"
    small.manifest.close()


def test_the_check_that_ends_a_first_scan_covers_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that an earlier check kept may have expired: its tag was removed since, for example."""
    monkeypatch.setattr("ckptstore.retention.incremental.MAX_EXPIRED", 2)
    small = Small(tmp_path / "store")
    for number in range(8):
        small.save(metrics={"loss": float(number)}, tags=("x",) if number == 0 else ())
    policy = keep_tagged()
    assert [checkpoint.version for checkpoint in small.retention.mark("a", policy)] == [2, 3]
    small.manifest.checkpoints.remove([2, 3])
    small.manifest.tags.remove("x")
    assert [checkpoint.version for checkpoint in small.retention.mark("a", policy)] == [4, 5]
    small.manifest.checkpoints.remove([4, 5])
    assert [checkpoint.version for checkpoint in small.retention.mark("a", policy)] == [1, 6]
    small.manifest.close()
