"""A whole store whose payloads are objects, its manifest on the local disk: nothing above the payload store knows.

The objects are in memory, and fail in the ways in which an object store does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ckptstore import CheckpointStore
from ckptstore.errors import (
    CorruptPayloadError,
    DiskFullError,
    InvalidArgumentError,
    NoUsableCheckpointError,
    StorageError,
)
from ckptstore.formats import payload
from ckptstore.records import Checkpoint
from ckptstore.retention import keep_last
from ckptstore.storage.payloads.at import payload_of
from ckptstore.store.contents import configuration_of, layout_of
from crash.sample_stores import is_seed, save
from object_payloads import Bucket, mounted_bucket
from small_fits import data, model

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def bucket(root: Path) -> Iterator[Bucket]:
    """A bucket for the store's payloads; that the store has no file of a payload is checked at the end."""
    bucket = Bucket()
    with mounted_bucket(root, bucket):
        yield bucket
    for folder in ("checkpoints", "tmp", "quarantine"):
        found = [path for path in (root / folder).iterdir() if not path.name.startswith("manifest")]
        assert not found


def damage(bucket: Bucket, checkpoint: Checkpoint) -> None:
    key = f"payloads/{checkpoint.payload}"
    content = bytearray(bucket.objects[key])
    content[len(content) // 3] ^= 1
    bucket.objects[key] = bytes(content)


def seed_of(checkpoint: Checkpoint) -> int:
    with payload.open_variables(payload_of(checkpoint)) as variables:
        return int(variables["optimizer/vars/0"])


def test_a_model_is_saved_found_restored_and_loaded(root: Path, bucket: Bucket, tmp_path: Path) -> None:
    trained = model()
    trained.fit(**data(), verbose=0)
    saved = [value.copy() for value in trained.get_weights()]
    with CheckpointStore(root) as store:
        worse = store.save(trained, epoch=0, metrics={"loss": 2.0})
        best = store.save(trained, epoch=1, metrics={"loss": 1.0}, publish=tmp_path / "shown.keras")
        legacy = store.save(trained, epoch=2, metrics={"loss": 3.0}, format="h5")
        weights = store.save(trained, epoch=3, metrics={"loss": 4.0}, format="weights")
        assert store.best("loss") == best and not best.path.exists()
        assert len(bucket.objects) == 4
        for checkpoint in (worse, best, legacy, weights):
            trained.fit(**data(), verbose=0)
            store.restore(checkpoint, trained)
            assert all(map(np.array_equal, trained.get_weights(), saved))
            checkpoint.load_weights(trained)
        for checkpoint in (best, legacy):
            assert all(map(np.array_equal, checkpoint.load_model(compile=False).get_weights(), saved))
        trained.fit(**data(), verbose=0)
        assert store.resume(trained, "default") == weights
        assert all(map(np.array_equal, trained.get_weights(), saved))
        with pytest.raises(InvalidArgumentError, match="weights only"):
            weights.load_model()
        assert set(configuration_of(best)) == {"config.json", "metadata.json"} and layout_of(legacy)
        assert not store.diff(worse, best).changed
        exported = store.export("best:loss", tmp_path / "exported.weights.h5")
        trained.load_weights(exported.path)
        assert store.export(best, tmp_path / "folder/").digest == best.digest
    shown = keras.saving.load_model(tmp_path / "shown.keras")
    assert all(map(np.array_equal, shown.get_weights(), saved))


def test_a_store_is_copied_from_objects_to_files(root: Path, bucket: Bucket, tmp_path: Path) -> None:
    with CheckpointStore(root) as store, CheckpointStore(tmp_path / "files") as local:
        first = save(store, 7)
        copied = store.copy(first, local)
        assert is_seed(copied.checkpoint.path, 7)
        assert store.copy(first, local).existing
        (back,) = store.import_files(copied.checkpoint.path, run="back")
        assert seed_of(back.checkpoint) == 7


def test_verify_repair_and_quarantine_work_on_objects(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        for seed in range(1, 6):
            save(store, seed)
        assert store.verify() == []
        second, third = store.get(2), store.get(3)
        whole = dict(bucket.objects)
        damage(bucket, second)
        del bucket.objects[f"payloads/{third.payload}"]
        problems = {problem.version: problem for problem in store.verify()}
        assert {version: problem.kind for version, problem in problems.items()} == {2: "digest", 3: "missing"}
        assert "differ" in problems[2].detail
        store.repair()
        assert store.verify() == []
        assert [store.get(version).state for version in (2, 3)] == ["damaged", "missing"]
        assert sorted(bucket.objects) == [
            "payloads/00000001-default.keras",
            "payloads/00000004-default.keras",
            "payloads/00000005-default.keras",
            "quarantine/00000002-default.keras",
        ]
        # What was lost is found again in quarantine, or in its place.
        bucket.objects["quarantine/00000003-default.keras"] = whole[f"payloads/{third.payload}"]
        del bucket.objects["quarantine/00000002-default.keras"]
        bucket.objects[f"payloads/{second.payload}"] = whole[f"payloads/{second.payload}"]
        store.repair()
    with CheckpointStore(root) as store:
        assert [seed_of(checkpoint) for checkpoint in store.checkpoints()] == [1, 2, 3, 4, 5]
        assert store.verify() == []


def test_a_resume_falls_back_past_a_damaged_object(root: Path, bucket: Bucket) -> None:
    trained = model()
    trained.fit(**data(), verbose=0)
    with CheckpointStore(root) as store:
        store.save(trained, epoch=0)
        newest = store.save(trained, epoch=1)
        damage(bucket, newest)
        with pytest.warns(UserWarning, match="put aside in the bucket's quarantine"):
            resumed = store.resume(trained, "default")
        assert resumed is not None and resumed.version == 1
        damage(bucket, store.get(1))
        with pytest.warns(UserWarning, match="put aside"), pytest.raises(NoUsableCheckpointError):
            store.resume(trained, "default")


def test_a_failing_read_is_no_damage(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        saved = save(store, 1)
        bucket.flipped = saved.payload, 700
        assert [problem.kind for problem in store.verify()] == ["digest"]
        with pytest.raises(CorruptPayloadError), payload.open_checkpoint(saved):
            pass
        bucket.flipped = None
        assert store.verify() == []


def test_retention_and_prune_remove_objects(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        for seed in range(1, 7):
            save(store, seed, keep=keep_last(4))
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [3, 4, 5, 6]
        assert len(store.prune(keep_last(2)).removed) == 2
        assert sorted(bucket.objects) == [f"payloads/{store.get(version).payload}" for version in (5, 6)]
        assert store.verify() == []


def test_a_lost_manifest_is_rebuilt_from_objects(root: Path, bucket: Bucket, tmp_path: Path) -> None:
    with CheckpointStore(root) as store:
        for seed in range(1, 4):
            save(store, seed, tags=(f"tag{seed}",), publish=tmp_path / "shown.keras")
        damage(bucket, store.get(2))
        before = [checkpoint.to_json() for checkpoint in store.checkpoints() if checkpoint.version != 2]
    (root / "manifest.sqlite").unlink()
    problems = CheckpointStore.rebuild(root)
    assert [problem.kind for problem in problems] == ["manifest", "orphan"]
    with CheckpointStore(root) as store:
        after = [checkpoint.to_json() for checkpoint in store.checkpoints()]
        for document in (*before, *after):
            document.update(blocked_s=None, total_s=None)
        assert json.dumps(after) == json.dumps(before)
        assert store.published("default") == {tmp_path / "shown.keras": 3}
        assert save(store, 9).version == 4


def test_an_object_without_a_row_is_adopted(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)
        newest = save(store, 2)
        store._manifest.checkpoints.remove([newest.version])
    with CheckpointStore(root) as store:
        assert [seed_of(checkpoint) for checkpoint in store.checkpoints()] == [1, 2]
        assert [event.kind for event in store.events(kind="adopted")] == ["adopted"]


def test_an_old_list_neither_loses_a_checkpoint_nor_brings_one_back(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)
        bucket.stale = list(bucket.objects)
        save(store, 2)
        save(store, 3)
        store.prune(keep_last(2))
        assert store.verify() == []
    with CheckpointStore(root) as store:
        assert [checkpoint.state for checkpoint in store.checkpoints(states=None)] == ["complete", "complete"]
        assert store.verify() == [] and store.repair() == []


@pytest.mark.parametrize("fault", ["no room", "connection lost", "put refused"])
def test_a_save_that_fails_leaves_the_store_as_it_was(root: Path, bucket: Bucket, fault: str) -> None:
    faults: dict[str, dict[str, Any]] = {
        "no room": {"room": 100},
        "connection lost": {"cut_after": 100},
        "put refused": {"refused": "payloads/"},
    }
    with CheckpointStore(root) as store:
        save(store, 1)
        before = dict(bucket.objects)
        usual = {name: getattr(bucket, name) for name in faults[fault]}
        vars(bucket).update(faults[fault])
        with pytest.raises(DiskFullError if fault == "no room" else StorageError):
            save(store, 2)
        vars(bucket).update(usual)
        assert bucket.objects == before and not bucket.uploads
        assert store.verify() == [] and [checkpoint.version for checkpoint in store.checkpoints()] == [1]
        assert seed_of(save(store, 3)) == 3


def test_a_writer_that_died_leaves_nothing(root: Path, bucket: Bucket) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)
        # Another writer's, of which only the upload is left.
        bucket.uploads["1:2:00000099-default.keras"] = {"": b"half"}
    with CheckpointStore(root) as store:
        assert not bucket.uploads and store.verify() == []


def test_an_empty_store_is_discarded(root: Path, tmp_path: Path) -> None:
    bucket = Bucket()
    with mounted_bucket(root, bucket):
        with CheckpointStore(root) as store:
            save(store, 1)
        CheckpointStore.discard(root)
        assert not bucket.objects
