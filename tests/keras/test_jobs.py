"""The processes that a backend connects: found, and their messages over the backend's own service, in a real job."""

from __future__ import annotations

from pathlib import Path

import keras

from ckptstore.keras.private import find_job
from message_checks import CHECKS, check_fits
from process_groups import results_of

BACKEND = keras.backend.backend()
BY = {"jax": "jax.distributed", "torch": "torch.distributed", "tensorflow": "MultiWorkerMirroredStrategy"}


def test_two_processes_find_each_other_and_their_messages_pass_all_checks(tmp_path: Path) -> None:
    *processes, _ = results_of(BACKEND, tmp_path, "message_checks:in_process")
    for number, found in enumerate(processes):
        assert "error" not in found, found["error"]
        assert found["job"] == [BACKEND, BY[BACKEND], number, 2, None]
        assert found["imported"] == []
        assert {name: found[name] for name in CHECKS} == dict.fromkeys(CHECKS, "passed")
    check_fits([found["fit"] for found in processes])


def test_a_process_by_itself_has_no_others() -> None:
    for backend in ("jax", "torch", "tensorflow", "numpy"):
        job = find_job(backend, keras.Sequential())
        assert job is None or not job.has_others
