"""The comparison of two checkpoints: metrics, and the exact change of each variable; damage is found first."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ckptstore.cli.main import main
from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.snapshot import Snapshot, Variable
from ckptstore.store import diff
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of, save, values_of


def put(store: CheckpointStore, **arrays: np.ndarray) -> int:
    """Save arrays as the variables of a checkpoint."""
    variables = tuple(
        Variable(path=f"{name}/vars/0", shape=value.shape, dtype=value.dtype, read=partial(np.asarray, value))
        for name, value in arrays.items()
    )
    store.claim("default")
    snapshot = Snapshot(format="weights", variables=variables)
    return committer_of(store).commit(snapshot, SaveRequest(run="default", epoch=0)).version


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    with CheckpointStore(tmp_path / "store") as store:
        yield store


def test_how_far_each_variable_moved(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "_PART", 3)
    save(store, 1, metrics={"loss": 0.5, "old": 1.0})
    save(store, 2, metrics={"loss": 0.25, "new": 2.0})
    found = store.diff(1, 2)
    assert found.metrics == {"loss": (0.5, 0.25), "old": (1.0, None), "new": (None, 2.0)}
    first, second = values_of(1), values_of(2)
    assert [change.path for change in found.variables] == list(first)
    for change in found.variables:
        before, after = first[change.path].astype("f8"), second[change.path].astype("f8")
        assert change.shape == before.shape
        assert change.norm == pytest.approx(np.linalg.norm(before.ravel()), rel=1e-12)
        assert change.change_norm == pytest.approx(np.linalg.norm((after - before).ravel()), rel=1e-12)
        assert change.change_max == np.abs(after - before).max()
        assert change.changed_share == 1
    assert store.diff(1, 1).changed == []


def test_a_partial_change_and_values_that_are_not_numbers(store: CheckpointStore) -> None:
    before = {
        "part": np.arange(8, dtype="float32"),
        "same": np.array([np.nan, np.inf, 1], "float32"),
        "nan": np.ones(3, "float32"),
        "bits": np.zeros(2, "float32"),
        "half": np.ones(4, ml_dtypes.bfloat16),
        "bools": np.array([True, False]),
        "empty": np.zeros((0, 3), "float32"),
        "shape": np.zeros(3, "float32"),
        "gone": np.zeros(1),
    }
    after = {**{name: value.copy() for name, value in before.items() if name not in ("gone", "shape")}}
    after["part"][[1, 5]] += np.array([3, -4], "float32")
    after["nan"][1] = np.nan
    after["bits"][0] = -0.0
    after["half"][:] = 3
    after["bools"][1] = True
    after |= {"shape": np.zeros((3, 1), "float32"), "new": np.zeros(1)}
    put(store, **before)
    put(store, **after)
    found = store.diff(1, 2)
    changes = {variable.path.split("/")[0]: variable for variable in found.variables}
    assert (changes["part"].change_norm, changes["part"].change_max, changes["part"].changed_share) == (
        5,
        4,
        0.25,
    )
    assert changes["same"].changed_share == changes["same"].change_norm == 0
    assert math.isnan(changes["nan"].change_max) and changes["nan"].changed_share == pytest.approx(1 / 3)
    assert (changes["bits"].change_norm, changes["bits"].changed_share) == (0, 0.5)
    assert (changes["half"].change_norm, changes["half"].norm) == (4, 2)
    assert changes["bools"].changed_share == 0.5
    assert changes["empty"].changed_share == 0
    assert found.unlike == {"shape/vars/0": ("(3,) float32", "(3, 1) float32")}
    assert (found.only_first, found.only_second) == (("gone/vars/0",), ("new/vars/0",))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["unlike"]


def test_a_damaged_payload_is_found(store: CheckpointStore) -> None:
    put(store, a=np.zeros(1000))
    put(store, a=np.ones(1000))
    path = store.get(2).path
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptPayloadError, match="digest"):
        store.diff(1, 2)


def test_one_variable_of_each_is_in_memory_at_a_time(store: CheckpointStore) -> None:
    import tracemalloc

    for seed in (1, 2):
        generator = np.random.default_rng(seed)
        put(store, **{f"v{index}": generator.normal(size=500_000) for index in range(8)})
    store.diff(1, 2)
    tracemalloc.start()
    store.diff(1, 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6, "two variables of 4 MB, and parts; all of them would be 64 MB"


def test_the_command(store: CheckpointStore, capsys: pytest.CaptureFixture[str]) -> None:
    save(store, 1, metrics={"loss": 0.5})
    save(store, 2, metrics={"loss": 0.25})
    assert main(["diff", str(store.path), "1", "latest"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        "metric  version 1  version 2  change",
        "loss          0.5       0.25   -0.25",
    ]
    assert "layers/dense/vars/0" in out and "100 %" in out
    assert out.endswith("3 of 3 variables differ\n")
    assert main(["diff", str(store.path), "1", "1"]) == 0
    assert capsys.readouterr().out.endswith("0 of 3 variables differ\n")
    assert main(["diff", str(store.path), "1", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["versions"] == [1, 2] and document["metrics"] == {"loss": [0.5, 0.25]}
    assert set(document["variables"][0]) == {
        "path", "shape", "dtype", "norm", "change_norm", "change_max", "changed_share",
    }  # fmt: skip
    assert main(["diff", str(store.path), "1", "none"]) == 3
    assert main(["diff", str(store.path), "1"]) == 2


def test_show_without_a_payload_says_why_there_are_no_layers(
    store: CheckpointStore, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(store, 1).path
    assert main(["show", str(store.path), "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variables"][0] == {
        "path": "layers/dense/vars/0", "shape": [7, 5], "dtype": "float32",
    }  # fmt: skip
    path.unlink()
    assert main(["show", str(store.path), "1"]) == 0
    printed = capsys.readouterr()
    assert "no table of layers" in printed.err and "digest" in printed.out and "layer " not in printed.out
