"""A store whose payloads are directories of members, in local files and as objects: nothing above asks how many.

The formats are ``sharded``, and `directory_format.DirectoryFormat`, which only tests have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from ckptstore.errors import CorruptPayloadError, InvalidArgumentError, StorageError
from ckptstore.formats import payload
from ckptstore.records import Checkpoint
from ckptstore.retention import keep_last
from ckptstore.storage.files import io_hook
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payload_of, payloads_at
from ckptstore.store.contents import layout_of
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save as save_seed
from crash.sample_stores import values_of
from crash.steps import dies_at
from directory_format import DirectoryFormat, registered
from object_payloads import Bucket, mounted_bucket

SHARDED, OTHER = "sharded", "another format"
# The member that holds a kernel of (7, 5), and the words by which verification names it.
KERNELS = {
    SHARDED: ("shards/00000.h5", "shards/00000.h5: layers/dense/vars/0/whole differs"),
    OTHER: ("variables/layers/dense/vars/0", "variables/layers/dense/vars/0 differs"),
}


@pytest.fixture(params=[SHARDED, OTHER])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the name of the format of directories; it is known until the test ends."""
    with known(request.param):
        yield request.param


def known(kind: str) -> AbstractContextManager[None]:
    """Let the format be known for the block; the one of tests takes the place of ``weights``."""
    return nullcontext() if kind == SHARDED else registered(DirectoryFormat())


