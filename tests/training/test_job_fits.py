"""Fits that two processes of JAX run together: resumed to the bit, stopped at one step, refused by all or by none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

import ckptstore
from process_groups import results_of

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras distributes a fit on JAX alone"
)


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")


@pytest.mark.usefixtures("two_devices")
def test_a_fit_of_two_processes_that_is_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    *processes, _made = results_of("jax", tmp_path, "job_fits:exact")
    for found in processes:
        assert "error" not in found, found["error"]
        for kind in ("2d", "data", "opaque"):
            undisturbed, resumed = found[kind], found[f"{kind} resumed"]
            assert resumed["digest"] == undisturbed["digest"]
            assert resumed["history"] == undisturbed["history"]
            assert (undisturbed["resumed"], undisturbed["ended"]) == (None, "finished")
            assert undisturbed["last"][:2] == [12, "sharded"]
        assert len(found["data ended"]["history"]["loss"]) == 2
        assert found["data ended"]["last"][0] == 8
        assert found["data ended again"]["history"] == found["data ended"]["history"]
        assert found["data ended again"]["digest"] == found["data ended"]["digest"]
        assert found["2d failed"]["ended"] == "failure"
        assert found["2d resumed"]["resumed"] == 6
        # Its first epoch ends as the best so far, and is saved, too.
        assert found["opaque resumed"]["resumed"] == 7
        for name in ("data stopped", "data stopped early"):
            assert found[name]["ended"] == ["SIGTERM", 75]
        # That a model cannot be saved whole is said where nobody asked for weights alone.
        said = {name: "".join(found[name]["warned"]) for name in ("opaque", "opaque resumed")}
        assert "its checkpoints hold weights, optimizers and training state" in said["opaque"]
        assert "checkpoints hold weights" not in said["opaque resumed"]
    first, second = processes
    # In 2D each process has parts that the other has not.
    assert first["2d"]["digest"] != second["2d"]["digest"]
    assert first["data"]["digest"] == second["data"]["digest"]
    for name in first:
        assert first[name]["last"] == second[name]["last"], name
    stopped = first["data stopped"]["last"][0]
    assert stopped >= 5
    assert first["data resumed"]["resumed"] == second["data resumed"]["resumed"] == stopped
    for name in ("2d", "failed", "data", "stopped", "opaque", "opaque-failed"):
        with ckptstore.CheckpointStore(tmp_path / name) as store:
            assert store.verify() == []
            assert {checkpoint.format for checkpoint in store.checkpoints()} == {"sharded"}
            assert list((store.path / "tmp").iterdir()) == []
    with ckptstore.CheckpointStore(tmp_path / "stopped") as store:
        attempts = store.attempts("default")
        assert [attempt.reason for attempt in attempts] == ["preempted", "finished"]
        model = store.latest().load_model()
        assert model.count_params() > 0

    with ckptstore.CheckpointStore(tmp_path / "opaque") as store:
        with pytest.raises(ckptstore.InvalidArgumentError, match="holds weights only"):
            store.latest().load_model()
        with pytest.raises(ckptstore.InvalidArgumentError, match="without the model's configuration"):
            store.export("latest", tmp_path / "opaque.keras")
        assert not (tmp_path / "opaque.keras").exists()
        assert store.export("latest", tmp_path / "opaque.weights.h5").format == "weights"
        assert (store.export("latest", tmp_path / "opaque-folder").path / "model.weights.h5").exists()


def test_what_several_processes_cannot_do_each_of_them_refuses(tmp_path: Path) -> None:
    *processes, made = results_of("jax", tmp_path, "job_fits:refused")
    texts: dict[str, list[Any]] = {}
    for number, found in enumerate(processes):
        assert "error" not in found, found["error"]
        for name, (error, seconds) in found.items():
            assert error is not None, name
            assert seconds < 60
            texts.setdefault(name, []).append(error)
        for name in ("ModelCheckpoint", "BackupAndRestore", "auto", "interval", "losses"):
            kind, text = found[name][0]
            assert kind == "SeveralProcessesError"
            assert f"this is process {number} of 2" in text
            assert "ckptstore guide several-processes" in text
        # Before the first batch.
        kind, text = found["form of its own"][0]
        assert kind == "SeveralProcessesError" and "saves in a form of its own" in text
        assert found["own weights"][0][0] == "ModelNotReadyError"
    assert "a number of batches" in texts["auto"][0][1]
    assert texts["must"][0][0] == "StoreNotFoundError"
    assert texts["must"][1][0] == "PeerFailedError"
    assert "process 0 has given up: StoreNotFoundError" in texts["must"][1][1]
    assert {kind for kind, _ in texts["mismatch"]} <= {"ModelMismatchError", "ResumeRefusedError"}
    assert all("(Dense).units is 16" in text for _, text in texts["mismatch"])
    for kind, text in texts["own store"]:
        assert kind == "ResumeRefusedError"
        assert "own-1" in text and "each needs the same directory" in text
    assert [kind for kind, _ in texts["own save_freq"]] == ["PeerFailedError", "InvalidArgumentError"]
    assert all("is 2 on process 0, and this is process 1" in text for _, text in texts["own save_freq"])
    for name, numbers in {"epochs": "epochs=3: is 2", "batches": "steps_per_epoch=3: is 2"}.items():
        assert [kind for kind, _ in texts[f"own {name}"]] == ["PeerFailedError", "InvalidArgumentError"]
        assert all(
            f"{numbers} on process 0, and this is process 1" in text for _, text in texts[f"own {name}"]
        )
    assert texts["alone"][0][0] == "JobIncompleteError"
    assert not {"best.keras", "backup", "store"} & set(made)
