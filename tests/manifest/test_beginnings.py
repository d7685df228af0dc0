"""A run begun from scratch never resumes from what it saved before, which stays; also after a rebuild."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import (
    CorruptManifestError,
    InvalidArgumentError,
    NoUsableCheckpointError,
    ReadOnlyError,
    RunLockedError,
)
from ckptstore.formats import payload
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.salvage import salvage
from ckptstore.records import Checkpoint
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from manifests import add, fill, new, steps_of
from resume_points import damage, load_newest


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    yield manifest
    assert manifest.integrity_problems() == []
    manifest.close()


def points(manifest: Manifest, run: str | None = "a") -> list[int]:
    return [point.version for point in manifest.checkpoints.resume_points(run)]


# --- the manifest ------------------------------------------------------------------------------------


def test_a_runs_first_beginning_number_depends_on_whether_it_has_saved(manifest: Manifest) -> None:
    assert manifest.beginnings.number("a") == manifest.beginnings.first_version("a") == 1
    assert manifest.runs.names() == ()  # asking makes none
    assert manifest.beginnings.begin("a") == 1
    assert manifest.beginnings.begin("a", {"why": "resume='never'"}) == 2
    add(manifest, "b")
    assert manifest.beginnings.begin("b") == 2
    manifest.checkpoints.remove([1])
    assert manifest.beginnings.begin("b") == 3
    assert [(event.run, event.version, event.detail) for event in manifest.events.find(kind="began")] == [
        ("b", 2, {"beginning": 3}),
        ("b", 2, {"beginning": 2}),
        ("a", 1, {"why": "resume='never'", "beginning": 2}),
        ("a", 1, {"beginning": 1}),
    ]


def test_a_run_whose_checkpoints_were_removed_still_counts_as_a_beginning(manifest: Manifest) -> None:
    add(manifest)
    manifest.checkpoints.remove([1])
    assert manifest.beginnings.begin("a") == 2


def test_checkpoints_of_earlier_beginnings_are_no_resume_points(manifest: Manifest) -> None:
    for run in "abab":
        add(manifest, run, metrics={"loss": 1.0})
    manifest.beginnings.begin("a")
    assert manifest.beginnings.first_version("a") == 5 and manifest.beginnings.first_version("b") == 1
    assert (points(manifest), points(manifest, "b"), points(manifest, None)) == ([], [4, 2], [4, 2])
    add(manifest)
    assert (points(manifest), points(manifest, None)) == ([5], [5, 4, 2])
    manifest.beginnings.begin("b")
    assert points(manifest, None) == [5]
    # All else sees them as before.
    assert [checkpoint.version for checkpoint in manifest.checkpoints.all("a")] == [1, 3, 5]
    best = manifest.checkpoints.best("loss", "min")
    assert best is not None and best.version == 1


def test_a_save_in_progress_belongs_to_the_beginning_that_reserved_its_version(manifest: Manifest) -> None:
    version = manifest.reserve_version()
    manifest.beginnings.begin("a")
    manifest.beginnings.begin("a")
    manifest.add_checkpoint(new(version))
    assert points(manifest) == []
    assert [manifest.beginnings.number("a", at) for at in (version, version + 1)] == [1, 2]
    assert manifest.beginnings.number("a") == 2


def test_detail_must_be_json(manifest: Manifest) -> None:
    with pytest.raises(InvalidArgumentError):
        manifest.beginnings.begin("a", {"set": {1}})
    assert manifest.runs.names() == ()
    manifest.beginnings.begin("a", {"beginning": 77})
    assert manifest.beginnings.number("a") == 1


@pytest.mark.parametrize("detail", [None, "[]", "{}", '{"beginning": "2"}', '{"beginning": true}', "{"])
def test_an_unreadable_beginning_is_reported(manifest: Manifest, detail: str | None) -> None:
    manifest.beginnings.begin("a")
    with closing(sqlite3.connect(manifest.path)) as database, database:
        database.execute("UPDATE events SET detail = ?", [detail])
    for ask in (manifest.beginnings.number, manifest.beginnings.begin):
        with pytest.raises(CorruptManifestError):
            ask("a")


def test_beginnings_of_earlier_stores_are_read_under_their_key(manifest: Manifest) -> None:
    add(manifest)
    manifest.beginnings.begin("a")
    with closing(sqlite3.connect(manifest.path)) as database, database:
        database.execute("UPDATE events SET detail = '{\"attempt\": 2}' WHERE kind = 'began'")
    assert manifest.beginnings.number("a") == 2 and manifest.beginnings.first_version("a") == 2
    assert salvage(manifest.path).beginnings == {("a", 2): 2}
    assert manifest.beginnings.begin("a") == 3


def test_resumes_of_earlier_beginnings_do_not_count(manifest: Manifest) -> None:
    add(manifest)
    add(manifest, "b")
    for run, version in (("a", 1), ("a", 1), ("b", 2)):
        manifest.events.add("resuming", run=run, version=version)
    assert manifest.events.resumes_without_progress() == {1: 2, 2: 1}
    manifest.beginnings.begin("a")
    for run, resumes in (("a", {}), ("b", {2: 1}), (None, {2: 1})):
        assert manifest.events.resumes_without_progress(run) == resumes


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["begin", "save", "save", "plain"])), max_size=9
)


@settings(max_examples=40)
@given(steps=STEPS)
def test_resume_points_equal_those_of_a_reference_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    with closing(Manifest.open(tmp_path_factory.mktemp("store") / "manifest.sqlite")) as manifest:
        expected: dict[str, list[int]] = {run: [] for run in "abc"}
        for run, what in steps:
            if what == "begin":
                manifest.beginnings.begin(run)
                expected[run] = []
            else:
                version = add(manifest, run, resumable=what == "save")
                expected[run] += [version] * (what == "save")
        for run in "abc":
            assert points(manifest, run) == expected[run][::-1]
        assert points(manifest, None) == sorted(
            (version for versions in expected.values() for version in versions), reverse=True
        )


def test_the_cost_of_a_look_up_does_not_grow_with_earlier_beginnings(tmp_path: Path) -> None:
    work: dict[int, list[int]] = {}
    for size in (100, 4000):
        (tmp_path / str(size)).mkdir()
        with closing(Manifest.open(tmp_path / str(size) / "manifest.sqlite")) as manifest:
            fill(manifest, size)
            # All that is complete is left behind, and the run was begun as often as it saved.
            with manifest._transactions.writing("test") as connection:
                connection.exec_driver_sql(
                    "INSERT INTO events (at, kind, run_id, version, detail) SELECT '2026-01-01T00:00:00+00:00',"
                    f" 'began', 1, version, json_object('beginning', version) FROM checkpoints WHERE version < {size}"
                )
            calls: list[Any] = [
                lambda manifest=manifest: points(manifest),
                lambda manifest=manifest: points(manifest, None),
                lambda manifest=manifest: manifest.beginnings.first_version("a"),
                lambda manifest=manifest: manifest.beginnings.number("a"),
            ]
            assert [call() for call in calls] == [[], [], size - 1, size - 1]
            work[size] = [steps_of(manifest, call) for call in calls]
    for small, large in zip(*work.values(), strict=True):
        assert large <= 1.2 * small + 2 < 50


# --- the store ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(tmp_path / "store") as store:
        for seed in (1, 2):
            save(store, seed)
        assert store.begin("default") == 2
        yield store


def version_of(checkpoint: Checkpoint | None) -> int | None:
    return None if checkpoint is None else checkpoint.version


def test_a_new_beginning_has_nothing_to_resume_from(store: CheckpointStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_newest(store) is load_newest(store, run=None) is store.resume_point("default") is None
        saved = save(store, 3)
        assert (
            version_of(load_newest(store)) == version_of(load_newest(store, run=None)) == saved.version == 3
        )
    assert version_of(store.resume_point()) == 3
    assert [checkpoint.version for checkpoint in store.checkpoints("default")] == [1, 2, 3]
    assert version_of(store.best("loss")) == 1


def test_resuming_past_damage_stays_in_the_newest_beginning(store: CheckpointStore) -> None:
    damage(save(store, 3).path)
    with pytest.warns(UserWarning, match="put aside"), pytest.raises(NoUsableCheckpointError) as caught:
        load_newest(store)
    assert caught.value.versions == (3,)
    store.repair()
    with pytest.warns(UserWarning, match="starts over: all its 1 resume points are damaged"):
        assert load_newest(store) is None
    assert [store.get(version).state for version in (1, 2)] == ["complete", "complete"]


def test_losses_of_an_earlier_beginning_are_not_reported(store: CheckpointStore) -> None:
    for version in (1, 2):
        store.get(version).path.unlink()
    with CheckpointStore(store.path) as again, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.get(1).state == "missing"
        assert load_newest(again) is None


def test_beginning_a_run_claims_it(store: CheckpointStore) -> None:
    with CheckpointStore(store.path) as other, pytest.raises(RunLockedError):
        other.begin("default")
    with CheckpointStore(store.path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.begin("other")
    assert store._manifest.beginnings.number("default") == 2


# --- after a loss ------------------------------------------------------------------------------------


def test_a_payload_records_its_beginning(store: CheckpointStore) -> None:
    paths = [store.get(1).path, save(store, 3).path]
    assert [payload.read_description(path)["beginning"] for path in paths] == [1, 2]


@pytest.mark.parametrize("lost", [True, False])
def test_a_rebuilt_manifest_has_the_beginnings(store: CheckpointStore, lost: bool) -> None:
    save(store, 3)
    store.begin("default")
    for seed in (4, 5):
        save(store, seed)
    store.begin("other")
    manifest = store.path / "manifest.sqlite"
    store.close()
    if lost:
        manifest.unlink()
    else:
        content = bytearray(manifest.read_bytes())
        content[100:200] = bytes(100)
        manifest.write_bytes(content)
    CheckpointStore.rebuild(store.path)
    with CheckpointStore(store.path) as again:
        assert [(e.version, e.detail) for e in again._manifest.events.find(kind="began", run="default")] == [
            (4, {"beginning": 3}),
            (3, {"beginning": 2}),
        ]
        assert points(again._manifest, "default") == [5, 4]
        assert again.begin("default") == 4


def test_a_rebuilt_manifest_has_a_beginning_that_saved_nothing_if_it_is_readable(
    store: CheckpointStore,
) -> None:
    store.close()
    path = store.path / "manifest.sqlite"
    assert salvage(path).beginnings == {("default", 2): 3}
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute("UPDATE checkpoints SET epoch = -1")
    CheckpointStore.rebuild(store.path)
    with CheckpointStore(store.path) as again:
        assert again._manifest.beginnings.first_version("default") == 3
        assert load_newest(again) is None


@pytest.mark.parametrize("detail", [None, 7, "[", "[1]", "{}", '{"beginning": "1"}', '{"beginning": -1}'])
def test_unreadable_beginnings_are_left_out_of_a_rebuild(store: CheckpointStore, detail: object) -> None:
    store.begin("other")
    store.close()
    path = store.path / "manifest.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE events SET detail = ? WHERE version = 3 AND run_id = 1", [detail])
    assert salvage(path).beginnings == {("other", 1): 3}


def test_an_orphan_brings_its_beginning_to_an_older_manifest(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        save(store, 1)
    older = (root / "manifest.sqlite").read_bytes()
    with CheckpointStore(root) as store:
        store.begin("default")
        for seed in (2, 3):
            save(store, seed)
    (root / "manifest.sqlite").write_bytes(older)
    with CheckpointStore(root) as store:
        assert [event.version for event in store._manifest.events.find(kind="began")] == [2]
        assert points(store._manifest, "default") == [3, 2]
