"""A save by several processes: process 0 announces it, each other one reports its part, process 0 tells how it ended.

    process 0                                   every other process
    announcing                                  waiting
    announced   (writes its own part)           announced   (writes its part)    -> reporting
    gathering   <- reports within the limit     reported
    gathered    (commits the checkpoint)        settled
    telling
    told

No payload is touched here: the caller writes its part before it calls `LeadSave.gather` or `JoinSave.report`, and
commits between ``"gathered"`` and `LeadSave.committed`. A checkpoint exists from its commit, whether or not the others
are told: a process that gets no message of a save's end does not know it (``"lost"``), and must conclude nothing.

Saves are numbered from 1 on every process, and any number of them may be under way. An announcement is for the
training step at which the saved values were copied. A process that reaches that step after the limit finds the save
decided; one that is at another step refuses, and the save ends at once, for all.

These machines are one attempt at a save. Process 0 may make another one after an attempt that was abandoned, unless its
outcome is final; each other process looks for that attempt then. Where process 0 gives up, it decides an attempt that
it has never announced, and that outcome is final.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from ckptstore.distributed.exchange import Exchange
from ckptstore.distributed.save_records import Announcement, MemberReport, SaveOutcome
from ckptstore.errors import SaveAbandonedError, SaveEndUnknownError
from ckptstore.errors.save_failures import SaveFailureCause, worst_cause


class LeadSave:
    """Process 0's side of a save.

    Args:
        exchange: Its messages.
        announcement: The save.
        processes: The number of processes.

    Attributes:
        announcement: As above.
        reports: The reports so far, by process, without one of process 0.
        settled: The save up to which a process knows the end of each, by process, as far as it has answered.
        outcome: The end, once the state is ``"telling"`` or ``"told"``.
        state: See the module.
    """

    def __init__(self, exchange: Exchange, announcement: Announcement, processes: int) -> None:
        self._exchange = exchange
        self._others = range(1, processes)
        self._deadline: float | None = None
        self.announcement = announcement
        self.reports: dict[int, MemberReport] = {}
        self.settled: dict[int, int] = {}
        self.outcome: SaveOutcome | None = None
        self.state: Literal["announcing", "announced", "gathering", "gathered", "telling", "told"] = (
            "announcing"
        )

    @property
    def needs_steps(self) -> bool:
        """True except where it waits for this process's part or for the commit, and when all is told."""
        return self.state not in ("announced", "gathered", "told")

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        match self.state:
            case "announcing":
                self._exchange.offer(asdict(self.announcement))
                self.state = "announced"
                return True
            case "gathering":
                if self._deadline is None:
                    self._deadline = now + self.announcement.limit_s
                return self._gather(now, self._deadline)
            case "telling":
                assert self.outcome is not None
                self._exchange.decide(self.outcome.to_json())
                self.state = "told"
                return True
            case _:
                return False

    def gather(self) -> None:
        """Wait for the reports, from the next step on; called when process 0's own part is durable."""
        assert self.state == "announced", self.state
        self.state = "gathering"

    def _gather(self, now: float, deadline: float) -> bool:
        missing = [process for process in self._others if process not in self.reports]
        answers = self._exchange.answers(missing)
        self.settled |= {process: answer["settled"] for process, answer in answers.items()}
        refused = {process: answer["refused"] for process, answer in answers.items() if "refused" in answer}
        self.reports |= {
            process: MemberReport(**answer["report"])
            for process, answer in answers.items()
            if process not in refused
        }
        silent = tuple(process for process in missing if process not in answers)
        if refused:
            causes = {answer["cause"] for process, answer in answers.items() if process in refused}
            self._abandon(refused=refused, cause=worst_cause(causes))
        elif not silent:
            self.state = "gathered"
        elif now >= deadline:
            self._abandon(silent=silent)
        return bool(answers) or self.state != "gathering"

    def committed(self, checkpoint: Mapping[str, Any] | None = None) -> None:
        """Have the others told that the checkpoint exists; called right after its commit.

        Args:
            checkpoint: Its record, as JSON.
        """
        assert self.state == "gathered", self.state
        self.outcome = SaveOutcome(
            version=self.announcement.version, committed=True, is_final=True, checkpoint=checkpoint
        )
        self.state = "telling"

    def abandon(
        self,
        reason: str = "",
        *,
        cause: SaveFailureCause = "other",
        because: SaveAbandonedError | None = None,
        is_final: bool = False,
    ) -> None:
        """Have the others told that there is no checkpoint: process 0 could not write or commit it, or left it out.

        They are told as well where it was never announced: no process waits for it, or writes a part of it.

        Args:
            reason: Why, in words.
            cause: What kind of reason it is.
            because: The attempt before, if that is the reason.
            is_final: True if no other attempt follows.
        """
        assert self.outcome is None, self.outcome
        if because is None:
            self._abandon(refused={0: reason}, cause=cause, is_final=is_final)
        else:
            self._abandon(
                silent=because.silent,
                refused=because.refused,
                cause=because.cause,
                limit_s=because.limit_s,
                is_final=is_final,
            )

    def _abandon(
        self,
        *,
        silent: tuple[int, ...] = (),
        refused: Mapping[int, str] | None = None,
        cause: SaveFailureCause = "other",
        limit_s: float | None = None,
        is_final: bool = False,
    ) -> None:
        self.outcome = SaveOutcome(
            version=self.announcement.version,
            committed=False,
            is_final=is_final,
            silent=silent,
            refused=refused or {},
            cause=cause,
            limit_s=self.announcement.limit_s if limit_s is None else limit_s,
        )
        self.state = "telling"

    def error(self) -> SaveAbandonedError | None:
        """Return the error of a save that was abandoned, or None."""
        return _error(self._exchange.process, self.announcement.number, self.outcome)


