"""A save that meets an error or a full disk reports it, loses nothing, and succeeds in the same process afterwards."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from ckptstore.errors import StorageError
from ckptstore.store.store import CheckpointStore
from crash import failing_calls, full_disks
from crash.sample_stores import save
from crash.strace import available, run_traced


@pytest.fixture
def needs_strace() -> None:
    if not available():
        pytest.skip("strace is not to be had here, or may not attach")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_strace")
def test_a_call_that_fails_loses_nothing_and_saving_works_again() -> None:
    """Every kind of call, and one in so many, once and from then on; `tools/crash errors` fails all of them."""
    result = failing_calls.inject_errors(stride=37)
    assert result.violations == ()
    assert result.tried >= 30


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize(
    ("fault", "calls", "found"),
    [
        ("leaves temporary files", "write", "are left behind"),
        ("ignores sync errors", "fsync", "the error was ignored"),
        ("retries a sync", "fsync", "the error was ignored"),
    ],
)
def test_a_planted_fault_is_found(fault: str, calls: str, found: str) -> None:
    result = failing_calls.inject_errors(
        stride=20, errors=["EIO"], groups=[(calls, failing_calls.PAYLOADS)], fault=fault
    )
    assert any(found in line for line in result.violations), result


@pytest.mark.parametrize("kind", full_disks.DISKS)
def test_a_save_on_a_full_disk_changes_nothing_and_succeeds_once_there_is_space(kind: str) -> None:
    if not full_disks.can_mount():
        pytest.skip("this process may not mount a small disk to fill")
    result = full_disks.fill_disk(kind, step=12_288)
    assert result.violations == ()
    assert result.tried >= (2 if "files" in kind else 10)


def _save_twice(root: Path, report: Path) -> None:
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with CheckpointStore(root) as store:
            for seed in (1, 2):
                try:
                    save(store, seed)
                except StorageError as error:
                    said.append(f"{error.operation}: {error.strerror or error.errno}")
    report.write_text("\n".join([*said, *(str(warning.message) for warning in caught)]))


@pytest.mark.usefixtures("needs_strace")
def test_a_lock_file_that_cannot_be_closed_or_unlocked_is_our_error(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        store.claim("default")

    def report(lock: str, call: str, injected: str) -> str:
        path = tmp_path / "store" / "locks" / lock
        options = ["-e", f"trace={call}", "-e", f"inject={call}:{injected}", "-P", str(path)]
        assert run_traced(_save_twice, (tmp_path / "store", tmp_path / "report"), options) == 0
        with CheckpointStore(tmp_path / "store") as store:
            assert save(store, 3).epoch == 3 and store.verify() == []
        return (tmp_path / "report").read_text()

    assert "default.lock: the lock file could not be closed" in report("default.lock", "close", "error=EIO")
    # Every other call unlocks; the first ones open the store and take the run.
    reports = [report("store.lock", "flock", f"error=EIO:when={number}") for number in (12, 13)]
    assert sorted(reports) == ["lock: 5", "unlock: 5"]
