"""A save by several processes: every order of steps, every death and every limit, in small models."""

from __future__ import annotations

from typing import Any

import pytest

from ckptstore.distributed.driver import drive
from ckptstore.distributed.exchange import Exchange
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.saving import Announcement, JoinSave, LeadSave
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.errors import SaveAbandonedError, SaveEndUnknownError
from message_models import DirectMessages, Model, Program, explore


class Leading(Program):
    """Process 0: commits when all have reported; `fails` stands for a commit that the disk refuses."""

    def __init__(self, machine: LeadSave, facts: list[Any], *, fails: bool = False) -> None:
        super().__init__(machine, facts)
        self.fails = fails

    def is_asked(self) -> bool:
        return bool(self.machine.state == "gathered")

    def answer(self) -> None:
        number = self.machine.announcement.number
        if self.fails:
            self.machine.abandon("no room")
            return
        parts = sorted((report.process, report.nbytes) for report in self.machine.reports.values())
        self.facts.append(("committed", number, tuple(parts)))
        self.machine.committed()


class Joining(Program):
    """Another process: writes its part and reports it; `refuses` stands for a part that cannot be written."""

    def __init__(self, machine: JoinSave, facts: list[Any], process: int, *, refuses: bool = False) -> None:
        super().__init__(machine, facts)
        self.process = process
        self.refuses = refuses

    def is_asked(self) -> bool:
        return bool(self.machine.state == "announced")

    def answer(self) -> None:
        number = self.machine.number
        if self.refuses:
            self.machine.refuse("cannot write")
            return
        self.facts.append(("wrote", number, self.process))
        self.machine.report(member=f"{self.process}.h5", nbytes=10 * number + self.process, digest="d")


def model_of(
    processes: int,
    saves: int = 1,
    *,
    fails: bool = False,
    refuses: frozenset[int] = frozenset(),
    steps: dict[int, int] | None = None,
    last_tick: int = 4,
    may_die: int = 1,
) -> Model:
    values: dict[str, str] = {}
    facts: list[Any] = []
    programs: dict[tuple[int, str], Program] = {}
    for process in range(processes):
        messages = DirectMessages(values, process)
        for number in range(1, saves + 1):
            exchange = Exchange(messages, f"save/{number}")
            step = (steps or {}).get(process, 10) * number
            if process == 0:
                announcement = Announcement(
                    number=number, version=number + 6, upload="u", step=step, limit_s=1, commit_limit_s=1
                )
                lead = LeadSave(exchange, announcement, processes)
                programs[0, str(number)] = Leading(lead, facts, fails=fails)
            else:
                join = JoinSave(exchange, number, step=step, limit_s=1)
                programs[process, str(number)] = Joining(join, facts, process, refuses=process in refuses)
    return Model(programs, values, facts, last_tick=last_tick, may_die=may_die)


def check(model: Model) -> None:
    """No checkpoint without all its parts; what any two processes know of a save is the same, and is true."""
    committed = {fact[1]: fact[2] for fact in model.facts if fact[0] == "committed"}
    wrote = {fact[1:] for fact in model.facts if fact[0] == "wrote"}
    others = {process for process, _ in model.programs if process}
    for number, parts in committed.items():
        assert parts == tuple((process, 10 * number + process) for process in sorted(others))
        assert {(number, process) for process in others} <= wrote
    for number in {thread for _, thread in model.programs}:
        machines = [one.machine for (_, thread), one in model.programs.items() if thread == number]
        told = [machine.outcome for machine in machines if machine.outcome is not None]
        assert all(outcome == told[0] for outcome in told)
        assert all(outcome.committed == (int(number) in committed) for outcome in told)
        assert all(outcome.committed or outcome.silent or outcome.refused for outcome in told)
    if not model.running():
        for (process, _), program in model.programs.items():
            state = program.machine.state
            assert process in model.dead or state in (("told",) if process == 0 else ("settled", "lost"))
            # Only where process 0 is dead, or a process was too late, the end is not known.
            assert state != "lost" or model.now > 0


@pytest.mark.parametrize("processes", [2, 3])
def test_a_save_in_every_order_with_a_death_and_stalls(processes: int) -> None:
    ends = set()

    def look(model: Model) -> None:
        check(model)
        if not model.running():
            leader = model.programs[0, "1"].machine
            ends.add((leader.state, leader.outcome is not None and leader.outcome.committed))
            if not model.dead and not model.now:
                assert model.programs[0, "1"].machine.outcome.committed

    number = explore(model_of(processes, last_tick=4 if processes == 2 else 1), look)
    assert number > 100
    assert {("told", True), ("told", False), ("gathering", False)} <= ends


@pytest.mark.slow
def test_two_saves_in_flight_end_each_by_itself() -> None:
    ends = set()

    def look(model: Model) -> None:
        check(model)
        if not model.running() and not model.dead:
            ends.add(tuple(model.programs[0, number].machine.outcome.committed for number in ("1", "2")))

    explore(model_of(2, saves=2, last_tick=1, may_die=0), look)
    assert ends == {(True, True), (True, False), (False, True), (False, False)}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"refuses": frozenset({2})}, {2: "cannot write"}),
        ({"steps": {1: 11}}, {1: "is at step 11, and step 10 was announced"}),
        ({"fails": True}, {0: "no room"}),
    ],
    ids=["part", "step", "commit"],
)
def test_a_process_that_cannot_take_part_ends_the_save_at_once(
    arguments: dict[str, Any], reason: dict[int, str]
) -> None:
    ends = []

    def look(model: Model) -> None:
        check(model)
        if not model.running() and not model.now and not model.dead:
            ends.append(model.programs[0, "1"].machine.outcome)
            # Every process knows it, and nobody has waited for a limit.
            assert all(program.machine.outcome == ends[-1] for program in model.programs.values())
            assert {str(program.machine.error()) for program in model.programs.values()} == {
                str(model.programs[0, "1"].machine.error())
            }

    explore(model_of(3, last_tick=1, may_die=0, **arguments), look)
    assert ends
    assert all(outcome.refused == reason and not outcome.silent for outcome in ends)


