"""A resume by several processes: all begin with the same checkpoint, or none does; in every order, with every death."""

from __future__ import annotations

from typing import Any

import pytest

from ckptstore.distributed.driver import drive
from ckptstore.distributed.resuming import JoinResume, LeadResume, Objection, Offer
from ckptstore.errors import ResumeRefusedError
from message_models import DirectMessages, Model, Program, Rounds, explore


def offer(version: int | None) -> Offer:
    return Offer(version=version, store="s", limit_s=1)


class Leading(Program):
    """Process 0: falls back to the next version that it has, and at last refuses."""

    def __init__(self, machine: LeadResume, facts: list[Any], older: list[int | None]) -> None:
        super().__init__(machine, facts)
        self.older = older

    def is_asked(self) -> bool:
        return bool(self.machine.state == "objected")

    def answer(self) -> None:
        if self.older:
            self.machine.offer_next(offer(self.older.pop(0)))
        else:
            self.machine.refuse()


class Joining(Program):
    """Another process: can read some versions only."""

    def __init__(self, machine: JoinResume, facts: list[Any], cannot: dict[int | None, Objection]) -> None:
        super().__init__(machine, facts)
        self.cannot = cannot

    def is_asked(self) -> bool:
        return bool(self.machine.state == "offered")

    def answer(self) -> None:
        objection = self.cannot.get(self.machine.offer.version)
        if objection is None:
            self.machine.confirm()
        else:
            self.machine.object_to(objection.kind, objection.reason)


UNREADABLE = Objection(kind="unreadable", reason="cannot see it")
OTHER_CODE = Objection(kind="mismatch", reason="another model")


def model_of(versions: list[int | None], cannot: list[dict[int | None, Objection]], **limits: int) -> Model:
    values: dict[str, str] = {}
    facts: list[Any] = []
    processes = len(cannot) + 1
    programs: dict[tuple[int, str], Program] = {}
    lead = LeadResume(Rounds(DirectMessages(values, 0)), offer(versions[0]), processes)
    programs[0, "resume"] = Leading(lead, facts, versions[1:])
    for process, objections in enumerate(cannot, start=1):
        join = JoinResume(Rounds(DirectMessages(values, process)), limit_s=1)
        programs[process, "resume"] = Joining(join, facts, objections)
    return Model(programs, values, facts, **limits)


def check(model: Model) -> None:
    """If one begins, it is with what all others have confirmed, and none begins with anything else."""
    machines = [program.machine for program in model.programs.values()]
    begun = [machine.offer.version for machine in machines if machine.state == "agreed"]
    assert len(set(begun)) <= 1
    if begun:
        for process, program in enumerate(model.programs.values()):
            assert program.machine.offer is not None
            assert program.machine.offer.version == begun[0]
            assert not process or begun[0] not in program.cannot
            # It may still be on its way to know that, or have given up waiting.
            assert program.machine.state in ("telling", "agreed", "answered", "refused")
    if not model.running():
        for (process, _), program in model.programs.items():
            state = program.machine.state
            assert process in model.dead or state in ("agreed", "refused")
            assert (program.machine.error() is None) == (state == "agreed") or process in model.dead


CASES = {
    "all": ([7], [{}, {}], 7, ""),
    "from scratch": ([None], [{}, {}], None, ""),
    "one cannot read the newest": ([7, 5], [{}, {7: UNREADABLE}], 5, ""),
    "two cannot read different ones": ([7, 5, None], [{5: UNREADABLE}, {7: UNREADABLE}], None, ""),
    "one can read none": ([7], [{}, {7: UNREADABLE}], "refused", "process 2: cannot see it"),
    "another program": ([7, 5], [{7: OTHER_CODE}, {7: UNREADABLE}], "refused", "process 1: another model"),
}


@pytest.mark.parametrize("name", CASES)
def test_all_begin_with_the_same_or_none_does(name: str) -> None:
    versions, cannot, expected, reason = CASES[name]
    ends = set()

    def look(model: Model) -> None:
        check(model)
        if not model.running() and not model.dead and not model.now:
            for program in model.programs.values():
                machine = program.machine
                ends.add(machine.offer.version if machine.state == "agreed" else machine.state)
                if machine.state == "refused":
                    assert isinstance(machine.error(), ResumeRefusedError)
                    assert reason in str(machine.error())

    last_tick, may_die = (2, 1) if len(versions) == 1 else (1, 0)
    explore(model_of(versions, cannot, last_tick=last_tick, may_die=may_die), look)
    assert ends == {expected}


def test_a_fallback_with_deaths_and_stalls() -> None:
    explore(model_of([7, 5], [{7: UNREADABLE}], last_tick=4, may_die=1), check)


class Clock:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_each_process_names_who_is_silent() -> None:
    values: dict[str, str] = {}
    clock = Clock()
    lead = LeadResume(Rounds(DirectMessages(values, 0)), Offer(version=7, store="s", limit_s=30.0), 3)
    lead.step(clock.now)
    join = JoinResume(Rounds(DirectMessages(values, 1)), limit_s=60.0)
    drive(join)
    join.confirm()
    join.step(0.0)
    drive(lead, clock=lambda: clock.now, sleep=clock.sleep)
    assert 30.0 <= clock.now < 31.0
    drive(join)
    assert lead.silent == join.silent == (2,)
    assert str(lead.error()) == str(join.error())
    assert "cannot resume from version 7 together: process 2 did not answer within 30 s" in str(join.error())
    alone = JoinResume(Rounds(DirectMessages({}, 1)), limit_s=60.0)
    drive(alone, clock=lambda: clock.now, sleep=clock.sleep)
    assert "cannot begin together" in str(alone.error())
    assert "process 0 did not answer within 60 s" in str(alone.error())
