"""Models that several processes share: saved by all, each its part, and restored on each; in real jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.formats import payload
from ckptstore.keras.model.adapter import adapter
from ckptstore.storage.payloads.at import payload_of
from process_groups import results_of
from shared_models import checkpoint_at, put, said

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="is JAX's")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


def passed(results: list[Any]) -> list[dict[str, Any]]:
    *processes, _ = results
    for found in processes:
        assert "error" not in found, found["error"]
    return processes


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder in which two processes of JAX have saved, and what they say."""
    folder = tmp_path_factory.mktemp("two")
    return folder, passed(results_of("jax", folder, "shared_jax_models:save_and_resume", devices=4))


@on_jax
def test_two_processes_save_their_shards_and_resume_exactly(
    saved_by_two: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, (first, second) = saved_by_two
    for one, other in zip(first["layouts"].values(), second["layouts"].values(), strict=True):
        for found in (one, other):
            assert found["same"] and found["exact"] and found["warned"] == []
        assert one["plan"] == other["plan"]
        assert one["owned"] + other["owned"] == one["whole"]
        assert abs(one["owned"] - other["owned"]) < one["whole"] / 20
    # A byte that process 1 alone reads.
    assert first["damage"][0] == []  # it reads other members
    (kind, text), unchanged = second["damage"]
    assert kind == "CorruptPayloadError" and "shards/00001.h5" in text and unchanged
    for found in (first, second):
        (kind, text), unchanged = found["layer"]
        assert kind == "RefusedByLayerError" and "will not have it" in text and unchanged
        kinds, texts = zip(*found["refused"], strict=True)
        assert kinds == (
            *["SeveralProcessesError"] * 2,
            "SplitValueError",
            "SeveralProcessesError",
            "ModelNotReadyError",
        )
        assert "StoreCheckpoint in the fit of every process" in texts[0] and "format 'keras'" in texts[1]
        assert "tuned" in texts[3] or "layers/dense" in texts[3]
        assert "set_distribution" in texts[4]


@on_jax
def test_other_numbers_of_processes_restore_equal_values_on_other_layouts(
    saved_by_two: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from shared_jax_models import made

    saved, _ = saved_by_two
    stores = {name: saved / name for name in ("data", "both")}
    alone = made("alone", 5, rank=0)
    for format in ("keras", "weights", "sharded"):
        stores[format] = tmp_path / format
        with ckptstore.CheckpointStore(stores[format]) as store:
            written = store.save(alone, epoch=0, format=format)
        put(stores[format] / "meeting" / "committed", [written.nbytes, written.digest])
    folder = tmp_path / "four"
    folder.mkdir()
    put(folder / "stores.json", {name: str(path) for name, path in stores.items()})
    processes = passed(
        results_of("jax", folder, "shared_jax_models:restore_elsewhere", processes=4, devices=2)
    )
    for found in processes:
        assert len(found) == 7
        assert found.pop("four") == [True, []]
        assert found.pop("weights")[1] == []
        for count, warned in found.values():
            assert count == 25
            (line,) = warned
            assert "is restored by 4 processes" in line and "not promised to be exact" in line
    # One process restores what several have saved.
    model = made("alone", 6)
    checkpoint = checkpoint_at(stores["both"])
    (line,) = said(adapter.restore, model, checkpoint)
    assert "was saved by 2 processes and is restored by 1 process" in line
    with payload.open_payload(payload_of(checkpoint)) as opened:
        variables = opened.variables()
        kernel = next(one for one in model.variables if one.path.endswith("first/kernel"))
        assert np.asarray(kernel.value).tobytes() == variables["layers/dense/vars/0"].tobytes()
        assert opened.state(1) is not None


@pytest.mark.skipif(BACKEND == "jax", reason="has no replicas")
def test_replicas_resume_exactly_with_what_differs_between_them(tmp_path: Path) -> None:
    first, second = passed(results_of(BACKEND, tmp_path, "shared_replicas:save_and_resume"))
    for found in (first, second):
        assert found["same"] and found["exact"] and found["warned"] == []
    assert first["owned"] > 0 == second["owned"]
    different = {
        path
        for (path, one), (_, other) in zip(first["values"], second["values"], strict=True)
        if one != other
    }
    statistics = {path for path, _ in first["values"] if "moving" in path}
    assert statistics <= different and not any("frozen" in path or "kernel" in path for path in different)
    assert not first["own"]
    if BACKEND == "torch":
        assert {path.partition("/")[2] for path in second["own"]} == statistics
        for kept, whole in (first["file"], second["file"]):
            assert kept == []  # what such a loop restores besides is its own affair
            assert len(whole) == 1 and "was saved by 1 process and is restored by 2 processes" in whole[0]
