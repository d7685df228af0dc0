"""Trainers and workers that are killed: each submitted snapshot is saved once, and nothing is left behind."""

from __future__ import annotations

import pytest

from ckptstore.background.program import can_start
from crash import kill_writer
from crash.strace import available

pytestmark = pytest.mark.skipif(not can_start(), reason="this platform has no memfd or pidfd")


@pytest.mark.slow
def test_a_worker_killed_at_any_call_is_replaced_and_nothing_is_lost_or_saved_twice() -> None:
    """Kills at every kind of system call, and at one in 40 calls; `tools/crash writers` kills at all of them."""
    if not available():
        pytest.skip("strace is not available here, or may not attach")
    result = kill_writer.kill_at_calls(stride=40)
    assert result.violations == ()
    assert result.kills >= 12
    assert result.ended_first == 1


@pytest.mark.slow
def test_trainer_and_worker_killed_at_any_moment_lose_nothing_reported_as_saved() -> None:
    result = kill_writer.kill_at_random(kills=9, seed=2)
    assert result.violations == ()
    assert result.kills == 9
