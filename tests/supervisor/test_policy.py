"""Decisions after each end of a command, and the conclusions that lead to them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from ckptstore.records import Attempt
from ckptstore.supervisor.end_reasons import exception_of, exit_code_of, in_words, reason_of
from ckptstore.supervisor.policy import MAX_PAUSE_S, End, Limits, Restart, RestartPolicy, Stop, grown_pause_s

KILLED = End(exit_code=-9, reason="killed", progressed=False)
FAILED = End(exit_code=1, reason="exception", progressed=False, exception="ValueError: no data", step=7)


def policy(jitter: float = 0.5, **limits: Any) -> RestartPolicy:
    return RestartPolicy(Limits(**limits), jitter=lambda: jitter)


def decisions(policy: RestartPolicy, *ends: End) -> list[Restart | Stop]:
    return [policy.after(end) for end in ends]


def changed(end: End, **values: Any) -> End:
    return dataclasses.replace(end, **values)


def test_pauses_grow_up_to_a_minute_and_begin_again_after_progress() -> None:
    found = decisions(policy(without_progress=100), *[KILLED] * 9, changed(KILLED, progressed=True), KILLED)
    pauses = [decision.pause_s for decision in found if isinstance(decision, Restart)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 1]


def test_pauses_are_a_minute_after_thousands_of_starts() -> None:
    last = decisions(policy(without_progress=10_000), *[KILLED] * 2000)[-1]
    assert last == Restart(pause_s=MAX_PAUSE_S)
    assert grown_pause_s(5.0, 2000) == MAX_PAUSE_S


@pytest.mark.parametrize("jitter", [0.0, 0.3, 1.0])
def test_pauses_vary_by_a_quarter_within_the_limit(jitter: float) -> None:
    many = policy(jitter, without_progress=100)
    pauses = [
        decision.pause_s for decision in decisions(many, *[KILLED] * 8) if isinstance(decision, Restart)
    ]
    assert pauses[0] == pytest.approx(0.75 + 0.5 * jitter)
    assert max(pauses) <= MAX_PAUSE_S


def test_the_same_exception_at_the_same_step_ends_it_although_there_was_progress() -> None:
    with_progress = changed(FAILED, progressed=True)
    first, second = decisions(policy(), with_progress, with_progress)
    assert isinstance(first, Restart)
    assert second == Stop(
        reason="same_exception", text="the same exception twice, at step 7: ValueError: no data"
    )


@pytest.mark.parametrize(
    "between",
    [
        changed(FAILED, step=8),
        changed(FAILED, exception="ValueError: other data"),
        changed(KILLED, progressed=True),
        changed(FAILED, exit_code=75, reason="preempted", exception=None),
    ],
)
def test_another_end_in_between_lets_it_go_on(between: End) -> None:
    assert all(isinstance(decision, Restart) for decision in decisions(policy(), FAILED, between, FAILED))


def test_an_exception_at_an_unknown_step_counts_only_without_progress() -> None:
    unknown = changed(FAILED, step=None, progressed=True)
    assert all(isinstance(decision, Restart) for decision in decisions(policy(), unknown, unknown, unknown))
    last = policy().after
    last(changed(unknown, progressed=False))
    assert last(changed(unknown, progressed=False)) == Stop(
        reason="same_exception", text="the same exception twice, before the first batch: ValueError: no data"
    )


def test_hangs_and_kills_count_for_progress_alone() -> None:
    hang = End(exit_code=-9, reason="hang", progressed=False, step=7)
    found = decisions(policy(), hang, hang, hang, hang, hang)
    assert found[-1] == Stop(reason="no_progress", text="5 starts in a row without a new checkpoint")
    assert all(isinstance(decision, Restart) for decision in found[:-1])


def test_a_full_disk_is_no_lack_of_progress_and_ends_it_after_its_own_time() -> None:
    full = End(exit_code=1, reason="disk_full", progressed=False, exception="OSError: full", step=7)
    times = policy(disk_full_s=100.0, without_progress=2)
    found = decisions(times, *(changed(full, at_s=1000.0 + seconds) for seconds in (0, 30, 60, 99, 100)))
    assert found[:-1] == [Restart(pause_s=left, for_disk=True) for left in (100.0, 70.0, 40.0, 1.0)]
    assert found[-1] == Stop(reason="disk_full", text="the disk has been full for 100 s")
    # One that has saved something in between begins again to count.
    assert times.after(changed(full, at_s=5000.0, progressed=True)) == Restart(pause_s=100.0, for_disk=True)


def test_the_limit_of_restarts_and_a_signal_go_first() -> None:
    assert policy(restarts=0).after(KILLED) == Stop(reason="max_restarts", text="0 restarts are the limit")
    assert policy().after(changed(KILLED, stop_requested=True)).reason == "signal"  # type: ignore[union-attr]
    done = End(exit_code=0, reason="finished", progressed=False, stop_requested=True)
    assert policy().after(done) == Stop(reason=None)


def test_a_training_that_hung_is_not_done_whatever_it_ends_with() -> None:
    hung = End(exit_code=0, reason="hang", progressed=True)
    assert isinstance(policy().after(hung), Restart)
    assert policy().after(changed(hung, reason="unknown")) == Stop(reason=None)


# --- conclusions ----------------------------------------------------------------------------------


def attempt(**values: Any) -> Attempt:
    return Attempt(run="digits", attempt=1, started_at=datetime(2026, 1, 2, tzinfo=UTC), **values)


@pytest.mark.parametrize(
    ("code", "recorded", "output", "reason"),
    [
        (-9, None, [], "killed"),
        (75, "preempted", [], "preempted"),
        (0, "finished", [], "finished"),
        (0, "exception", [], "exception"),
        (0, "nan", [], "nan"),
        (1, "disk_full", [], "disk_full"),
        (1, "nan", [], "nan"),
        (1, "finished", ["Traceback (most recent call last):", "KeyError: 'x'"], "exception"),
        (1, None, ["OSError: [Errno 28] No space left on device"], "disk_full"),
        (3, None, [], "exception"),
    ],
)
def test_the_reason_of_an_end(code: int, recorded: Any, output: list[str], reason: str) -> None:
    found = attempt(reason=recorded) if recorded else None
    assert reason_of(code, None, found, output) == reason
    assert reason_of(code, "hang", found, output) == "hang", "what the supervisor knows"


def test_where_the_system_does_not_tell_the_exit_code_the_attempt_does() -> None:
    reasons: dict[Any, int] = {"finished": 0, "preempted": 75, "exception": 1, "killed": -9, None: -9}
    assert {reason: exit_code_of(None, attempt(reason=reason)) for reason in reasons} == reasons
    assert (exit_code_of(None, None), exit_code_of(3, attempt(reason="finished"))) == (-9, 3)


def test_an_exception_is_known_by_the_record_or_by_the_output() -> None:
    detail = {"type": "ValueError", "message": "no data", "frames": ["a.py:1", "b.py:2 in load"]}
    by_record = exception_of(1, attempt(reason="exception", detail=detail), ["unrelated"])
    assert by_record == "ValueError: no data b.py:2 in load"
    assert exception_of(1, None, ["Traceback (most recent call last):", "KeyError: 3"]) == "KeyError: 3"
    assert exception_of(1, None, ["just a line"]) is None
    assert exception_of(75, None, ["KeyError: 3"]) is None


def test_ends_in_words() -> None:
    assert in_words(-9, "hang") == "the command was killed by SIGKILL (it hung)"
    assert in_words(1, "disk_full") == "the command ended with exit code 1 (the disk is full)"
    assert in_words(-63, "killed") == "the command was killed by signal 63"