@pytest.fixture(params=["local files", "objects in memory"])
def root(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / kind / "store"
    place = mounted_bucket(root, Bucket()) if request.param == "objects in memory" else nullcontext()
    with place:
        yield root


def save(store: CheckpointStore, seed: int, **request: object) -> Checkpoint:
    format = SHARDED if store.path.parent.name == SHARDED else "weights"
    return save_seed(store, seed, format=format, **request)


def has_seed(checkpoint: Checkpoint, seed: int) -> bool:
    expected = values_of(seed)
    with payload.open_checkpoint(checkpoint) as found:
        variables, state = found.variables(), found.state()
        return (
            set(variables) == set(expected)
            and all((variables[name] == value).all() for name, value in expected.items())
            and state is not None
            and state.document == {"seed": seed}
        )


def damage(root: Path, checkpoint: Checkpoint, member: str = "") -> None:
    """Change a byte: of a member, or by default of the kernel."""
    kernel = values_of(checkpoint.epoch)["layers/dense/vars/0"].tobytes()
    payloads = payloads_at(Layout(root))

    def changed(data: bytes) -> bytes:
        at = 0 if member else data.index(kernel)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    name = member or KERNELS[root.parent.name][0]
    path = payloads.local_path(checkpoint.payload)
    if path is None:
        objects = payloads.bucket.objects  # type: ignore[attr-defined]
        key = f"payloads/{checkpoint.payload}/{name}"
        objects[key] = changed(objects[key])
        return
    data = (path / name).read_bytes()
    (path / name).chmod(0o644)
    (path / name).write_bytes(changed(data))


def test_it_is_saved_found_and_read(root: Path) -> None:
    with CheckpointStore(root) as store:
        for seed in (3, 1, 2):
            save(store, seed)
        best = store.best("loss", mode="min")
        assert best is not None and best.version == 2 and has_seed(best, 1)
        with payload_of(best).open() as stored:
            assert not stored.is_single_file and "description.json" in stored.members
            assert (stored.nbytes, stored.digest()) == (best.nbytes, best.digest)
        assert set(layout_of(best)) == set(values_of(1))
        assert len(store.diff(1, 2).changed) == 3 and store.verify() == [] and store.verify(deep=False) == []
    with CheckpointStore(root, read_only=True) as store:
        assert all(map(has_seed, store.checkpoints(), (3, 1, 2)))


def test_each_damaged_or_missing_member_is_found_named_and_repaired(root: Path) -> None:
    with CheckpointStore(root) as store:
        saved = [save(store, seed) for seed in range(1, 5)]
        damage(root, saved[1])
        damage(root, saved[2], "description.json")
        payloads_at(Layout(root)).remove([saved[3].payload])
        problems = {problem.version: problem for problem in store.verify()}
        assert {version: problem.kind for version, problem in problems.items()} == {
            2: "digest",
            3: "digest",
            4: "missing",
        }
        assert KERNELS[root.parent.name][1] in problems[2].detail
        with pytest.raises(CorruptPayloadError):
            has_seed(saved[1], 2)
        store.repair()
        assert store.verify() == []
        assert payloads_at(Layout(root)).quarantined() == [saved[1].payload, saved[2].payload]
        assert [checkpoint.version for checkpoint in store.checkpoints()] == [1]


def test_what_was_put_aside_whole_is_put_back(root: Path) -> None:
    payloads = payloads_at(Layout(root))
    with CheckpointStore(root) as store:
        saved = save(store, 1)
        payloads.quarantine(saved.payload)
        assert [problem.action for problem in store.repair()] == ["put back from quarantine"]
        assert has_seed(store.get(1), 1) and store.verify() == [] and payloads.quarantined() == []


def test_retention_removes_all_members(root: Path) -> None:
    with CheckpointStore(root) as store:
        for seed in range(1, 6):
            save(store, seed, keep=keep_last(3))
        assert len(store.prune(keep_last(2)).removed) == 1
        assert payloads_at(Layout(root)).names() == [store.get(version).payload for version in (4, 5)]
        assert store.verify() == []


def test_a_lost_manifest_is_rebuilt(root: Path) -> None:
    with CheckpointStore(root) as store:
        saved = [save(store, seed, tags=(f"tag{seed}",)) for seed in range(1, 4)]
        damage(root, saved[1])
    (root / "manifest.sqlite").unlink()
    CheckpointStore.rebuild(root)
    with CheckpointStore(root) as store:
        found = store.checkpoints()
        assert [(checkpoint.version, checkpoint.tags) for checkpoint in found] == [
            (1, ("tag1",)),
            (3, ("tag3",)),
        ]
        assert [(c.nbytes, c.digest) for c in found] == [(saved[i].nbytes, saved[i].digest) for i in (0, 2)]
        assert has_seed(found[0], 1) and store.verify() == []


def test_it_is_copied_to_another_store(root: Path, tmp_path: Path) -> None:
    with CheckpointStore(root) as store, CheckpointStore(tmp_path / "other") as other:
        copied = store.copy(save(store, 5), other)
        assert has_seed(copied.checkpoint, 5)
        assert store.copy(1, other).existing


def test_it_cannot_be_shown_at_a_path(root: Path, tmp_path: Path) -> None:
    with CheckpointStore(root) as store:
        with pytest.raises(InvalidArgumentError, match="directory"):
            format = SHARDED if root.parent.name == SHARDED else "weights"
            store.prepare(None, epoch=1, format=format, publish=tmp_path / "shown.weights.h5")
        assert store.checkpoints() == [] and payloads_at(Layout(root)).names() == []


def test_a_failed_save_leaves_nothing_and_the_next_one_works(kind: str, tmp_path: Path) -> None:
    root = tmp_path / kind / "store"

    def refuse(operation: str, path: Path, phase: str) -> None:
        if operation == "fsync" and path.name == "description.json":
            raise OSError(5, "planted")

    with CheckpointStore(root) as store:
        save(store, 1)
        with io_hook(refuse), pytest.raises(StorageError):
            save(store, 2)
        assert [path.suffix for path in (root / "tmp").iterdir()] == [".lease"]
        assert has_seed(save(store, 3), 3) and store.verify() == []


def test_a_save_that_is_killed_is_complete_or_absent(kind: str, tmp_path: Path) -> None:
    """At every step; in the format of tests at every fourth, which meets each kind of step."""
    found = set()
    for step in itertools.count(1, 1 if kind == SHARDED else 4):
        root = tmp_path / str(step) / kind / "store"
        root.parent.mkdir(parents=True)
        with CheckpointStore(root) as store:
            save(store, 1)
        died = dies_at(step, _save_once, root)
        with CheckpointStore(root) as store:
            first, *later = store.checkpoints()
            assert has_seed(first, 1) and all(has_seed(checkpoint, 7) for checkpoint in later)
            assert store.verify() == [] and not list((root / "tmp").iterdir())
        found.add(len(later))
        if not died:
            break
    assert found == {0, 1} and step > 60


def _save_once(root: Path) -> None:
    with known(root.parent.name), CheckpointStore(root) as store:
        save(store, 7)
