"""A resume by several processes: process 0 offers a beginning, and all of them confirm the same before they train.

The beginning is a checkpoint, or none. A process that cannot read the checkpoint objects with ``"unreadable"``, and
process 0 may offer an older one in another round; any other objection, such as another program, ends it for all.
So either all processes begin with the same, or none does, and each knows why within the limit.

The caller looks at the offer (`JoinResume.offer`) and answers, and on process 0 decides about objections. No checkpoint
is opened here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ckptstore.distributed.exchange import Exchange
from ckptstore.errors import ResumeRefusedError

# Why a process cannot begin with what is offered.
ObjectionKind = Literal["unreadable", "mismatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A beginning, as process 0 offers it.

    Attributes:
        version: The checkpoint; None to begin from scratch.
        store: The identity of the store: a process that sees another one there must not begin.
        digest: The digest of the checkpoint's payload.
        checkpoint: The record of the checkpoint, for processes that do not open the manifest; JSON.
        limit_s: How long the answers may take, in seconds.
    """

    version: int | None
    store: str
    digest: str | None = None
    checkpoint: Any = None
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """Why a process cannot begin with what is offered: ``"unreadable"`` here, or ``"mismatch"`` with any checkpoint."""

    kind: ObjectionKind
    reason: str


class LeadResume:
    """Process 0's side; it reads the checkpoint while the others do.

    Args:
        rounds: Returns the messages of a round, by its number from 0.
        offer: What to begin with.
        processes: The number of processes.

    Attributes:
        offer: What is offered now.
        objections: What stands against it, by process, in the state ``"objected"``.
        silent: The processes that did not answer.
        state: ``"objected"`` waits for `offer_next` or `refuse`; ``"agreed"`` and ``"refused"`` are final.
    """

    def __init__(self, rounds: Callable[[int], Exchange], offer: Offer, processes: int) -> None:
        self._rounds = rounds
        self._round = 0
        self._exchange = rounds(0)
        self._others = range(1, processes)
        self._missing = set(self._others)
        self._deadline = 0.0
        self._decision: dict[str, Any] = {}
        self._next: Offer | None = None
        self.offer = offer
        self.objections: dict[int, Objection] = {}
        self.silent: tuple[int, ...] = ()
        self.state: Literal["offering", "gathering", "objected", "telling", "agreed", "refused"] = "offering"

    @property
    def needs_steps(self) -> bool:
        """True except where it waits for its caller, and when it is over."""
        return self.state in ("offering", "gathering", "telling")

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        match self.state:
            case "offering":
                self._exchange.offer(asdict(self.offer))
                self._deadline = now + self.offer.limit_s
                self.state = "gathering"
                return True
            case "gathering":
                return self._gather(now)
            case "telling":
                self._exchange.decide(self._decision)
                self._told()
                return True
            case _:
                return False

    def _gather(self, now: float) -> bool:
        answers = self._exchange.answers(sorted(self._missing))
        self._missing -= set(answers)
        self.objections |= {
            process: Objection(**answer) for process, answer in answers.items() if answer.get("kind")
        }
        final = any(objection.kind == "mismatch" for objection in self.objections.values())
        if final or (self._missing and now >= self._deadline):
            self.silent = () if final else tuple(sorted(self._missing))
            self.refuse()
        elif not self._missing and self.objections:
            self.state = "objected"
        elif not self._missing:
            self._decision, self.state = {"decision": "agreed"}, "telling"
        return bool(answers) or self.state != "gathering"

    def object_to(self, kind: ObjectionKind, reason: str) -> None:
        """Object as process 0: it finds out while the others look at what it offers."""
        assert self.state in ("gathering", "objected"), self.state
        self.objections[0] = Objection(kind=kind, reason=reason)

    def offer_next(self, offer: Offer) -> None:
        """Offer something else in another round, since a process cannot read this."""
        assert self.state == "objected", self.state
        self._next = offer
        self._decision, self.state = {"decision": "next"}, "telling"

    def refuse(self, reason: str | None = None) -> None:
        """End it for all processes, for the objections that there are or a reason of process 0's own."""
        if reason is not None:
            self.objections[0] = Objection(kind="mismatch", reason=reason)
        refused = {process: objection.reason for process, objection in self.objections.items()}
        self._decision = {"decision": "refused", "silent": self.silent, "refused": refused}
        self.state = "telling"

    def _told(self) -> None:
        if self._next is None:
            self.state = "agreed" if self._decision["decision"] == "agreed" else "refused"
            return
        self.offer, self._next = self._next, None
        self._round += 1
        self._exchange = self._rounds(self._round)
        self._missing = set(self._others)
        self.objections = {}
        self.state = "offering"

    def error(self) -> ResumeRefusedError | None:
        """Return the error of a beginning that was refused, or None."""
        if self.state != "refused":
            return None
        refused = {process: objection.reason for process, objection in self.objections.items()}
        return _error(self._exchange.process, self.offer, self.silent, refused)


