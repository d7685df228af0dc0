"""A save by several processes: every order of steps, every death and every limit, in small models."""

from __future__ import annotations

from typing import Any

import pytest

from ckptstore.distributed.driver import drive
from ckptstore.distributed.exchange import Exchange
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.save_records import Announcement
from ckptstore.distributed.saving import JoinSave, LeadSave
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.errors import MessagesLostError, SaveAbandonedError, SaveEndUnknownError
from message_models import DirectMessages, Model, Program, explore


class Leading(Program):
    """Process 0: commits when all have reported; `fails` stands for a commit that the disk refuses."""

    def __init__(self, machine: LeadSave, facts: list[Any], *, fails: bool = False) -> None:
        super().__init__(machine, facts)
        self.fails = fails

    def is_asked(self) -> bool:
        return self.machine.state in ("announced", "gathered")

    def answer(self) -> None:
        number = self.machine.announcement.number
        if self.machine.state == "announced":
            self.machine.gather()
        elif self.fails:
            self.machine.abandon("no room")
        else:
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


# --- several attempts ----------------------------------------------------------------------------


class LeadingAttempts(Leading):
    """Process 0, which tries a second time where a disk was full, and gives up after that."""

    def __init__(self, messages: DirectMessages, processes: int, facts: list[Any]) -> None:
        self.messages = messages
        self.processes = processes
        self.attempt = 0
        super().__init__(self.lead(), facts)

    def lead(self) -> LeadSave:
        announcement = Announcement(
            number=1, attempt=self.attempt, version=7, upload="u", step=10, limit_s=1, commit_limit_s=1
        )
        return LeadSave(Exchange(self.messages, f"save/{self.attempt}"), announcement, self.processes)

    def is_asked(self) -> bool:
        return super().is_asked() or (self.machine.state == "told" and not self.machine.outcome.is_final)

    def answer(self) -> None:
        error = self.machine.error()
        if error is None:
            super().answer()
            if self.machine.state == "telling":
                self.facts[-1] = (*self.facts[-1], self.attempt)
            return
        self.attempt += 1
        self.machine = self.lead()
        if self.attempt == 2 or error.cause == "other":
            self.machine.abandon(because=error, is_final=True)


class JoiningAttempts(Joining):
    """Another process, whose disk is full in some attempts."""

    def __init__(
        self, messages: DirectMessages, facts: list[Any], process: int, full: frozenset[int]
    ) -> None:
        self.messages = messages
        self.attempt = 0
        self.full = full
        super().__init__(self.join(), facts, process)

    def join(self) -> JoinSave:
        return JoinSave(Exchange(self.messages, f"save/{self.attempt}"), 1, step=10, limit_s=1)

    def is_asked(self) -> bool:
        return super().is_asked() or (self.machine.state == "settled" and not self.machine.outcome.is_final)

    def answer(self) -> None:
        if self.machine.state == "settled":
            self.attempt += 1
            self.machine = self.join()
        elif self.attempt in self.full:
            self.machine.refuse("the disk is full", "disk_full")
        else:
            self.facts.append(("wrote", self.attempt, self.process))
            self.machine.report(member="m", nbytes=10 + self.process, digest="d")


@pytest.mark.parametrize(
    ("processes", "full", "last_tick", "may_die"),
    [
        (2, {0}, 1, 1),
        (2, {0, 1}, 1, 1),
        (3, {0}, 0, 0),
        pytest.param(2, {0, 1}, 3, 1, marks=pytest.mark.slow),
    ],
)
def test_a_save_in_several_attempts_in_every_order(
    processes: int, full: set[int], last_tick: int, may_die: int
) -> None:
    values: dict[str, str] = {}
    facts: list[Any] = []
    programs: dict[tuple[int, str], Program] = {
        (0, "1"): LeadingAttempts(DirectMessages(values, 0), processes, facts)
    }
    for process in range(1, processes):
        fails = frozenset(full) if process == 1 else frozenset()
        programs[process, "1"] = JoiningAttempts(DirectMessages(values, process), facts, process, fails)
    ends = set()

    def look(model: Model) -> None:
        committed = [fact for fact in model.facts if fact[0] == "committed"]
        assert len(committed) <= 1
        for fact in committed:
            wrote = {fact[1:] for fact in model.facts if fact[0] == "wrote"}
            assert {(fact[3], process) for process in range(1, processes)} <= wrote
        machines = {process: one.machine for (process, _), one in model.programs.items()}
        final = [one.outcome for one in machines.values() if one.outcome is not None and one.outcome.is_final]
        assert all(outcome == final[0] for outcome in final)
        assert all(outcome.committed == bool(committed) for outcome in final)
        if model.running():
            return
        for process, machine in machines.items():
            assert process in model.dead or machine.state in ("told", "settled", "lost")
        if not model.dead and not model.now:
            # Nobody has waited for a limit, and all know the same, in the same words.
            assert len(final) == processes
            assert len({str(machine.error()) for machine in machines.values()}) == 1
            ends.add((final[0].committed, tuple(final[0].refused.items()), final[0].cause))

    explore(Model(programs, values, facts, last_tick=last_tick, may_die=may_die), look)
    ended_so = (True, (), "other") if full == {0} else (False, ((1, "the disk is full"),), "disk_full")
    assert ends == {ended_so}


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


