"""The processes of a fit find each other: they agree on a token, which begins the keys of all their messages.

Messages of an earlier job may still be there, where the service outlives the processes (as torchrun's does), and those
of earlier fits always are. So process 0 writes a new token under the first number that is free, each other process
signs the newest token that it finds with a name of its own, drawn now, and process 0 welcomes those names. A process
that has signed a token of the past is not welcomed under its new name, and looks for a newer token.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal

from ckptstore.distributed.messages import Messages
from ckptstore.errors import JobIncompleteError, MessageConflictError

ROOT = "ckptstore"
# The others wait for so many limits of process 0: it may come late, and tells only after its own who is missing.
JOIN_FACTOR = 2


class LeadMeeting:
    """Process 0's side of a meeting.

    Args:
        messages: The messages of this process.
        processes: The number of processes.
        limit_s: How long to wait for the others.
        name: What meets, such as ``"fit"``; the same on all processes.
        token: For tests; drawn at random by default.

    Attributes:
        token: The token, agreed on once the state is ``"met"``.
        silent: The processes that have not come.
        state: ``"met"`` and ``"failed"`` are final.
    """

    def __init__(
        self, messages: Messages, processes: int, *, limit_s: float, name: str = "fit", token: str = ""
    ) -> None:
        self._messages = messages
        self._processes = processes
        self._limit_s = limit_s
        self._name = name
        self._number = 0
        self._since: float | None = None
        self._names: dict[int, str] = {}
        self.token = token or secrets.token_hex(8)
        self.state: Literal["claiming", "gathering", "telling", "met", "failed"] = "claiming"

    @property
    def needs_steps(self) -> bool:
        """True until it is over."""
        return self.state not in ("met", "failed")

    @property
    def silent(self) -> tuple[int, ...]:
        """The processes that have not come."""
        return tuple(process for process in range(1, self._processes) if process not in self._names)

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        self._since = now if self._since is None else self._since
        match self.state:
            case "claiming":
                try:
                    self._messages.put(hello(self._name, self._number), self.token)
                except MessageConflictError:
                    self._number += 1
                else:
                    self.state = "gathering"
                return True
            case "gathering":
                found = self._look(self.silent)
                if not self.silent or now >= self._since + self._limit_s:
                    self.state = "telling"
                return found
            case "telling":
                welcomed = {"names": [*self._names.values()], "silent": self.silent}
                self._messages.put(f"{ROOT}/{self.token}/welcome", json.dumps(welcomed, sort_keys=True))
                self.state = "failed" if self.silent else "met"
                return True
            case _:
                return False

    def _look(self, processes: Iterable[int]) -> bool:
        keys = {f"{ROOT}/{self.token}/join/{process}": process for process in processes}
        found = self._messages.present([*keys])
        self._names |= {keys[key]: name for key, name in found.items()}
        return bool(found)

    def error(self) -> JobIncompleteError:
        """Return the error of a meeting that failed."""
        return JobIncompleteError(
            process=0, processes=self._processes, silent=self.silent, limit_s=self._limit_s
        )


class JoinMeeting:
    """The side of every other process; arguments as those of `LeadMeeting`.

    Attributes:
        token: The token, agreed on once the state is ``"met"``.
        silent: The processes that have not come, so far as this one knows.
        state: ``"met"`` and ``"failed"`` are final.
    """

    def __init__(
        self, messages: Messages, processes: int, *, limit_s: float, name: str = "fit", own_name: str = ""
    ) -> None:
        self._messages = messages
        self._processes = processes
        self._limit_s = limit_s
        self._name = name
        self._own_name = own_name or secrets.token_hex(8)
        self._number = -1
        self._since: float | None = None
        self.token = ""
        self.silent: tuple[int, ...] = (0,)
        self.state: Literal["looking", "signing", "signed", "met", "failed"] = "looking"

    @property
    def needs_steps(self) -> bool:
        """True until it is over."""
        return self.state not in ("met", "failed")

    def step(self, now: float) -> bool:
        """Make at most one call of `Messages`; see `ckptstore.distributed.driver.Machine`."""
        self._since = now if self._since is None else self._since
        is_over = now >= self._since + JOIN_FACTOR * self._limit_s
        match self.state:
            case "looking" | "signed":
                done = self._look()
            case "signing":
                self._sign()
                done = True
            case _:
                return False
        if is_over and self.needs_steps and not done:
            self.state = "failed"
            return True
        return done

    def _look(self) -> bool:
        newer = hello(self._name, self._number + 1)
        welcome = f"{ROOT}/{self.token}/welcome"
        found = self._messages.present([newer, welcome] if self.state == "signed" else [newer])
        if welcome in found and self._is_welcomed(json.loads(found[welcome])):
            return True
        if newer in found:
            self._number += 1
            self.token = found[newer]
            self.state = "signing"
            return True
        return False

    def _is_welcomed(self, welcome: dict[str, Any]) -> bool:
        if self._own_name not in welcome["names"]:
            return False
        self.silent = tuple(welcome["silent"])
        self.state = "failed" if self.silent else "met"
        return True

    def _sign(self) -> None:
        # A token of the past has another name there. It is not told apart here: nobody will be welcomed by it.
        with suppress(MessageConflictError):
            self._messages.put(f"{ROOT}/{self.token}/join/{self._messages.process}", self._own_name)
        self.state = "signed"

    def error(self) -> JobIncompleteError:
        """Return the error of a meeting that failed."""
        return JobIncompleteError(
            process=self._messages.process,
            processes=self._processes,
            silent=self.silent,
            limit_s=self._limit_s * (JOIN_FACTOR if self.silent == (0,) else 1),
        )


def hello(name: str, number: int) -> str:
    """Return the key of the token of a meeting, of those of one name the number-th."""
    return f"{ROOT}/meeting/{name}/{number}"
