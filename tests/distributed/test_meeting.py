"""The processes of a fit find each other, whatever earlier fits and jobs have left in the service."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ckptstore.distributed.job import Job
from ckptstore.distributed.meeting import JoinMeeting, LeadMeeting
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.errors import JobIncompleteError
from message_models import DirectMessages, Model, Program, explore


def model_of(values: dict[str, str], processes: int, job: str, **limits: int) -> Model:
    facts: list[Any] = []
    lead = LeadMeeting(DirectMessages(values, 0), processes, limit_s=1, token=f"{job}-token")
    programs = {(0, "meeting"): Program(lead, facts)}
    for process in range(1, processes):
        messages = DirectMessages(values, process)
        join = JoinMeeting(messages, processes, limit_s=1, own_name=f"{job}-{process}")
        programs[process, "meeting"] = Program(join, facts)
    return Model(programs, values, facts, **limits)


def leftovers(processes: int) -> list[dict[str, str]]:
    """Return all that a job can leave in the service which dies, or stalls, at any instant."""
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}

    def look(model: Model) -> None:
        found.setdefault(tuple(sorted(model.values.items())), dict(model.values))

    explore(model_of({}, processes, "old", last_tick=1, may_die=0), look)
    return [*found.values()]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_processes_meet_past_everything_that_an_earlier_job_can_leave(processes: int) -> None:
    left = leftovers(processes)
    assert len(left) > 2 * processes
    for values in left:
        met = []

        def check(model: Model, met: list[bool] = met) -> None:
            meetings = [program.machine for program in model.programs.values()]
            # None has met with the past.
            assert all(one.token == "new-token" for one in meetings if one.state == "met")
            # The past tells nobody that somebody is missing now.
            assert model.now or all(one.state != "failed" for one in meetings)
            # Whoever has met has met with all.
            if any(one.state == "met" for one in meetings):
                assert meetings[0].state in ("telling", "met")
                assert not meetings[0].silent
            if not model.running():
                states = {
                    program.machine.state
                    for key, program in model.programs.items()
                    if key[0] not in model.dead
                }
                assert states <= {"met", "failed"}
                assert states == {"met"} or model.dead or model.now
                met.append(states == {"met"})

        # With three processes there are too many orders for all leftovers, deaths and stalls at a time.
        limits = {"last_tick": 2, "may_die": 1} if processes == 2 else {"last_tick": 0, "may_die": 0}
        explore(model_of(dict(values), processes, "new", **limits), check)
        assert any(met)


def test_each_process_that_came_names_those_that_did_not() -> None:
    service = MemoryService()
    errors = {}

    def begin(process: int) -> None:
        job = Job(kind="memory", by="memory", process=process, processes=4, found_in="here")
        messages = ServiceMessages(service, process=process, service="memory")
        with pytest.raises(JobIncompleteError) as caught:
            JobSession.begin(job, messages, limit_s=0.3)
        errors[process] = caught.value

    threads = [threading.Thread(target=begin, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors[0].silent == errors[1].silent == (2, 3)
    assert "process 1 of 4 has waited 0.3 s for processes 2 and 3 to begin" in str(errors[1])


def test_without_process_0_the_others_say_so() -> None:
    job = Job(kind="memory", by="memory", process=1, processes=2, found_in="here")
    with pytest.raises(JobIncompleteError, match=r"has waited 0\.2 s for process 0 to begin"):
        JobSession.begin(job, ServiceMessages(MemoryService(), process=1, service="memory"), limit_s=0.1)


def test_fits_one_after_the_other_have_tokens_of_their_own() -> None:
    service = MemoryService()
    tokens: dict[int, list[str]] = {0: [], 1: []}

    def fits(process: int) -> None:
        job = Job(kind="memory", by="memory", process=process, processes=2, found_in="here")
        for _ in range(5):
            messages = ServiceMessages(service, process=process, service="memory")
            tokens[process].append(JobSession.begin(job, messages, limit_s=20.0).token)

    threads = [threading.Thread(target=fits, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) == 5
