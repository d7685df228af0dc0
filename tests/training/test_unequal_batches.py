"""Processes of a fit that do not see equally many batches end within seconds, and say what was unequal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import keras
import pytest

import unequal_fits
from ckptstore import CheckpointStore, UnequalBatchesError
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.training.job import leaving
from ckptstore.training.job.fit_job import FitJob
from ckptstore.training.job.job_stop import JobStop

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras distributes a fit on JAX alone")


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("unequal")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", unequal_fits.__file__, folder],
        env={**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    for case, processes in found.items():
        with CheckpointStore(folder / case) as store:
            assert store.verify() == []
            (attempt,) = store.attempts()
            steps = [checkpoint.step for checkpoint in store.checkpoints()]
            processes.append({"steps": steps, "end": attempt.reason, **attempt.detail})
    return found


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "longer", "said", "saved"),
    [
        ("1 has a batch more", 1, "epoch 1 has had 4 training batches on process 0, and 5 so far", []),
        (
            "0 validates on a batch more",
            0,
            "epoch 1 has had 2 validation batches on process 1, and 3 so far",
            [],
        ),
        ("1 stops", 0, "epoch 2 has had 2 training batches on process 1, and 3 so far", [4]),
    ],
)
def test_unequal_batches_end_a_fit_on_both_processes(
    fits: dict[str, list[dict[str, Any]]], case: str, longer: int, said: str, saved: list[int]
) -> None:
    *processes, store = fits[case]
    stuck, waits = processes[longer], processes[1 - longer]
    assert (stuck["code"], waits["code"]) == (1, 1), processes
    text = f"{said} on process {longer}"
    assert stuck["log"].count(f"ckptstore: {text} (give every process equally many batches") == 1
    assert "it leaves with exit code 1 when all other processes exit" in stuck["log"]
    assert "Traceback" not in stuck["log"]
    # It waited in Python for a decision or a save: there an exception ends it.
    error = f"PeerFailedError: process {longer} has given up: UnequalBatchesError: {text}"
    assert error in waits["log"]
    assert store["steps"] == saved
    assert (store["end"], said in store["message"]) == ("exception", True)


@on_jax
@pytest.mark.slow
def test_a_process_in_a_step_ends_soon_after_one_that_an_exception_has_ended(
    fits: dict[str, list[dict[str, Any]]],
) -> None:
    stuck, failed, store = fits["1 fails"]
    assert (stuck["code"], failed["code"]) == (1, 1), fits["1 fails"]
    assert "ckptstore: process 1 has given up: ZeroDivisionError: its own fault; a step" in stuck["log"]
    assert "ZeroDivisionError: its own fault" in failed["log"]
    assert (store["steps"], store["end"]) == ([4], "exception")


@on_jax
@pytest.mark.slow
def test_equal_batches_and_a_long_callback_on_one_process_are_no_fault(
    fits: dict[str, list[dict[str, Any]]],
) -> None:
    *processes, store = fits["equal"]
    for found in processes:
        assert found["code"] == 0, found
        assert "ckptstore:" not in found["log"]
    assert (store["steps"], store["end"]) == ([6, 12], "finished")


def job_of(service: MemoryService, process: int) -> FitJob:
    job = Job(kind="memory", by="memory", process=process, processes=2, found_in="here")
    messages = ServiceMessages(service, process=process, service="memory")
    return FitJob(job, messages, JobSession(job, messages, "token"))


def test_epochs_of_other_lengths_whose_steps_have_met_by_chance_are_an_error_at_the_epochs_end() -> None:
    first, second = jobs = [job_of(MemoryService(), process) for process in (0, 1)]
    for job, batches in zip(jobs, (10, 11), strict=True):
        job.counts.begin_epoch(0).training = batches
    second._messages._client = first._messages._client  # type: ignore[attr-defined]
    assert first.agree_at_epoch_end(stops=False) is False
    with pytest.raises(UnequalBatchesError) as caught:
        second.agree_at_epoch_end(stops=False)
    second.give_up(caught.value)
    # And the other one at its next batch, before it saves what is of both epochs.
    stop = JobStop(first.stop, [signal.SIGTERM], check=first.watch.check)
    stop.reached(11, epoch_ended=False)
    for _ in range(4):
        first.watch()
    with pytest.raises(Exception, match=r"process 1 has given up|10 training batches on process 0"):
        stop.reached(12, epoch_ended=False)
    for job in jobs:
        job._messages.close()


def test_only_a_call_of_the_framework_counts_as_a_step_that_cannot_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    began = threading.Event()
    found: list[leaving.Leaving] = []

    def train() -> None:
        found.append(
            leaving.Leaving(
                Job(kind="jax", by="jax", process=0, processes=2, found_in="here"),
                job_of(MemoryService(), 0).session,
            )
        )
        began.set()
        release.wait()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    began.wait()
    assert [found[0].stuck_s(now) for now in (0.0, 5.0)] == [0.0, 0.0]
    monkeypatch.setattr(leaving, "is_in_framework", lambda frame: True)
    assert [found[0].stuck_s(now) for now in (10.0, 15.0, 21.0)] == [0.0, 5.0, 11.0]
    release.set()
    thread.join()
    assert found[0].stuck_s(30.0) == 0.0