class JoinResume:
    """The side of every other process.

    Args:
        rounds: Returns the messages of a round, by its number from 0.
        limit_s: How long to wait for each message of process 0, in seconds; it looks for a checkpoint meanwhile.

    Attributes:
        offer: What is offered now, or None.
        silent, refused: Why it was refused, by process.
        state: ``"offered"`` waits for `confirm` or `object_to`; ``"agreed"`` and ``"refused"`` are final.
    """

    def __init__(self, rounds: Callable[[int], Exchange], *, limit_s: float) -> None:
        self._rounds = rounds
        self._round = 0
        self._exchange = rounds(0)
        self._limit_s = limit_s
        self._give_up: float | None = None
        self._answer: dict[str, Any] = {}
        self.offer: Offer | None = None
        self.silent: tuple[int, ...] = ()
        self.refused: Mapping[int, str] = {}
        self.state: Literal["waiting", "offered", "answering", "answered", "agreed", "refused"] = "waiting"

    @property
    def needs_steps(self) -> bool:
        """True except where it waits for its caller, and when it is over."""
        return self.state in ("waiting", "answering", "answered")

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        if self._give_up is None:
            self._give_up = now + self._limit_s
        match self.state:
            case "waiting":
                offered, decided = self._exchange.offered_or_decided()
                # Process 0 may end it before this process looks, or before it has offered anything.
                if decided is not None:
                    self._follow(decided)
                    return True
                if offered is not None:
                    self.offer = Offer(**offered)
                    self.state = "offered"
                    return True
            case "answering":
                self._exchange.answer(self._answer)
                assert self.offer is not None
                self._give_up = now + self.offer.limit_s + self._limit_s
                self.state = "answered"
                return True
            case "answered":
                decided = self._exchange.decision()
                if decided is not None:
                    self._follow(decided)
                    return True
            case _:
                return False
        if now >= self._give_up:
            self.silent = (0,)
            self.state = "refused"
            return True
        return False

    def _follow(self, decided: Mapping[str, Any]) -> None:
        if decided["decision"] == "agreed":
            self.state = "agreed"
        elif decided["decision"] == "refused":
            self.silent = tuple(decided["silent"])
            self.refused = {int(process): reason for process, reason in decided["refused"].items()}
            self.state = "refused"
        else:
            self._round += 1
            self._exchange = self._rounds(self._round)
            self._give_up = None
            self.state = "waiting"

    def confirm(self) -> None:
        """Answer that this process can begin with what is offered."""
        self._begin_answer({})

    def object_to(self, kind: ObjectionKind, reason: str) -> None:
        """Answer that it cannot; see `Objection`."""
        self._begin_answer(asdict(Objection(kind=kind, reason=reason)))

    def _begin_answer(self, answer: dict[str, Any]) -> None:
        assert self.state == "offered", self.state
        self._answer = answer
        self.state = "answering"

    def error(self) -> ResumeRefusedError | None:
        """Return the error of a beginning that was refused, or None."""
        if self.state != "refused":
            return None
        return _error(self._exchange.process, self.offer, self.silent, self.refused, limit_s=self._limit_s)


def _error(
    process: int,
    offer: Offer | None,
    silent: tuple[int, ...],
    refused: Mapping[int, str],
    *,
    limit_s: float = 0.0,
) -> ResumeRefusedError:
    return ResumeRefusedError(
        process=process,
        version=None if offer is None else offer.version,
        silent=silent,
        refused=refused,
        limit_s=limit_s if offer is None else offer.limit_s,
    )