class JoinSave:
    """The side of every other process.

    Args:
        exchange: The messages of the save.
        number: Its number.
        step: The training step whose values this process has copied.
        limit_s: How long to wait for the announcement, in seconds.
        settled: The save up to which this process knows the end of each: their messages may be deleted.

    Attributes:
        announcement: The save, once it is announced.
        outcome: Its end, once it is known.
        state: See the module; ``"settled"`` and ``"lost"`` are final.
    """

    def __init__(
        self, exchange: Exchange, number: int, *, step: int | None, limit_s: float, settled: int = 0
    ) -> None:
        self._exchange = exchange
        self._step = step
        self._waited_s = limit_s
        self._settled = settled
        self._give_up: float | None = None
        self._answer: dict[str, Any] = {}
        self.number = number
        self.announcement: Announcement | None = None
        self.outcome: SaveOutcome | None = None
        self.state: Literal[
            "waiting", "announced", "checking", "reporting", "reported", "settled", "lost"
        ] = "waiting"

    @property
    def needs_steps(self) -> bool:
        """True except where it waits for this process's part, and when it is over."""
        return self.state not in ("announced", "settled", "lost")

    @property
    def may_be_committed(self) -> bool:
        """True if a report may have been sent, and no end is known: without one there is no checkpoint."""
        return "report" in self._answer and self.state in ("reporting", "reported", "lost")

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        if self._give_up is None:
            self._give_up = now + self._waited_s
        match self.state:
            case "waiting":
                return self._wait(now, self._give_up)
            case "checking":
                # A save that is decided is not reported to: nobody would read it.
                if not self._look_for_end():
                    self.state = "reporting"
                return True
            case "reporting":
                self._exchange.answer(self._answer)
                if self.announcement is not None:
                    self._waited_s = self.announcement.limit_s + self.announcement.commit_limit_s
                self._give_up = now + self._waited_s
                self.state = "reported"
                return True
            case "reported":
                if not self._look_for_end() and now >= self._give_up:
                    self.state = "lost"
                return self.state != "reported"
            case _:
                return False

    def _wait(self, now: float, give_up: float) -> bool:
        offered, decided = self._exchange.offered_or_decided()
        if offered is not None:
            self.announcement = Announcement(**offered)
        if decided is not None:
            self._settle(decided)  # this process is too late, and need not write its part
            return True
        if self.announcement is None:
            if now >= give_up:
                self.state = "lost"
            return self.state == "lost"
        self.state = "announced"
        if self.announcement.step != self._step:
            self.refuse(f"is at step {self._step}, and step {self.announcement.step} was announced")
        return True

    def _look_for_end(self) -> bool:
        decided = self._exchange.decision()
        if decided is not None:
            self._settle(decided)
        return decided is not None

    def _settle(self, decided: Mapping[str, Any]) -> None:
        self.outcome = SaveOutcome.from_json(decided)
        self.state = "settled"

    def report(self, *, member: str, nbytes: int, digest: str, description: Any = None) -> None:
        """Have this process's part reported, which is durable; of a save that has ended it is not."""
        assert self.state == "announced", self.state
        report = MemberReport(
            process=self._exchange.process,
            member=member,
            nbytes=nbytes,
            digest=digest,
            description=description,
        )
        self._begin_answer({"report": asdict(report)})

    def refuse(self, reason: str, cause: SaveFailureCause = "other") -> None:
        """Have it reported that this process has no part, so that the attempt ends at once for all.

        May be called before it is announced, where this process knows already.
        """
        assert self.state in ("waiting", "announced"), self.state
        self._begin_answer({"refused": reason, "cause": cause})

    def _begin_answer(self, answer: dict[str, Any]) -> None:
        self._answer = {**answer, "settled": self._settled}
        self.state = "checking"

    def error(self) -> SaveAbandonedError | SaveEndUnknownError | None:
        """Return the error of a save that was abandoned, or whose end is not known; None if it was committed."""
        announcement = self.announcement
        if self.state == "lost":
            return SaveEndUnknownError(
                process=self._exchange.process,
                save=self.number,
                version=None if announcement is None else announcement.version,
                limit_s=self._waited_s,
            )
        return _error(self._exchange.process, self.number, self.outcome)


def _error(process: int, number: int, outcome: SaveOutcome | None) -> SaveAbandonedError | None:
    if outcome is None or outcome.committed:
        return None
    return SaveAbandonedError(
        process=process,
        save=number,
        version=outcome.version,
        silent=outcome.silent,
        refused=outcome.refused,
        cause=outcome.cause,
        limit_s=outcome.limit_s,
    )
