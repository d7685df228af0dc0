"""Resuming finds the newest checkpoint that loads, and reports those that it skips."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from ckptstore.errors import (
    ModelMismatchError,
    NoUsableCheckpointError,
    RefusedByLayerError,
    StorageError,
)
from ckptstore.records import Checkpoint
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from resume_points import damage, load_newest


@pytest.fixture
def store(tmp_path: Path):
    with CheckpointStore(tmp_path / "store") as store:
        for seed in (1, 2, 3):
            save(store, seed)
        save(store, 4, state=False)
        save(store, 5, run="other")
        yield store


def _kinds(store: CheckpointStore, *kinds: str) -> list[tuple[str, int | None]]:
    return [(event.kind, event.version) for event in store._manifest.events.find() if event.kind in kinds][
        ::-1
    ]


def test_a_run_without_resume_points_starts_over(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        assert load_newest(store) is None
        save(store, 1, state=False)
        save(store, 2, run="other")
        assert load_newest(store) is None


def test_the_newest_of_the_run_is_loaded_and_recorded(store: CheckpointStore) -> None:
    assert load_newest(store).version == 3
    assert load_newest(store, run=None).version == 5
    assert _kinds(store, "resumed") == [("resumed", 3), ("resumed", 5)]


def test_damaged_resume_points_are_quarantined_recorded_and_reported(store: CheckpointStore) -> None:
    for version in (3, 2):
        damage(store.get(version).path)
    with pytest.warns(
        UserWarning, match=r"version \d is put aside in .*quarantine: its digest differs"
    ) as warned:
        assert load_newest(store).version == 1
    assert len(warned) == 2
    assert [store.get(version).state for version in (1, 2, 3)] == ["complete", "damaged", "damaged"]
    assert sorted(os.listdir(store.path / "quarantine")) == [
        "00000002-default.keras",
        "00000003-default.keras",
    ]
    assert _kinds(store, "damaged", "resumed") == [("damaged", 3), ("damaged", 2), ("resumed", 1)]
    assert store.latest("default").version == 4 and store.resume_point("default").version == 1


def test_a_missing_file_is_skipped_too(store: CheckpointStore) -> None:
    store.get(3).path.unlink()
    with pytest.warns(UserWarning, match="version 3 is put aside"):
        assert load_newest(store).version == 2


def test_when_all_are_damaged_the_run_does_not_silently_start_over(store: CheckpointStore) -> None:
    for version in (1, 2, 3):
        damage(store.get(version).path)
    with pytest.warns(UserWarning, match="put aside"), pytest.raises(NoUsableCheckpointError) as caught:
        load_newest(store)
    assert caught.value.versions == (3, 2, 1)
    # Nor does the next start, which finds none that is complete, before a repair.
    with pytest.raises(NoUsableCheckpointError):
        load_newest(store)
    store.repair()
    with pytest.warns(UserWarning, match="starts over: all its 3 resume points are damaged"):
        assert load_newest(store) is None


def test_a_resume_point_that_raises_is_quarantined_once_an_older_one_loads(store: CheckpointStore) -> None:
    def load(checkpoint: Checkpoint) -> None:
        if checkpoint.version == 3:
            raise KeyError("a layer's own code")

    with pytest.warns(UserWarning, match="version 3 .* loading it raises KeyError"):
        assert load_newest(store, load).version == 2
    assert store.get(3).state == "damaged"
    # It is whole, and a repair finds that out.
    store.repair()
    assert store.get(3).state == "complete"


def test_an_error_of_every_resume_point_quarantines_none(store: CheckpointStore) -> None:
    def load(checkpoint: Checkpoint) -> None:
        raise KeyError(checkpoint.version)

    with pytest.raises(KeyError, match="3"):
        load_newest(store, load)
    assert os.listdir(store.path / "quarantine") == []
    assert len(store.checkpoints()) == 5


@pytest.mark.parametrize(
    "error",
    [
        ModelMismatchError(where="a", in_checkpoint="b", in_model="c"),
        StorageError(operation="read", path=Path("x"), error=OSError(5, "Input/output error")),
        MemoryError(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_not_the_payloads_is_raised(store: CheckpointStore, error: BaseException) -> None:
    def load(checkpoint: Checkpoint) -> None:
        raise error

    with pytest.raises(type(error)):
        load_newest(store, load)
    assert len(store.checkpoints()) == 5 and _kinds(store, "resumed") == []


def test_a_resume_point_that_keeps_crashing_is_skipped(store: CheckpointStore) -> None:
    taken = []
    for _ in range(3):
        taken.append(load_newest(store).version)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        taken += [load_newest(store).version for _ in range(8)]
    assert taken == [3, 3, 3, 2, 2, 2, 1, 1, 1, 3, 3]
    assert "version 3 is skipped: started from 3 times without a save since" in str(warned[0].message)
    assert os.listdir(store.path / "quarantine") == []


def test_a_save_is_progress(store: CheckpointStore) -> None:
    for _ in range(2):
        assert load_newest(store).version == 3
    saved = save(store, 6)
    for _ in range(3):
        assert load_newest(store).version == saved.version
    # Another run's save is none.
    save(store, 7, run="other")
    with pytest.warns(UserWarning, match="skipped"):
        assert load_newest(store).version == 3


def test_a_store_open_for_reading_skips_and_changes_nothing(store: CheckpointStore) -> None:
    damage(store.get(3).path)
    warned = pytest.warns(UserWarning, match="version 3 is skipped: its digest")
    with CheckpointStore(store.path, read_only=True) as reader, warned:
        assert load_newest(reader).version == 2
    assert store.get(3).state == "complete" and _kinds(store, "resumed", "damaged") == []


def test_a_newer_one_that_was_missing_before_is_reported(store: CheckpointStore) -> None:
    store.get(3).path.unlink()
    with CheckpointStore(store.path) as again:
        assert again.get(3).state == "missing"
        with pytest.warns(UserWarning, match="skipped, since missing or damaged: version 3"):
            assert load_newest(again).version == 2
        again.repair()
        assert load_newest(again).version == 2


def test_a_start_is_counted_before_it_is_made(store: CheckpointStore) -> None:
    """Loading itself may be what ends the process."""

    def die(checkpoint: Checkpoint) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            load_newest(store, die)
    with pytest.warns(UserWarning, match="version 3 is skipped"):
        assert load_newest(store).version == 2


def test_loading_that_fails_once_is_retried(store: CheckpointStore) -> None:
    failures = [RuntimeError("out of memory for a moment")]

    def load(checkpoint: Checkpoint) -> None:
        if failures:
            raise failures.pop()

    assert load_newest(store, load).version == 3
    assert len(store.checkpoints()) == 5


def test_a_layer_that_runs_out_of_memory_quarantines_nothing(store: CheckpointStore) -> None:
    def load(checkpoint: Checkpoint) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise RefusedByLayerError(reason="no memory") from error

    with pytest.raises(RefusedByLayerError):
        load_newest(store, load)
    assert os.listdir(store.path / "quarantine") == []
