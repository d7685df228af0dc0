"""The process that sends alerts looks at the store: for rollbacks and a disk that fills, and to write metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptstore.alerts.alert import Alert
from ckptstore.alerts.store_monitor import StoreMonitor, low_disk
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from prometheus_text import of, parse

GB = 10**9


@pytest.mark.parametrize(
    ("free", "full_in_s", "watched_s", "told"),
    [
        (GB, None, 7200, False),
        (GB, 7 * 3600, 7200, False),
        (GB, 5 * 3600, 7200, True),
        (GB, 5 * 3600, 60, False),  # a training that begins may write much, once
        (GB, 600, 60, True),
        (GB // 10, None, 0, True),
        (0, None, 0, True),
    ],
)
def test_a_disk_is_low_by_its_trend_or_by_its_room(
    free: int, full_in_s: float | None, watched_s: float, told: bool
) -> None:
    text = low_disk(free, full_in_s, watched_s=watched_s, largest=GB // 10)
    assert (text is not None) == told, text


def test_rollbacks_are_told_once_and_metrics_follow_the_store(tmp_path: Path) -> None:
    root, metrics = tmp_path / "store", tmp_path / "digits.prom"
    told: list[Alert] = []
    said: list[str] = []
    monitor = StoreMonitor(root, None, metrics_file=metrics, tell=told.append, log=said.append)
    monitor.look()
    assert of(parse(metrics.read_text()), "up", store=str(root)) == 0
    with CheckpointStore(root) as store:
        save(store, 0, run="digits", step=10)
        monitor.look()
        assert of(parse(metrics.read_text()), "run_checkpoints", store=str(root), run="digits") == 1
        assert told == []
        detail = {
            "kind": "not finite",
            "name": "loss",
            "value": "nan",
            "epoch": 1,
            "batch": 3,
            "from_step": 14,
        }
        store.roll_back("digits", lambda _: True, sound_step=10, detail=detail)
        for _ in range(2):
            monitor.look()
    (alert,) = told
    assert (alert.kind, alert.run, alert.version, alert.step, alert.reason) == (
        "rollback",
        "digits",
        1,
        14,
        "nan",
    )
    assert alert.text == (
        "digits: loss was nan in epoch 2; the training went back to version 1, and 4 batches are skipped"
    )
    assert said == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_metrics_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    monitor = StoreMonitor(
        tmp_path / "store",
        None,
        metrics_file=tmp_path / "none" / "digits.prom",
        tell=pytest.fail,
        log=said.append,
    )
    for _ in range(3):
        monitor.look()
    (line,) = said
    assert "digits.prom" in line
