"""States of runs as a function of signs of life and records, case by case; real processes are in `test_live_runs`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from ckptstore.records import Attempt, Beat, EndReason, RunOverview
from ckptstore.store.run_states import Signs, state_of
from ckptstore.system.processes import ProcessState

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def beat(phase: Any = "training", **fields: Any) -> Beat:
    known = {
        "run": "digits",
        "attempt": 1,
        "pid": 77,
        "started_ticks": 5,
        "host": "here",
        "boot_id": "boot",
        "at_s": 10.0,
        "written_at": "",
        "phase_since_s": 1.0,
        "slowest_s": {"batch": 1.0, "save": 1.0, "validation": 1.0, "start": 1.0},
    }
    return Beat(**known | {"phase": phase} | fields)


def living(phase: Any = "training", silence_s: float | None = 1.0, process: ProcessState = "alive") -> Signs:
    return Signs(is_held=True, beat=beat(phase), silence_s=silence_s, process=process)


def overview(
    reason: EndReason | None = None,
    *,
    is_finished: bool = False,
    stopped_after_s: float | None = None,
    stopped_at_attempt: int | None = None,
    attempts: int = 1,
    **detail: Any,
) -> RunOverview:
    attempt = Attempt(run="digits", attempt=1, started_at=BEGAN, reason=reason, detail=detail)
    return RunOverview(
        name="digits",
        checkpoints=0,
        latest=None,
        best=None,
        resume_point=None,
        attempts=attempts,
        last_attempt=attempt if attempts else None,
        is_finished=is_finished,
        stopped_at=None if stopped_after_s is None else BEGAN + timedelta(seconds=stopped_after_s),
        stop={"reason": "no progress in 5 starts", "attempt": stopped_at_attempt},
    )


@pytest.mark.parametrize(
    ("signs", "state", "note"),
    [
        (living(), "running", ""),
        (living("starting"), "running", "starting"),
        (living("validating"), "running", "validating"),
        (living("saving"), "saving", "waits for a save"),
        (living(silence_s=599.0), "running", ""),
        (living(silence_s=661.0), "hung", "no sign of life for 11 min, in the phase 'training'"),
        (living("saving", 700.0), "hung", "'saving'"),
        (living("starting", 1700.0), "running", "starting"),
        (living("starting", 1900.0), "hung", "'starting'"),
        # Of another machine's clock nothing can be told.
        (living(silence_s=None, process="unknown"), "running", ""),
        (living(silence_s=9999.0, process="stopped"), "running", "kill -CONT 77"),
        (living(silence_s=9999.0, process="traced"), "running", "debugger"),
        # In another container the pid is another process's, or nobody's.
        (living(silence_s=9999.0, process="gone"), "hung", "'training'"),
        (Signs(is_held=True), "running", ""),
        (Signs(is_held=True, beat=beat(sparse=True), silence_s=1e9, process="alive"), "running", ""),
    ],
)
def test_a_run_whose_training_lives(signs: Signs, state: str, note: str) -> None:
    # Whatever the manifest says of earlier attempts, and of an earlier stop.
    for recorded in (
        overview(),
        overview("finished", is_finished=True),
        overview("exception", stopped_after_s=1),
    ):
        found, word = state_of(signs, recorded)
        assert found == state
        assert note in word
        assert bool(note) == bool(word)


ENDED = Signs(is_held=False, beat=beat("saving"))


@pytest.mark.parametrize(
    ("recorded", "state", "note"),
    [
        (overview(), "interrupted", ""),
        (overview("killed"), "interrupted", "killed"),
        (overview("oom"), "interrupted", "oom"),
        (overview("hang"), "interrupted", "hang"),
        (overview("preempted"), "interrupted", "preempted"),
        (overview("interrupted"), "interrupted", "interrupted"),
        (overview("finished"), "finished", ""),
        (overview("killed", is_finished=True), "finished", ""),
        (overview("exception", type="ValueError", message="no data"), "failed", "ValueError: no data"),
        (overview("exception", is_finished=True), "failed", "exception"),
        (overview("disk_full"), "failed", "disk_full"),
        (overview("nan"), "failed", "nan"),
        (overview("exception", stopped_after_s=9), "stopped", "no progress in 5 starts"),
        (overview("exception", stopped_after_s=-9), "failed", "exception"),
        # The attempt that was the last when it was stopped decides, and not a clock, which may have been set back.
        (overview("exception", stopped_after_s=-9, stopped_at_attempt=1), "stopped", "no progress"),
        (overview("exception", stopped_after_s=9, stopped_at_attempt=0), "failed", "exception"),
        (overview(attempts=0), "interrupted", ""),
        (overview(attempts=0, is_finished=True), "finished", ""),
        (overview(attempts=0, stopped_after_s=0), "stopped", "no progress"),
    ],
)
def test_a_run_whose_training_has_ended(recorded: RunOverview, state: str, note: str) -> None:
    found, word = state_of(ENDED, recorded)
    assert found == state
    assert note in word
    assert bool(note) == bool(word)
    attempt = recorded.last_attempt
    has_failed = attempt is not None and attempt.reason in ("exception", "disk_full", "nan")
    saving = state_of(Signs(is_held=False, is_saving=True), recorded)[0]
    assert saving == (state if has_failed else "saving")


@pytest.mark.parametrize("reason", get_args(EndReason))
def test_each_reason_of_an_end_leads_to_a_state(reason: EndReason) -> None:
    assert state_of(ENDED, overview(reason))[0] in ("interrupted", "finished", "failed")
