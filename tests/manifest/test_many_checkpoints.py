"""Very many checkpoints are processed in batches, and little of each is kept in memory."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import fill_manifest
from ckptstore import Checkpoint, CheckpointStore, keep_every, keep_last, max_bytes
from ckptstore.cli.output import print_json
from ckptstore.manifest.manifest import Manifest
from ckptstore.report import text
from ckptstore.store.discard import remove_checkpoints
from crash.sample_stores import save
from manifests import add

ODD = keep_every(steps=20)


@pytest.fixture
def by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pages hold two checkpoints, and refuse to fetch all at once."""

    def refused(*arguments: object) -> None:
        raise AssertionError("all checkpoints at once")

    monkeypatch.setattr("ckptstore.manifest.checkpoint_rows._PAGE_SIZE", 2)
    monkeypatch.setattr("ckptstore.manifest.checkpoints.fetch_all", refused)


def _filled(root: Path, count: int = 7) -> Path:
    with CheckpointStore(root) as store:
        for seed in range(1, count + 1):
            save(
                store, seed, run="b" if seed % 3 == 0 else "a", metrics={"loss": float(seed)}, step=10 * seed
            )
        store.tag(2, "paper")
    return root


def _peak(root: Path, count: int) -> int:
    """Return the bytes of memory that a dry run takes."""
    with CheckpointStore(root, read_only=True) as store:
        store.prune(keep_last(1), dry_run=True)
        tracemalloc.start()
        try:
            pruned = store.prune(ODD | keep_last(3) | max_bytes(10**5), run="default", dry_run=True)
            deque(text.pruned_lines(pruned), maxlen=0)
            deque(pruned.documents()["removed"], maxlen=0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert len(pruned.kept) > 0.4 * count and len(pruned.removed) > 0.4 * count
    return peak


def test_a_prune_needs_little_memory_for_each_checkpoint(tmp_path: Path) -> None:
    peaks = {}
    for count in (1000, 7000):
        fill_manifest.fill(tmp_path / str(count), count)
        # What threads of earlier tests take meanwhile counts too: the least of three is the dry run's own.
        peaks[count] = min(_peak(tmp_path / str(count), count) for _ in range(3))
    assert (peaks[7000] - peaks[1000]) / 6000 < 350, "bytes for each checkpoint"


@pytest.mark.usefixtures("by_pages")
def test_the_result_of_a_prune_outlives_the_store(tmp_path: Path) -> None:
    with CheckpointStore(_filled(tmp_path / "store")) as store:
        before = list(store.iterate())
        planned = store.prune(keep_last(1) | keep_every(steps=40), dry_run=True)
        pruned = store.prune(keep_last(1) | keep_every(steps=40))
        assert list(store.iterate("a")) == pruned.kept[:3] and planned.removed == pruned.removed
    assert [checkpoint.version for checkpoint in pruned.removed] == [1, 2]
    assert (
        pruned.removed
        == [checkpoint for checkpoint in before if checkpoint.version in (1, 2)]
        != list(pruned.kept)
    )
    assert [checkpoint.version for checkpoint in planned.kept] == [4, 5, 7, 3, 6], "run by run"
    assert planned.kept[-1] == planned.kept[4] == before[5] and planned.kept[1:3] == [before[4], before[6]]
    assert list(reversed(planned.kept)) == list(planned.kept)[::-1]
    assert before[0] in planned.removed and repr(pruned.removed) == repr(before[:2])
    assert pruned.reasons == {**planned.reasons} and list(pruned.reasons) == [3, 4, 5, 6, 7]
    twin = pickle.loads(pickle.dumps(pruned))
    assert twin.removed == pruned.removed and twin.to_json() == pruned.to_json()
    lines = list(text.pruned_lines(planned))
    assert [line.split()[0] for line in lines] == ["version", "1", "2", "3", "4", "5", "6", "7"]
    assert json.loads(json.dumps(planned.to_json()))["removed"] == [
        checkpoint.to_json() for checkpoint in before[:2]
    ]


@pytest.mark.usefixtures("by_pages")
def test_a_users_function_gets_a_list_of_checkpoints(tmp_path: Path) -> None:
    given: list[Any] = []

    def own(checkpoints: Any) -> list[Checkpoint]:
        given.append(checkpoints)
        return [saved for saved in checkpoints if saved.metrics["loss"] == 1.0 or "paper" in saved.tags]

    with CheckpointStore(_filled(tmp_path / "store")) as store:
        pruned = store.prune(own | keep_last(1), run="a", dry_run=True)
        assert type(given[0]) is list and given[0] == list(store.iterate("a"))
    assert pruned.reasons[1] == ("own",) and pruned.reasons[2] == ("own",)
    assert [checkpoint.version for checkpoint in pruned.removed] == [4]


@pytest.mark.parametrize("count", [0, 3, 250])
def test_an_iterator_prints_as_its_list_does(capsys: pytest.CaptureFixture[str], count: int) -> None:
    rows = [{"version": n, "tags": ["é"]} for n in range(count)]
    for document in (rows, {"a": 1, "rows": rows, "b": []}):
        print_json(document)
        listed = capsys.readouterr().out
        assert json.loads(listed) == document
        print_json({**document, "rows": iter(rows)} if isinstance(document, dict) else iter(rows))
        assert capsys.readouterr().out == listed


@pytest.mark.usefixtures("by_pages")
def test_verification_reads_pages(tmp_path: Path) -> None:
    root = _filled(tmp_path / "store")
    with CheckpointStore(root) as store:
        store.get(3).path.unlink()
        store.get(7).path.chmod(0o644)
        store.get(7).path.write_bytes(b"cut")
        assert [(problem.kind, problem.version) for problem in store.verify()] == [
            ("missing", 3),
            ("size", 7),
        ]
    assert CheckpointStore.rebuild(root) == [], "the manifest is sound"


@pytest.mark.usefixtures("by_pages")
def test_a_runs_checkpoints_are_removed_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore.commit.retention.deletion._BATCH", 2)
    with CheckpointStore(_filled(tmp_path / "store")) as store:
        store._manifest.checkpoints.set_state([4], "missing")
        remove_checkpoints(store._layout, store._manifest, ["a"])
        assert [checkpoint.version for checkpoint in store.iterate(states=None)] == [3, 6]
        assert len(list((store.path / "checkpoints").iterdir())) == 2 and store.verify() == []
        store._manifest.checkpoints.set_state([3, 6], "deleting")
    with CheckpointStore(store.path) as store:
        assert list(store.iterate(states=None)) == [] == list((store.path / "checkpoints").iterdir())


@pytest.mark.usefixtures("by_pages")
def test_a_save_is_found_by_its_time(tmp_path: Path) -> None:
    manifest = Manifest.open(tmp_path / "manifest.sqlite")
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 2, 3)]
    for moment in moments:
        add(manifest, "a", created_at=moment)
    add(manifest, "b", created_at=moments[0])
    assert [manifest.checkpoints.saved_at("a", moment).version for moment in moments] == [1, 3, 3, 4]
    manifest.checkpoints.set_state([3], "damaged")
    assert manifest.checkpoints.saved_at("a", moments[1]).version == 2
    assert manifest.checkpoints.saved_at("b", moments[0]).version == 5
    assert (
        manifest.checkpoints.saved_at("b", moments[1]) is None
        and manifest.checkpoints.saved_at("c", moments[0]) is None
    )
    manifest.close()