class Clock:
    """A clock that sleeping moves, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def sessions(processes: int) -> tuple[MemoryService, list[JobSession]]:
    service = MemoryService()
    made = []
    for process in range(processes):
        job = Job(kind="memory", by="memory", process=process, processes=processes, found_in="here")
        made.append(JobSession(job, ServiceMessages(service, process=process, service="memory"), token="t"))
    return service, made


def test_a_report_of_a_save_that_was_abandoned_is_not_sent() -> None:
    service, (leader, other) = sessions(2)
    clock = Clock()
    lead = leader.lead_save(version=7, upload="u", step=10, limit_s=20.0)
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    assert 20.0 <= clock.now < 21.0
    error = lead.error()
    assert isinstance(error, SaveAbandonedError)
    assert (error.silent, error.version, error.limit_s) == ((1,), 7, 20.0)
    assert "process 1 did not report within 20 s" in str(error)
    before = dict(service.values)
    late = other.join_save(step=10, limit_s=5.0)
    drive(late)
    # It need not even write its part.
    assert late.state == "settled"
    assert service.values == before
    assert str(late.error()) == str(error)
    # The next save finds both again.
    lead = leader.lead_save(version=8, upload="u", step=20, limit_s=20.0)
    lead.step(0.0)
    join = other.join_save(step=20, limit_s=5.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d", description={"a": [1, None]})
    join.step(0.0)
    join.step(0.0)
    drive(lead)
    assert lead.reports[1].description == {"a": [1, None]}
    lead.committed()
    drive(lead)
    drive(join)
    assert join.error() is None
    assert join.outcome == lead.outcome


def test_a_part_that_is_written_too_late_is_not_reported() -> None:
    service, (leader, other) = sessions(2)
    lead = leader.lead_save(version=7, upload="u", step=10, limit_s=20.0)
    lead.step(0.0)
    join = other.join_save(step=10, limit_s=5.0)
    drive(join)
    assert join.state == "announced"
    lead.step(30.0)
    lead.step(30.0)
    before = dict(service.values)
    join.report(member="1.h5", nbytes=4, digest="d")
    drive(join)
    assert (join.state, str(join.error())) == ("settled", str(lead.error()))
    assert service.values == before


def test_a_save_that_process_0_leaves_out_is_waited_for_by_nobody() -> None:
    _, (leader, other) = sessions(2)
    lead = leader.lead_save(version=7, upload="u", step=10, limit_s=20.0)
    lead.abandon("a newer one replaces it")
    drive(lead)
    join = other.join_save(step=10, limit_s=5.0)
    assert join.step(0.0)
    assert join.state == "settled"
    assert str(join.error()) == str(lead.error()).replace("20 s", "0 s")
    assert "save 1 (version 7) was abandoned: process 0: a newer one replaces it" in str(join.error())


def test_a_process_that_hears_nothing_does_not_know_the_end() -> None:
    _, (leader, other) = sessions(2)
    clock = Clock()
    unannounced = other.join_save(step=10, limit_s=5.0)
    drive(unannounced, clock=lambda: clock.now, sleep=clock.sleep)
    error = unannounced.error()
    assert isinstance(error, SaveEndUnknownError)
    assert (error.version, error.limit_s) == (None, 5.0)
    leader.lead_save(version=7, upload="u", step=10, limit_s=1.0)
    lead = leader.lead_save(version=8, upload="u", step=20, limit_s=20.0, commit_limit_s=30.0)
    lead.step(0.0)
    join = other.join_save(step=20, limit_s=5.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d")
    drive(join, clock=lambda: clock.now, sleep=clock.sleep)
    error = join.error()
    assert isinstance(error, SaveEndUnknownError)
    assert (error.version, error.limit_s) == (8, 50.0)
    assert "ckptstore ls" in str(error)


def test_messages_of_settled_saves_are_deleted() -> None:
    service, (leader, other) = sessions(2)
    most = 0
    for number in range(20):
        lead = leader.lead_save(version=number + 1, upload="u", step=number, limit_s=20.0)
        lead.step(0.0)
        join = other.join_save(step=number, limit_s=20.0)
        drive(join)
        join.report(member="1.h5", nbytes=4, digest="d")
        join.step(0.0)
        join.step(0.0)
        drive(lead)
        lead.committed()
        drive(lead)
        if number != 10:  # a save whose end this process has not heard
            drive(join)
            held = join
        leader.delete_settled()
        most = max(most, len(service.values) if number < 10 else 0)
    assert most <= 6
    assert held.outcome is not None
    # From the save on whose end was not heard everything is still there.
    kept = {key.split("/")[3] for key in service.values}
    assert kept == {f"{number:08d}" for number in range(11, 21)}
