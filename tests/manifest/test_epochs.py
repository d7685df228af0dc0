"""Epochs: what checkpoints record of their own epoch, and of those that ended before without being saved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ckptstore.cli.main import main
from ckptstore.errors import MetricNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import FinishedEpoch
from ckptstore.store.store import CheckpointStore
from manifests import add


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    opened = Manifest.open(tmp_path / "manifest.sqlite")
    yield opened
    opened.close()


def ended(epoch: int, loss: float, **more: float) -> FinishedEpoch:
    return FinishedEpoch(
        epoch=epoch,
        step=10 * epoch + 10,
        ended_at=datetime(2026, 1, 1, 0, epoch, tzinfo=UTC),
        metrics={"val_loss": loss, **more},
    )


def recorded(manifest: Manifest) -> list[tuple[Any, ...]]:
    return [
        (epoch.epoch, epoch.batch, epoch.version, epoch.metrics.get("val_loss"))
        for epoch in manifest.epochs.iterate("a")
    ]


def test_a_checkpoint_brings_epochs_that_ended_before_it(manifest: Manifest) -> None:
    add(manifest, epoch=2, batch=3, metrics={"loss": 9.0}, earlier_epochs=(ended(0, 3.0), ended(1, math.nan)))
    first, second, third = manifest.epochs.iterate("a")
    assert (first.epoch, first.batch, first.step, first.version) == (0, None, 10, 1)
    assert first.created_at == datetime(2026, 1, 1, 0, 0, tzinfo=UTC)
    assert dict(first.metrics) == {"val_loss": 3.0}
    assert math.isnan(second.metrics["val_loss"])
    assert (third.epoch, third.batch, dict(third.metrics)) == (2, 3, {"loss": 9.0})


def test_epochs_that_come_twice_stay_as_they_were_recorded_first(manifest: Manifest) -> None:
    """A save brings them again while the one before is not known to have succeeded; or it is their own checkpoint."""
    nothing = math.nan
    add(manifest, epoch=0, metrics={"val_loss": 3.0}, step=10)
    again = (ended(0, 3.0), ended(1, 2.0), ended(2, nothing))
    add(manifest, epoch=3, batch=1, earlier_epochs=again)
    add(manifest, epoch=3, batch=5, earlier_epochs=again)
    assert [epoch[:3] for epoch in recorded(manifest)] == [
        (0, None, 1),
        (1, None, 2),
        (2, None, 2),
        (3, 5, 3),
    ]


def test_an_epoch_that_was_trained_again_counts_as_it_was_then(manifest: Manifest) -> None:
    add(manifest, epoch=2, batch=1, earlier_epochs=(ended(0, 3.0), ended(1, 2.0)))
    add(manifest, epoch=2, batch=1, earlier_epochs=(ended(1, 2.5),))
    add(
        manifest, epoch=3, batch=1, earlier_epochs=(ended(2, 1.5, val_acc=0.5),)
    )  # it was known up to a batch
    assert recorded(manifest) == [(0, None, 1, 3.0), (1, None, 2, 2.5), (2, None, 3, 1.5), (3, 1, 3, None)]
    manifest.beginnings.begin("a")
    add(manifest, epoch=1, batch=1, earlier_epochs=(ended(0, 3.0),))
    # The same numbers, but of another attempt at the run.
    assert recorded(manifest) == [(0, None, 4, 3.0), (1, 1, 4, None)]


def test_epochs_outlive_the_checkpoints_that_brought_them(manifest: Manifest) -> None:
    for epoch in range(1, 4):
        add(manifest, epoch=epoch, batch=1, earlier_epochs=(ended(epoch - 1, 1.0 / epoch),))
    manifest.checkpoints.remove([1, 2])
    assert [epoch[:2] for epoch in recorded(manifest)] == [(0, None), (1, None), (2, None), (3, 1)]


def test_epochs_are_added_to_the_newest_checkpoint_at_the_end_of_a_fit(manifest: Manifest) -> None:
    manifest.epochs.add("a", [ended(0, 1.0)])  # there is no such run
    assert recorded(manifest) == []
    add(manifest, epoch=0, metrics={"val_loss": 3.0}, step=10)
    add(manifest, epoch=1, metrics={"val_loss": 2.0})
    for _ in range(2):
        manifest.epochs.add("a", [ended(2, 2.5), ended(3, 2.75)])
    assert [epoch[:3] for epoch in recorded(manifest)] == [
        (0, None, 1),
        (1, None, 2),
        (2, None, 2),
        (3, None, 2),
    ]
    assert not manifest.integrity_problems()


def test_an_epoch_that_was_better_than_all_checkpoints_is_not_concealed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        add(store._manifest, epoch=0, metrics={"val_loss": 3.0, "val_acc": 0.1})
        add(store._manifest, epoch=2, batch=1, earlier_epochs=(ended(1, 2.0, val_acc=0.05, top_5=0.5),))
        best = store.best("val_loss", run="a")
        assert best is not None and best.epoch == 0
        assert store.better_epoch(best, "val_loss") == 1
        assert store.better_epoch(best, "val_acc") is None
        with pytest.raises(
            MetricNotFoundError, match=r"no checkpoint has.*history.*monitor='top_5'"
        ) as caught:
            store.best("top_5")
        assert caught.value.in_epochs
        with pytest.raises(MetricNotFoundError) as caught:
            store.best("nothing")
        assert not caught.value.in_epochs
    assert main(["best", str(root), "--metric", "val_loss"]) == 0
    assert "epoch 1 of run a was better, but has no checkpoint" in capsys.readouterr().err
    assert main(["best", str(root), "--metric", "val_acc"]) == 0
    assert not capsys.readouterr().err
