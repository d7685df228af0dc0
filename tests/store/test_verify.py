"""`verify` finds all damage, reports it, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save


@pytest.fixture(params=["keras", "weights"])
def store(tmp_path: Path, request: pytest.FixtureRequest):
    with CheckpointStore(tmp_path / "store") as store:
        for seed in (1, 2, 3):
            save(store, seed, format=request.param)
        yield store


def _change(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def _kinds(store: CheckpointStore, **how: bool) -> list[tuple[str, int | None]]:
    return [(problem.kind, problem.version) for problem in store.verify(**how)]


def test_an_intact_store_has_no_problems_and_progress_adds_up(store: CheckpointStore) -> None:
    parts: list[int] = []
    assert store.verify(progress=parts.append) == []
    total = sum(point.nbytes for point in store.checkpoints())
    assert sum(parts) == total
    parts.clear()
    assert store.verify(deep=False, progress=parts.append) == []
    assert sum(parts) == total


def test_every_flipped_byte_of_a_payload_is_found(store: CheckpointStore) -> None:
    path = store.get(2).path
    content = path.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 97)):
        changed = bytearray(content)
        changed[position] ^= 0x10
        _change(path, bytes(changed))
        assert _kinds(store) == [("digest", 2)]
        assert _kinds(store, deep=False) == []
    _change(path, content)
    assert store.verify() == []


def test_the_damaged_variable_is_named(store: CheckpointStore) -> None:
    from crash.sample_stores import values_of

    path = store.get(2).path
    content = path.read_bytes()
    data = values_of(2)["layers/dense/vars/0"].tobytes()
    assert content.count(data) == 1
    _change(path, content.replace(data, bytes(len(data))))
    (problem,) = store.verify()
    assert "layers/dense/vars/0" in problem.detail and "vars/1" not in problem.detail


def test_truncated_missing_and_swapped_payloads_are_found(store: CheckpointStore) -> None:
    one, two, three = (store.get(version).path for version in (1, 2, 3))
    content = one.read_bytes()
    _change(one, content[:-1])
    two.unlink()
    assert _kinds(store) == [("size", 1), ("missing", 2)] == _kinds(store, deep=False)
    assert len(content) == three.stat().st_size
    _change(three, content)
    assert _kinds(store)[-1] == ("identity", 3)


def test_a_payload_without_a_row_is_reported(store: CheckpointStore) -> None:
    stray = store.path / "checkpoints" / "00000009-x.keras"
    stray.write_bytes(b"")
    (problem,) = store.verify()
    assert (problem.kind, problem.version, problem.path) == ("orphan", None, stray)
    assert problem.to_json() == {
        "kind": "orphan",
        "detail": problem.detail,
        "version": None,
        "path": str(stray),
    }
