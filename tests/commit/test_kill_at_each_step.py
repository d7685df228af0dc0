"""A process that dies at any step of a save, a publish or a deletion loses nothing that was reported."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptstore.formats import payload
from ckptstore.formats.description import RESERVED
from ckptstore.retention import keep_last
from ckptstore.storage.files import io_hook
from ckptstore.store.store import CheckpointStore
from crash import fork_server
from crash.sample_stores import is_seed, save
from crash.steps import every_death, run_in_child


def _save_third(root: Path, target: Path, report: Path) -> None:
    with CheckpointStore(root) as store:
        checkpoint = save(store, 3, publish=target, keep=keep_last(2))
        report.write_text(str(checkpoint.version))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two checkpoints, and the file that shows the second."""
    folder = tmp_path_factory.mktemp("used")
    with CheckpointStore(folder / "store") as store:
        for seed in (1, 2):
            save(store, seed, publish=folder / "shown.keras")
    return folder


def _prepared(used: Path, folder: Path) -> tuple[Path, Path, Path]:
    subprocess.run(["cp", "-a", used, folder], check=True)  # links as links
    return folder / "store", folder / "shown.keras", folder / "report"


def _assert_whole(root: Path, target: Path, report: Path) -> int:
    """Check the invariants of a store that a save of seed 3 may or may not have reached; returns the newest seed."""
    with CheckpointStore(root) as store:
        checkpoints = store.checkpoints()
        assert store.verify() == []
        for checkpoint in checkpoints:
            assert is_seed(checkpoint.path, checkpoint.epoch)
        newest = checkpoints[-1].epoch
        assert newest in (2, 3)
        if report.exists():
            assert newest == 3
        assert [checkpoint.epoch for checkpoint in checkpoints][-2:] == [newest - 1, newest]
        assert is_seed(target, newest)
        assert store.resume_point() == checkpoints[-1]
        assert store.best("loss") == checkpoints[0]
        save(store, 4, publish=target)
        assert store.latest().version > checkpoints[-1].version
        kept = {path.name for path in store.path.joinpath("checkpoints").iterdir()}
        assert kept == {checkpoint.path.name for checkpoint in store.checkpoints()}
    assert list(root.joinpath("tmp").iterdir()) == []
    assert sorted(path.name for path in target.parent.iterdir() if path.name.startswith(".")) == []
    return newest


def test_a_save_killed_at_any_step_is_complete_or_absent(used: Path, tmp_path: Path) -> None:
    folders = (tmp_path / str(n) for n in itertools.count())
    seen = set()
    for root, target, report in every_death(_save_third, lambda: _prepared(used, next(folders))):
        seen.add(_assert_whole(root, target, report))
    assert seen == {2, 3}


def _first_save(root: Path) -> None:
    with CheckpointStore(root) as store:
        save(store, 1)


def test_the_first_save_of_a_store_may_be_killed_at_any_step(tmp_path: Path) -> None:
    roots = (tmp_path / str(n) / "deep" / "store" for n in itertools.count())
    for (root,) in every_death(_first_save, lambda: (next(roots),)):
        with CheckpointStore(root) as store:
            assert store.verify() == []
            assert all(is_seed(checkpoint.path, 1) for checkpoint in store.checkpoints())
            save(store, 2)
            assert is_seed(store.latest().path, 2)


def _open(root: Path) -> None:
    with CheckpointStore(root):
        pass


def test_an_opening_killed_at_any_step_is_finished_by_the_next(used: Path, tmp_path: Path) -> None:
    """Recovery from a save that died with its row missing, its path not switched, and a row marked for deletion."""

    def prepare() -> tuple[Path]:
        root, target, _ = _prepared(used, tmp_path / str(next(numbers)))
        with CheckpointStore(root) as store:
            third = save(store, 3, publish=target)
            store._manifest.checkpoints.set_state([1], "deleting")
            orphan = third.path.with_name("00000009-default.keras")
            third.path.rename(orphan)
            _rewrite_as(orphan, version=9)
        (root / "tmp" / f"{'0' * 32}.1.keras").write_bytes(b"half")
        return (root,)

    numbers = itertools.count()
    for (root,) in every_death(_open, prepare):
        with CheckpointStore(root) as store:
            assert [checkpoint.version for checkpoint in store.checkpoints()] == [2, 9]
            assert [problem.kind for problem in store.verify()] == ["missing"]
            assert [checkpoint.version for checkpoint in store.checkpoints(states=["missing"])] == [3]
        assert list(root.joinpath("tmp").iterdir()) == []


def _rewrite_as(path: Path, *, version: int) -> None:
    """Write a payload again under another version, as a crash between rename and commit would leave it."""
    from ckptstore.storage.durable_writer import DurableWriter
    from crash.sample_stores import snapshot_of

    description = {**payload.read_description(path), "version": version}
    for computed in RESERVED:
        description.pop(computed, None)
    path.unlink()
    encoded = payload.encode(snapshot_of(3), description)
    writer = DurableWriter(path, reserve=encoded.nbytes)
    encoded.members[0].write(writer)
    writer.finish()


@pytest.mark.parametrize("code", [28, 5], ids=["ENOSPC", "EIO"])
def test_an_error_at_any_step_reports_nothing_and_leaves_the_store_working(
    used: Path, tmp_path: Path, code: int
) -> None:
    for at in itertools.count(1):
        root, target, report = _prepared(used, tmp_path / str(at))
        steps = itertools.count(1)

        def fail(operation: str, path: Path, phase: str, steps=steps, at=at) -> None:
            if next(steps) == at:
                raise OSError(code, os.strerror(code))

        with CheckpointStore(root) as store:
            store.claim("default")
            try:
                with io_hook(fail):
                    save(store, 3, publish=target, keep=keep_last(2))
                failed = False
            except OSError as error:
                failed = True
                assert error.errno == code
            # What fails after the COMMIT (switching the path, retention) leaves the checkpoint in the store.
            if failed and store.latest().epoch != 3:
                assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [1, 2]
                assert is_seed(target, 2)
                save(store, 3, publish=target, keep=keep_last(2))
        _assert_whole(root, target, report)
        if not failed:
            assert at > 10
            return


def test_a_payload_is_synced_before_its_rename_and_the_rename_before_its_row(tmp_path: Path) -> None:
    """The order that a power cut needs; a process that merely dies would not notice a sync left out."""
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1)
        steps: list[tuple[str, str, int]] = []

        def note(operation: str, path: Path, phase: str) -> None:
            if phase == "after":
                where = path.name if path.suffix == "" else path.suffix
                with CheckpointStore(store.path, read_only=True) as reader:
                    steps.append((operation, where, len(reader.checkpoints())))

        with io_hook(note):
            save(store, 2)
    order = [step for step in steps if step[0] in ("write", "fsync", "close", "rename")]
    assert [(operation, where) for operation, where, _ in order][-5:] == [
        ("fsync", ".keras"),
        ("close", ".keras"),
        ("rename", ".keras"),
        ("fsync", "checkpoints"),
        ("fsync", "tmp"),
    ]
    assert {listed for _, _, listed in order} == {1}


def _end_with_what_is_missing() -> None:
    sys.exit(", ".join(name for name in fork_server.ALWAYS if name not in sys.modules) or 0)


def test_children_need_not_import_what_they_use() -> None:
    """A server passes over modules that it does not find; the tests would only be slow."""
    assert run_in_child(_end_with_what_is_missing) == 0
