"""Tests of a fit in several processes: each callback refuses it in each process, at once and before it makes a file."""

from __future__ import annotations

from pathlib import Path

import keras

from process_groups import results_of

BACKEND = keras.backend.backend()
CALLBACKS = ("StoreCheckpoint", "ModelCheckpoint", "BackupAndRestore")


def test_a_fit_in_several_processes_is_refused_in_each(tmp_path: Path) -> None:
    *processes, made = results_of(BACKEND, tmp_path, "several_process_fits:attempts")
    for number, found in enumerate(processes):
        assert "error" not in found, found["error"]
        names = [*CALLBACKS, "alone"] if number == 0 else CALLBACKS
        for name in names:
            error, seconds = found[name]
            assert error is not None, name
            kind, text, process = error
            assert (kind, process) == ("SeveralProcessesError", number)
            assert f"this is process {number} of 2" in text
            assert "ckptstore guide torch-loops" in text
            # It waits for nothing; the first builds the model.
            assert seconds < 60
    error, _ = processes[0]["save"]
    # On torch each process has tensors of its own.
    assert error is None if BACKEND == "torch" else error[0] == "SeveralProcessesError"
    assert not {"store", "models", "backup"} & set(made)
