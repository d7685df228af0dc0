"""A save that meets an error or a full disk reports it, loses nothing, and succeeds in the same process afterwards."""

from __future__ import annotations

import pytest

from crash import failing_calls, full_disks
from crash.strace import available


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