def lead_save(session: JobSession, attempt: int = 0, number: int = 0, **options: Any) -> LeadSave:
    """Return process 0's side of the next save, or of another attempt at one."""
    return session.lead_save(number or session.next_save(), attempt, upload="u", fields={}, **options)


def join_save(session: JobSession, **options: Any) -> JoinSave:
    return session.join_save(session.next_save(), **options)


def test_a_report_of_a_save_that_was_abandoned_is_not_sent() -> None:
    service, (leader, other) = sessions(2)
    clock = Clock()
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    drive(lead)
    lead.gather()
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    assert 20.0 <= clock.now < 21.0
    error = lead.error()
    assert isinstance(error, SaveAbandonedError)
    assert (error.silent, error.version, error.limit_s, error.cause) == ((1,), 7, 20.0, "other")
    assert "process 1 did not report within 20 s" in str(error)
    before = dict(service.values)
    late = join_save(other, step=10, limit_s=5.0)
    drive(late)
    # It need not even write its part.
    assert late.state == "settled"
    assert service.values == before
    assert str(late.error()) == str(error)
    # The next save finds both again.
    lead = lead_save(leader, version=8, step=20, limit_s=20.0)
    lead.step(0.0)
    join = join_save(other, step=20, limit_s=5.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d", description={"a": [1, None]})
    join.step(0.0)
    join.step(0.0)
    lead.gather()
    drive(lead)
    assert lead.reports[1].description == {"a": [1, None]}
    lead.committed({"version": 8})
    drive(lead)
    drive(join)
    assert join.error() is None
    assert join.outcome == lead.outcome
    assert join.outcome is not None
    assert join.outcome.checkpoint == {"version": 8}


def test_the_limit_begins_when_process_0_has_written_its_own_part() -> None:
    _, (leader, other) = sessions(2)
    clock = Clock()
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    clock.now = 100.0
    lead.gather()
    assert not lead.step(clock.now)
    clock.now = 115.0
    join = join_save(other, step=10, limit_s=5.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d")
    join.step(0.0)
    join.step(0.0)
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    assert lead.state == "gathered"


def test_a_part_that_is_written_too_late_is_not_reported() -> None:
    service, (leader, other) = sessions(2)
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    lead.step(0.0)
    join = join_save(other, step=10, limit_s=5.0)
    drive(join)
    assert join.state == "announced"
    lead.gather()
    lead.step(30.0)
    lead.step(50.0)
    lead.step(50.0)
    before = dict(service.values)
    join.report(member="1.h5", nbytes=4, digest="d")
    drive(join)
    assert (join.state, str(join.error())) == ("settled", str(lead.error()))
    assert service.values == before


def test_a_save_that_process_0_leaves_out_is_waited_for_by_nobody() -> None:
    _, (leader, other) = sessions(2)
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    lead.abandon("a newer one replaces it", is_final=True)
    drive(lead)
    join = join_save(other, step=10, limit_s=5.0)
    assert join.step(0.0)
    assert join.state == "settled"
    assert join.outcome is not None
    assert join.outcome.is_final
    assert str(join.error()) == str(lead.error())
    assert "save 1 (version 7) was abandoned: process 0: a newer one replaces it" in str(join.error())


def test_a_process_that_has_nothing_to_save_says_so_before_the_announcement() -> None:
    _, (leader, other) = sessions(2)
    join = join_save(other, step=10, limit_s=5.0)
    join.refuse("no memory for a copy")
    join.step(0.0)
    join.step(0.0)
    assert join.state == "reported"
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    drive(lead)
    lead.gather()
    clock = Clock()
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    assert clock.now == 0.0
    assert lead.outcome is not None
    assert lead.outcome.refused == {1: "no memory for a copy"}
    drive(join)
    assert join.outcome == lead.outcome


@pytest.mark.parametrize(
    ("causes", "worst"),
    [
        (["disk_full", "disk_full"], "disk_full"),
        (["disk_full", "storage"], "storage"),
        (["disk_full", "other"], "other"),
    ],
)
def test_the_kind_of_failure_that_no_other_try_helps_counts(causes: list[Any], worst: str) -> None:
    _, (leader, *others) = sessions(3)
    lead = lead_save(leader, version=7, step=10, limit_s=20.0)
    drive(lead)
    for other, cause in zip(others, causes, strict=True):
        join = join_save(other, step=10, limit_s=5.0)
        drive(join)
        join.refuse("no", cause)
        join.step(0.0)
        join.step(0.0)
    lead.gather()
    drive(lead)
    error = lead.error()
    assert isinstance(error, SaveAbandonedError)
    assert (error.cause, error.refused) == (worst, {1: "no", 2: "no"})


def test_a_process_that_hears_nothing_does_not_know_the_end() -> None:
    _, (leader, other) = sessions(2)
    clock = Clock()
    unannounced = join_save(other, step=10, limit_s=5.0)
    drive(unannounced, clock=lambda: clock.now, sleep=clock.sleep)
    error = unannounced.error()
    assert isinstance(error, SaveEndUnknownError)
    assert (error.version, error.limit_s) == (None, 5.0)
    leader.next_save()
    lead = lead_save(leader, version=8, step=20, limit_s=20.0, commit_limit_s=30.0)
    lead.step(0.0)
    join = join_save(other, step=20, limit_s=5.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d")
    drive(join, clock=lambda: clock.now, sleep=clock.sleep)
    error = join.error()
    assert isinstance(error, SaveEndUnknownError)
    assert (error.version, error.limit_s) == (8, 50.0)
    assert "ckptstore ls" in str(error)


def test_messages_of_settled_saves_are_deleted() -> None:
    """Also where each save takes several attempts, and fails."""
    service, (leader, other) = sessions(2)
    most = 0
    for number in range(1, 41):
        assert (leader.next_save(), other.next_save()) == (number, number)
        attempts = 1 + number % 3
        for attempt in range(attempts):
            lead = lead_save(leader, attempt, number, version=number, step=number, limit_s=20.0)
            lead.step(0.0)
            join = other.join_save(number, attempt, step=number, limit_s=20.0)
            drive(join)
            if number > 20 or attempt < attempts - 1:
                join.refuse("the disk is full", "disk_full")
            else:
                join.report(member="1.h5", nbytes=4, digest="d")
            join.step(0.0)
            join.step(0.0)
            lead.gather()
            drive(lead)
            if lead.state == "gathered":
                lead.committed()
                drive(lead)
        leader.end_save(number)
        if number != 30:  # a save whose end this process has not asked for
            drive(join)
            other.end_save(number)
        leader.delete_settled()
        most = max(most, len(service.values) if number < 30 else 0)
    assert most <= 18  # of two saves, of up to three attempts each
    # From the save on that has not ended everywhere everything is still there.
    kept = {key.split("/")[3] for key in service.values}
    assert kept == {f"{number:08d}" for number in range(30, 41)}
    other.end_save(30)
    join = other.join_save(other.next_save(), step=41, limit_s=0.0)
    lead = lead_save(leader, version=41, step=41, limit_s=20.0)
    lead.step(0.0)
    drive(join)
    join.report(member="1.h5", nbytes=4, digest="d")
    join.step(0.0)
    join.step(0.0)
    lead.gather()
    drive(lead)
    leader.delete_settled()
    assert {key.split("/")[3] for key in service.values} == {f"{41:08d}"}


class Lossy:
    """Messages that do not get through for a while."""

    def __init__(self, messages: Any, clock: Clock, until: float) -> None:
        self.messages, self.clock, self.until = messages, clock, until
        self.process = messages.process
        self.reply_limit_s = messages.reply_limit_s

    def __getattr__(self, name: str) -> Any:
        if self.clock.now < self.until:
            raise MessagesLostError(process=self.process, key="k", service="memory", reason="planted")
        return getattr(self.messages, name)


def test_messages_may_fail_for_a_while() -> None:
    service, _ = sessions(2)
    clock = Clock()
    messages = Lossy(ServiceMessages(service, process=0, service="memory"), clock, until=9.0)
    job = Job(kind="memory", by="memory", process=0, processes=1, found_in="here")
    lead = lead_save(JobSession(job, messages, token="t"), version=7, step=10)
    with pytest.raises(MessagesLostError):
        drive(lead, patience_s=8.0, clock=lambda: clock.now, sleep=clock.sleep)
    assert (lead.state, clock.now) == ("announcing", pytest.approx(8.0, abs=0.2))
    drive(lead, patience_s=8.0, clock=lambda: clock.now, sleep=clock.sleep)
    assert lead.state == "announced"
