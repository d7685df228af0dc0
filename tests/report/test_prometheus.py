"""The metrics file is one that Prometheus reads: a parser checks it that accepts its format, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

from ckptstore.records import DiskSpace, Observation, ObservedRun, Run, RunState, SavingCost
from ckptstore.report.prometheus import render
from prometheus_text import of, parse
from records import CHECKPOINT

AT = datetime(2026, 3, 14, 3, 12, tzinfo=UTC)


def observation(**facts: object) -> Observation:
    latest = replace(CHECKPOINT, created_at=AT - timedelta(seconds=90), nbytes=1_000)
    run = Run(
        name="digits", state="running", attempts=3, checkpoints=7, epoch=4, batch=2, step=12_800, steps_per_s=8.5,
        latest=latest, epochs=10,
    )  # fmt: skip
    observed = ObservedRun(
        run=run,
        metrics={"loss": math.nan, "val_loss": 0.25, "odd": math.inf},
        cost=SavingCost(saves=5, blocked_s=0.1, share=0.0125),
    )
    idle = ObservedRun(run=Run(name="idle", state="interrupted", attempts=1, checkpoints=0))
    return Observation(
        **{  # type: ignore[arg-type]
            "store": Path("/runs"),
            "at": AT,
            "runs": (observed, idle),
            "disk": DiskSpace(total=10**12, free=10**9, full_in_s=7200.0),
            **facts,
        }
    )


def test_every_fact_is_a_metric() -> None:
    found = parse(render(observation()))
    run = {"store": "/runs", "run": "digits"}
    for name, value in {
        "run_step": 12_800,
        "run_epoch": 4,
        "run_epochs": 10,
        "run_steps_per_second": 8.5,
        "run_attempts": 3,
        "run_restarts": 2,
        "run_checkpoints": 7,
        "run_last_checkpoint_timestamp_seconds": AT.timestamp() - 90,
        "run_last_checkpoint_age_seconds": 90,
        "run_last_checkpoint_bytes": 1_000,
        "run_saving_ratio": 0.0125,
    }.items():
        assert of(found, name, **run) == value, name
    assert of(found, "run_metric", metric="val_loss", **run) == 0.25
    assert math.isnan(of(found, "run_metric", metric="loss", **run) or 0)
    assert of(found, "run_metric", metric="odd", **run) == math.inf
    states = {state: of(found, "run_state", state=state, **run) for state in get_args(RunState)}
    assert states == {
        state: float(state == "running")
        for state in ("running", "saving", "hung", "interrupted", "finished", "failed", "stopped")
    }
    assert of(found, "disk_free_bytes", store="/runs") == 10**9
    assert of(found, "disk_full_in_seconds", store="/runs") == 7200
    assert of(found, "run_step", store="/runs", run="idle") is None
    assert of(found, "run_state", store="/runs", run="idle", state="interrupted") == 1


@pytest.mark.parametrize("name", ['a"b', "back\\slash\\n", "line\nbreak", "损失", "\udcff", "} 1\nfake 2"])
def test_no_name_breaks_the_format(name: str) -> None:
    seen = observation(store=Path(f"/runs/{name}"))
    first = seen.runs[0]
    hostile = replace(first, run=replace(first.run, name=name), metrics={name: 1.0})
    found = parse(render(replace(seen, runs=(hostile,))))
    shown = name.encode(errors="backslashreplace").decode()
    assert of(found, "run_metric", store=f"/runs/{shown}", run=shown, metric=shown) == 1.0


def test_a_store_that_cannot_be_read_says_so_and_shows_nothing_old() -> None:
    found = parse(render(observation(problem="the store has been removed")))
    assert of(found, "up", store="/runs") == 0
    assert not [name for name, _ in found if "_run_" in name]
