"""Fits that real processes run together, disturbed at some steps of a save; `tools/crash jobs` tries them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from unittest import mock

import keras
import pytest

from crash.jobs.faults import damaged, full_disk, interrupted, second_job
from crash.jobs.kills import kill_at, stop_at
from crash.jobs.trials import Trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras distributes a fit on JAX alone"),
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with mock.patch.dict(os.environ, JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3"):
        yield Trials(tmp_path_factory.mktemp("jobs"))


def with_fault(trials: Trials, fault: str) -> Trials:
    """Return the same trials with a planted fault."""
    faulty = Trials(trials.folder, fault=fault)
    faulty.undisturbed = trials.undisturbed
    return faulty


@pytest.mark.parametrize(
    ("victim", "point", "outcome"),
    [
        (0, "< tell decision", "committed"),
        (1, "< tell answer/1", "absent"),
    ],
)
def test_after_a_kill_the_job_ends_as_one_that_nobody_disturbed(
    trials: Trials, victim: int, point: str, outcome: str
) -> None:
    row = kill_at(trials, victim, point)
    assert row.violations == []
    assert row.outcome.split(", ")[0] == outcome  # process 0 may have swept by itself
    assert row.processes[victim] == "killed"
    assert row.processes[1 - victim] not in ("killed", "finished")


def test_a_process_that_is_stopped_past_the_limit_costs_one_save(trials: Trials) -> None:
    row = stop_at(trials, 1, "< fsync shards/00001.h5")
    assert row.violations == []
    assert row.outcome == "abandoned"
    for text in row.processes.values():
        assert "was abandoned: process 1 did not report within 2 s" in text


def test_a_full_disk_of_one_host_is_told_by_all(trials: Trials) -> None:
    row = full_disk(trials, 1, "full")
    assert row.violations == []
    assert row.outcome == "abandoned"


def test_all_step_back_from_a_member_that_one_process_cannot_read(trials: Trials) -> None:
    store = interrupted(trials)
    row = damaged(trials, store, "shards/00001.h5", "of another save")
    assert row.violations == []
    assert row.outcome == "resumed at step 3"
    assert "process 1: shards/00001.h5 differs from its digest" in row.processes[0]
    assert "process 1 cannot read version 2: shards/00001.h5 differs from its digest" in row.processes[1]
    faulty = damaged(with_fault(trials, "confirms everything"), store, "shards/00001.h5", "a bit flipped")
    assert faulty.violations


def test_a_second_job_is_refused_and_does_not_disturb_the_first(trials: Trials) -> None:
    assert second_job(trials).violations == []


def test_a_planted_fault_is_found(trials: Trials) -> None:
    row = kill_at(with_fault(trials, "row before rename"), 0, "< rename payload")
    assert [line for line in row.violations if line.startswith("verify: missing")], row
