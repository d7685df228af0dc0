"""Checks that every implementation of `Messages` passes: two processes run them at the same time, on one service."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckptstore.distributed.driver import drive
from ckptstore.distributed.job import Job
from ckptstore.distributed.messages import Messages
from ckptstore.distributed.resuming import Offer
from ckptstore.distributed.session import JobSession
from ckptstore.errors import MessageConflictError, MessageTimeoutError

LIMIT_S = 60.0


def is_delivered(process: int, messages: Messages) -> None:
    """A message is there for both as soon as `put` returns, whatever is in it."""
    value = '{"a": "\\u00fc\\n\\"", "b": [1.5, null]}'
    if process == 0:
        messages.put("check/delivered/0", value)
    assert messages.get("check/delivered/0", LIMIT_S) == value
    messages.put(f"check/delivered/both/{process}", str(process))
    assert messages.present([f"check/delivered/both/{process}"]) == {
        f"check/delivered/both/{process}": str(process)
    }
    messages.get(f"check/delivered/both/{1 - process}", LIMIT_S)
    keys = [f"check/delivered/both/{number}" for number in range(3)]
    assert messages.present(keys) == {keys[0]: "0", keys[1]: "1"}
    assert messages.present([]) == {}


def is_written_once(process: int, messages: Messages) -> None:
    """Of two that write a key one succeeds; the same value again is no error."""
    key = "check/once"
    try:
        messages.put(key, f"of {process}")
        won = True
    except MessageConflictError as error:
        assert error.present == f"of {1 - process}"
        assert (error.process, error.key) == (process, key)
        won = False
    there = messages.get(key, LIMIT_S)
    assert there == f"of {process if won else 1 - process}"
    messages.put(key, there)
    messages.put(f"check/won/{process}", str(won))
    assert messages.get(f"check/won/{1 - process}", LIMIT_S) == str(not won)


def is_waited_for_no_longer_than_the_limit(process: int, messages: Messages) -> None:
    """A message that never comes is an error at the limit, with its facts."""
    for limit_s in (0.0, 0.4):
        began = time.monotonic()
        try:
            messages.get("check/never", limit_s)
            raise AssertionError("a message that nobody has written")
        except MessageTimeoutError as error:
            assert (error.process, error.key, error.limit_s) == (process, "check/never", limit_s)
        assert limit_s <= time.monotonic() - began < limit_s + 5.0


def is_free_while_a_thread_waits(process: int, messages: Messages) -> None:
    """One thread that waits for a message hinders no other."""
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(messages.get("check/late", LIMIT_S)))
    waiting.start()
    times = []
    for number in range(20):
        began = time.monotonic()
        messages.put(f"check/meanwhile/{process}/{number}", "x")
        times.append(time.monotonic() - began)
    assert sorted(times)[10] < 1.0, times
    messages.get(f"check/meanwhile/{1 - process}/19", LIMIT_S)
    messages.put("check/late", "there")
    waiting.join(LIMIT_S)
    assert found == ["there"]


def is_deleted(process: int, messages: Messages) -> None:
    """A deleted key is free again; deleting what is not there is no error."""
    key = "check/deleted"
    if process == 0:
        messages.put(key, "1")
        messages.delete([key, "check/never"])
        messages.delete([])
        assert messages.present([key, "check/never"]) == {}
        messages.put("check/is-deleted", "1")
    messages.get("check/is-deleted", LIMIT_S)
    assert messages.present([key]) == {}


def carries_large_values(process: int, messages: Messages) -> None:
    """A report may have a description of a megabyte."""
    value = str(process) * 1_000_000
    messages.put(f"check/large/{process}", value)
    assert messages.get(f"check/large/{1 - process}", LIMIT_S) == str(1 - process) * 1_000_000


CHECKS: dict[str, Callable[[int, Messages], None]] = {
    check.__name__: check
    for check in (
        is_delivered,
        is_written_once,
        is_waited_for_no_longer_than_the_limit,
        is_free_while_a_thread_waits,
        is_deleted,
        carries_large_values,
    )
}


def a_fit(job: Job, messages: Messages) -> list[Any]:
    """Meet, begin together at the second offer, and save three times; returns what this process knows in the end."""
    session = JobSession.begin(job, messages, limit_s=LIMIT_S)
    known: list[Any] = [session.token]
    if job.is_leader:
        lead = session.lead_resume(Offer(version=9, store="s", limit_s=LIMIT_S))
        drive(lead)
        assert lead.objections[1].reason == "not here"
        lead.offer_next(Offer(version=8, store="s", limit_s=LIMIT_S))
        drive(lead)
        known.append([lead.state, lead.offer.version])
    else:
        join = session.join_resume(limit_s=LIMIT_S)
        drive(join)
        join.object_to("unreadable", "not here")
        drive(join)
        join.confirm()
        drive(join)
        assert join.offer is not None
        known.append([join.state, join.offer.version])
    for number in range(3):
        known.append(_a_save(session, number, stalls=number == 1))
    return known


def _a_save(session: JobSession, number: int, *, stalls: bool) -> Any:
    """Save; the other process reports only when the second save is abandoned."""
    if session.job.is_leader:
        save = session.next_save()
        lead = session.lead_save(
            save,
            version=10 + number,
            upload="u",
            fields={},
            step=number,
            limit_s=0.5 if stalls else LIMIT_S,
        )
        drive(lead)
        lead.gather()
        drive(lead)
        if lead.state == "gathered":
            lead.committed()
            drive(lead)
        session.end_save(save)
        session.delete_settled()
        return None if lead.outcome is None else lead.outcome.to_json() | {"refused": {}}
    save = session.next_save()
    join = session.join_save(save, step=number, limit_s=LIMIT_S)
    drive(join)
    if stalls:
        time.sleep(1.0)
    join.report(member="1.h5", nbytes=number, digest="d")
    drive(join)
    session.end_save(save)
    return None if join.outcome is None else join.outcome.to_json() | {"refused": {}}


def in_process(process: int, folder: Path, scope: Any) -> dict[str, Any]:
    """Run everything over the service of the backend that has connected this process; see `process_groups`."""
    import keras

    from ckptstore.keras.private import find_job, messages_of

    backend = keras.backend.backend()
    with scope:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    frameworks = {"jax", "torch", "tensorflow"}
    before = frameworks & set(sys.modules)
    job = find_job(backend, model)
    assert job is not None, os.environ
    messages = messages_of(job)
    results: dict[str, Any] = {
        "job": [job.kind, job.by, job.process, job.processes, job.lacks_messages],
        "imported": sorted((frameworks & set(sys.modules)) - before),
    }
    for name, check in CHECKS.items():
        check(process, messages)
        results[name] = "passed"
    results["fit"] = a_fit(job, messages)
    messages.close()
    return results


def check_fits(known: Sequence[Any]) -> None:
    """Check what the processes know behind `a_fit`: the same, and the truth."""
    assert known[0] == known[1]
    _, begun, first, second, third = known[0]
    assert begun == ["agreed", 8]
    assert [save["version"] for save in (first, second, third)] == [10, 11, 12]
    assert [save["committed"] for save in (first, second, third)] == [True, False, True]
    assert [*second["silent"]] == [1]
