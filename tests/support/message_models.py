"""Exhaustive exploration of what processes say to each other: every order of their steps, deaths and limits.

A model is a dictionary of processes, each a small program over `ckptstore.distributed`'s state machines, with a service
in memory. `explore` takes every step that is possible in every state that can be reached, and checks each state.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from ckptstore.distributed.exchange import Exchange
from ckptstore.errors import MessageConflictError

_calls = [0]


class DirectMessages:
    """`Messages` without threads or waiting, which are copied with the model.

    Args:
        values: The service.
        process: The number of the process.
    """

    reply_limit_s = 1.0

    def __init__(self, values: dict[str, str], process: int) -> None:
        self.values = values
        self.process = process

    def put(self, key: str, value: str) -> None:
        _calls[0] += 1
        present = self.values.setdefault(key, value)
        if present != value:
            raise MessageConflictError(process=self.process, key=key, present=present)

    def get(self, key: str, limit_s: float) -> str:
        raise NotImplementedError("machines look, and do not wait")

    def present(self, keys: Sequence[str]) -> dict[str, str]:
        _calls[0] += 1
        return {key: self.values[key] for key in keys if key in self.values}

    def delete(self, keys: Sequence[str]) -> None:
        _calls[0] += 1
        for key in keys:
            self.values.pop(key, None)


class Rounds:
    """The exchanges of a resume, by their number."""

    def __init__(self, messages: DirectMessages) -> None:
        self.messages = messages

    def __call__(self, number: int) -> Exchange:
        return Exchange(self.messages, f"resume/{number}")


class Program:
    """One thread of a process: an action a step, with at most one message.

    Attributes:
        machine: The state machine that it drives.
        facts: What really happens in the whole model.
    """

    def __init__(self, machine: Any, facts: list[Any]) -> None:
        self.machine = machine
        self.facts = facts

    @property
    def is_over(self) -> bool:
        return not self.machine.needs_steps and not self.is_asked()

    def is_asked(self) -> bool:
        """Return True if the machine waits for this program."""
        return False

    def answer(self) -> None:
        """Do what the machine waits for."""

    def step(self, now: int) -> None:
        if self.is_asked():
            self.answer()
        else:
            self.machine.step(now)


@dataclass
class Model:
    """A state of the whole: processes, service, clock.

    Attributes:
        programs: The programs, by process and thread.
        values: The service.
        facts: What really happened, such as which checkpoints were committed.
        now: The clock, which goes in whole limits.
        last_tick: Where the clock ends.
        dead: The processes that are dead.
        may_die: How many may die.
    """

    programs: dict[tuple[int, str], Program]
    values: dict[str, str]
    facts: list[Any] = field(default_factory=list)
    now: int = 0
    last_tick: int = 4
    dead: frozenset[int] = frozenset()
    may_die: int = 1

    def running(self) -> list[tuple[int, str]]:
        """Return the programs that are alive and not over."""
        return [key for key, one in self.programs.items() if key[0] not in self.dead and not one.is_over]

    def actions(self) -> list[tuple[str, Any]]:
        """Return what can happen next."""
        running = self.running()
        actions: list[tuple[str, Any]] = [("step", key) for key in running]
        if len(self.dead) < self.may_die:
            actions += [("die", process) for process in sorted({process for process, _ in running})]
        if running and self.now < self.last_tick:
            actions.append(("tick", 1))
        return actions

    def after(self, action: tuple[str, Any]) -> Model:
        """Return the state behind an action."""
        other: Model = pickle.loads(pickle.dumps(self))
        match action:
            case "step", key:
                before = _calls[0]
                other.programs[key].step(other.now)
                assert _calls[0] - before <= 1, "more than one message in a step"
            case "die", process:
                other.dead |= {process}
            case _:
                other.now += 1
        return other


def frozen(value: Any) -> Any:
    """Return a value as something that can be hashed, the same for equal states."""
    match value:
        case None | str() | int() | float():
            return value
        case dict():
            return tuple(sorted(((repr(key), frozen(item)) for key, item in value.items())))
        case list() | tuple():
            return tuple(frozen(item) for item in value)
        case set() | frozenset() | range():
            return tuple(sorted(value))
        case DirectMessages():
            return value.process
    names = value.__dataclass_fields__ if is_dataclass(value) else vars(value)
    return (type(value).__name__, *(frozen(getattr(value, name)) for name in names))


def explore(model: Model, check: Callable[[Model], None], *, at_most: int = 100_000) -> int:
    """Check every state that can be reached; from each, what lives must come to an end once the limits have passed.

    Returns:
        The number of states.
    """
    waiting = [model]
    seen = {frozen(model)}
    while waiting:
        state = waiting.pop()
        check(state)
        for action in state.actions():
            following = state.after(action)
            key = frozen(following)
            if key not in seen:
                assert len(seen) < at_most
                seen.add(key)
                waiting.append(following)
        if state.now == state.last_tick:
            check(ended(state))
    return len(seen)


def ended(state: Model) -> Model:
    """Return a state's end: the clock goes on, and every program that lives makes its steps in turn."""
    state = pickle.loads(pickle.dumps(state))
    for _ in range(60):
        for key in state.running():
            state.programs[key].step(state.now)
        state.now += 1
    assert not state.running(), f"wait for ever: {state.running()}"
    return state
