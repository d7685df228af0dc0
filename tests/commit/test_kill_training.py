"""A training killed at any system call, or at any moment, has lost nothing that it reported, and resumes by itself."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest

from ckptstore.storage import durable_writer
from crash import kill_training
from crash.planted_faults import LEASE
from crash.strace import KILLED, available, run_traced

RENAMES = "?rename,?renameat,renameat2"


@pytest.fixture(scope="module", autouse=True)
def needs_strace() -> None:
    assert keras.backend.backend() == kill_training.use_keras()
    if not available():
        pytest.skip("strace is not to be had here, or may not attach")


@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_fit_killed_at_any_call_has_lost_nothing_that_it_reported() -> None:
    """Every kind of call, and one in so many; `tools/crash kills` kills at all of them."""
    result = kill_training.kill_everywhere(stride=170)
    assert result.violations == ()
    assert result.kills >= 20
    # Behind the last call from an empty folder, from a used one, and in two threads that write.
    assert result.ended_first == 4


@pytest.mark.slow
def test_a_fit_killed_at_any_moment_has_lost_nothing_that_it_reported() -> None:
    result = kill_training.kill_at_random(kills=12, seed=1)
    assert result.violations == ()
    assert result.kills == 12


def _fit_in_small_pieces(root: Path, report: Path) -> None:
    """Write a payload by several calls, as a large one is."""
    durable_writer._BUFFER = 4096
    kill_training.fit(root, report)


def test_the_thread_that_writes_a_payload_is_killed_by_its_own_calls(tmp_path: Path) -> None:
    log, payload = tmp_path / "log", tmp_path / ".ckptstore" / "tmp" / f"{LEASE}.3.keras"
    options = ["-P", str(payload), "-e", "trace=fallocate,write", "-e", "inject=write:signal=SIGKILL:when=4"]
    assert run_traced(_fit_in_small_pieces, (tmp_path, tmp_path / "report"), options, log=log) == KILLED
    calls = re.findall(r"^(\d+) +(fallocate|write)\(", log.read_text(encoding="utf-8"), re.MULTILINE)
    (training, reserved), *written = calls
    assert reserved == "fallocate"
    assert [name for _, name in written] == ["write"] * 4
    assert {thread for thread, _ in written}.isdisjoint({training})


@pytest.mark.parametrize(
    ("fault", "calls", "found"),
    [
        ("row before rename", RENAMES, "missing: the payload is not there"),
        ("no publishing after a crash", "?link,linkat", "does not show the newest"),
    ],
)
@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_planted_fault_is_found(fault: str, calls: str, found: str) -> None:
    result = kill_training.kill_everywhere(stride=3, calls=calls, starts=["used"], fault=fault)
    assert any(found in line for line in result.violations), result
