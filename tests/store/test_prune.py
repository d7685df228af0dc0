"""A prune removes what it reports and nothing else, also if it is killed at any step; tags move atomically."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ckptstore import (
    Checkpoint,
    CheckpointStore,
    InvalidArgumentError,
    MetricNotFoundError,
    ReadOnlyError,
    RunNotFoundError,
    keep_best,
    keep_every,
    keep_last,
    keep_tagged,
    keep_within,
    max_bytes,
)
from crash.sample_stores import is_seed, save
from crash.steps import every_death
from manifests import DIED, die_at_statement, in_fork

POLICY = keep_best("loss", 1) | keep_tagged()


def _versions(store: CheckpointStore) -> list[int]:
    return [checkpoint.version for checkpoint in store.checkpoints()]


def _filled(root: Path) -> Path:
    """Seven checkpoints: the second is best, the third tagged, the fourth pinned, the fifth was resumed from."""
    with CheckpointStore(root) as store:
        for seed, loss in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, 6.0, 7.0], start=1):
            save(store, seed, metrics={"loss": loss}, monitor=("loss", "min"))
        store.tag(3, "paper")
        store.pin(4)
        store._manifest.events.add("resumed", run="default", version=5)
        save(store, 8, metrics={"loss": 8.0})
    return root


def _prune(root: Path) -> None:
    with CheckpointStore(root) as store:
        store.prune(POLICY)


def test_a_prune_killed_at_any_step_removes_all_or_nothing_and_is_finished(tmp_path: Path) -> None:
    numbers = itertools.count()
    seen = set()
    for (root,) in every_death(_prune, lambda: (_filled(tmp_path / str(next(numbers))),)):
        with CheckpointStore(root) as store:
            seen.add(len(_versions(store)))
            assert _versions(store) in ([1, 2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 7, 8])
            assert store.verify() == []
            assert all(is_seed(checkpoint.path, checkpoint.epoch) for checkpoint in store.checkpoints())
            files = {path.name for path in store.path.joinpath("checkpoints").iterdir()}
            assert files == {checkpoint.path.name for checkpoint in store.checkpoints(states=None)}
            assert store.best("loss").version == 2 and store.resume_point().version == 8
            store.prune(POLICY)
            assert _versions(store) == [2, 3, 4, 5, 7, 8]
    assert seen == {6, 8}


def test_a_tag_moved_while_the_process_dies_names_one_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        save(store, 1, tags=("production",))
        save(store, 2)
    for at in itertools.count(1):
        target = 1 + at % 2

        def move(target: int = target, at: int = at) -> None:
            die_at_statement(at)
            with CheckpointStore(root) as store:
                store.tag(target, "production")

        code = in_fork(move)
        assert code in (0, DIED)
        with CheckpointStore(root, read_only=True) as store:
            stands = store.get("production").version
            last = store.events(kind="tagged", limit=1)[0]
            assert last.version == stands and store.get(stands).tags == ("production",)
        if code == 0:
            assert at > 20 and stands == target
            return


def test_a_prune_reports_what_stays_and_why(tmp_path: Path) -> None:
    with CheckpointStore(_filled(tmp_path / "store")) as store:
        pruned = store.prune(POLICY, dry_run=True)
        assert [checkpoint.version for checkpoint in pruned.removed] == [1, 6]
        assert pruned.reasons == {
            2: ("keep_best('loss', 1, mode='min')", "best loss"),
            3: ("keep_tagged()",),
            4: ("pinned",),
            5: ("resumed from",),
            7: ("newest two", "to resume from"),
            8: ("newest two", "to resume from"),
        }
        assert pruned.nbytes == store.get(1).nbytes + store.get(6).nbytes
        store.get(7).path.chmod(0o644)
        store.get(7).path.write_bytes(b"cut")
        pruned = store.prune(POLICY, dry_run=True)
        assert [checkpoint.version for checkpoint in pruned.removed] == [1]
        assert pruned.reasons[6] == ("newest two", "to resume from")
        assert "not whole" in pruned.reasons[7][0]


def test_only_intact_checkpoints_count(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for seed in range(1, 7):
            save(store, seed)
        store.get(5).path.unlink()
        assert [checkpoint.version for checkpoint in store.prune(keep_last(3), dry_run=True).removed] == [
            1,
            2,
        ]
        save(store, 7, keep=keep_last(3))
        save(store, 8, keep=keep_last(3))
        assert _versions(store) == [5, 6, 7, 8]


@pytest.mark.parametrize("jump", [timedelta(days=365), timedelta(days=-365)], ids=["ahead", "back"])
def test_a_clock_that_jumps_for_a_while_removes_nothing_new(tmp_path: Path, jump: timedelta) -> None:
    """One of eight checkpoints is dated by a wrong clock; after each save, and by a look at everything."""
    hour = keep_within(timedelta(hours=1))
    for name, keep in (("each save", hour), ("prune", None)):
        with CheckpointStore(tmp_path / name) as store:
            for number in range(1, 13):
                at = datetime(2026, 3, 1, 10, tzinfo=UTC) + timedelta(minutes=10 * number)
                save(store, number, created_at=at + jump * (number == 4), keep=keep)
            if keep is None:
                store.prune(hour)
            kept = [checkpoint.version for checkpoint in store.checkpoints()]
        # What seems to be of the future stays, until the clock has come there.
        assert kept == [*([4] if jump > timedelta(0) else []), 6, 7, 8, 9, 10, 11, 12]


def test_a_users_own_function(tmp_path: Path) -> None:
    def even(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        return [checkpoint for checkpoint in checkpoints if checkpoint.version % 2 == 0]

    with CheckpointStore(tmp_path / "store") as store:
        for seed in range(1, 9):
            save(store, seed)
        assert [
            checkpoint.version for checkpoint in store.prune(even | keep_last(3), dry_run=True).removed
        ] == [1, 3, 5]
        assert [checkpoint.version for checkpoint in store.prune(even).removed] == [1, 3, 5]
        for wrong, message in (
            (lambda checkpoints: [99], "no version of the run's checkpoints"),
            (lambda checkpoints: None, "no collection"),
            (lambda checkpoints: "all", "no collection"),
            (lambda checkpoints: [], "keeps none of the checkpoints of run 'default'"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                store.prune(wrong)
        with pytest.raises(InvalidArgumentError, match="retention policy"):
            store.prune(3)  # type: ignore[arg-type]
        assert _versions(store) == [2, 4, 6, 7, 8]


def test_a_prune_treats_each_run_by_itself(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for seed in range(1, 9):
            save(store, seed, run="a" if seed % 2 else "b")
        with pytest.raises(RunNotFoundError):
            store.prune(keep_last(1), run="c")
        assert [checkpoint.version for checkpoint in store.prune(keep_last(1), run="b").removed] == [2, 4]
        assert [checkpoint.version for checkpoint in store.prune(keep_last(3)).removed] == [1]
        save(store, 9, run="c", metrics={"auc": 1.0})
        with pytest.raises(MetricNotFoundError, match="auc"):
            store.prune(keep_best("auc", 1))
        assert len(_versions(store)) == 6
        with pytest.raises(InvalidArgumentError, match="better low and high"):
            keep_best("auc", 1) | keep_best("auc", 2, "min")
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        assert len(store.prune(keep_last(1), run="a", dry_run=True).removed) == 1
        with pytest.raises(ReadOnlyError):
            store.prune(keep_last(1))


def test_a_budget_over_other_rules(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        for seed in range(1, 9):
            save(store, seed, metrics={"loss": 9.0 - seed if seed != 5 else 100.0})
        size = store.latest().nbytes
        fits = max_bytes(4 * size + size // 2)
        assert [checkpoint.version for checkpoint in store.prune(fits, dry_run=True).kept] == [5, 6, 7, 8]
        worst = max_bytes(4 * size + size // 2, "loss")
        assert [checkpoint.version for checkpoint in store.prune(worst, dry_run=True).kept] == [4, 6, 7, 8]
        bounded = (keep_last(3) | keep_every(epochs=2)) & fits
        assert [checkpoint.version for checkpoint in store.prune(bounded, dry_run=True).kept] == [5, 6, 7, 8]
        store.pin(1)
        assert [checkpoint.version for checkpoint in store.prune(fits, dry_run=True).kept] == [1, 6, 7, 8]


@pytest.mark.parametrize(
    "make",
    [
        keep_every,
        lambda: keep_every(epochs=1, steps=2),
        lambda: keep_every(epochs=0),
        lambda: keep_every(hours=-1),
        lambda: keep_within(timedelta(0)),
        lambda: keep_within(3),  # type: ignore[arg-type]
        lambda: keep_best("lr", 1),
        lambda: keep_best("loss", 0),
        lambda: keep_best("loss", 1, "up"),  # type: ignore[arg-type]
        lambda: max_bytes(0),
        lambda: max_bytes("lots"),
        lambda: max_bytes(10, mode="min"),
        lambda: keep_last(1) | 3,  # type: ignore[operator]
    ],
)
def test_nonsensical_rules_are_refused(make: object) -> None:
    with pytest.raises(InvalidArgumentError):
        make()  # type: ignore[operator]


def test_policies_pickle_and_print_as_code() -> None:
    policy = (
        keep_last(3) | keep_best("val_loss", 2) | keep_every(hours=6) | keep_within(timedelta(days=1))
    ) & max_bytes("2 GB")
    assert repr(policy) == (
        "(keep_last(3) | keep_best('val_loss', 2, mode='min') | keep_every(hours=6) | "
        "keep_within(1 day, 0:00:00)) & max_bytes(2000000000)"
    )
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert policy.is_builtin and not (policy | (lambda checkpoints: [])).is_builtin


def test_a_callback_whose_direction_contradicts_the_policy_is_refused_before_a_save(
    tmp_path: Path,
) -> None:
    from ckptstore.commit.request import checked_request

    with pytest.raises(InvalidArgumentError, match="better the other way"):
        checked_request(
            tmp_path, run="a", format="keras", position=(0, None, None), metrics=None, tags=(), extra=None,
            publish=None, keep=keep_best("score", 1), monitor=("score", "min"), notes=None,
        )  # fmt: skip
