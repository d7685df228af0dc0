"""Alerts about a supervised command: which of its ends a person should know of, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptstore.alerts.alert import Alert, AlertKind
from ckptstore.alerts.alerts import Alerts
from ckptstore.storage.layout import absolute
from ckptstore.supervisor.end_reasons import in_words, unfinished
from ckptstore.supervisor.policy import End, Stop
from ckptstore.supervisor.store_access import EndFacts

# A command that was interrupted is started again by whatever has interrupted it.
_EXPECTED = ("finished", "preempted", "interrupted")


class Notices:
    """Sends an alert for each thing of a supervised command that a person should know.

    Args:
        alerts: Sends them; None sends nothing.
        path: The store.
        run: The run, or None where its attempts tell it.
    """

    def __init__(self, alerts: Alerts | None, path: Path, run: str | None) -> None:
        self._alerts, self._store, self._run = alerts, str(absolute(path)), run

    def ended(self, end: End, facts: EndFacts, *, then: str) -> None:
        """Tell that a start of the command has ended, if that was not expected.

        Args:
            end: How it ended.
            facts: What the store knows of it.
            then: What happens next, as a clause.
        """
        if end.reason in _EXPECTED:
            return
        kind: AlertKind = "hang" if end.reason == "hang" else "crash"
        detail = {"exit_code": end.exit_code, "exception": end.exception}
        self._send(kind, f"{in_words(end.exit_code, end.reason)}; {then}", end, facts, detail=detail)

    def restarting(self, end: End, facts: EndFacts, *, number: int, how: str) -> None:
        """Tell that the command is started again, for the n-th time."""
        self._send("restart", f"start {number} {how}", end, facts, detail={"start": number})

    def stopped(self, end: End, facts: EndFacts, stop: Stop, *, restarts: int) -> None:
        """Tell that the command is not started again: it is done, or that would be no use."""
        detail = {"stopped": stop.reason, "restarts": restarts}
        if stop.reason is None and end.reason == "nan":
            self._send(
                "stopped", "the training has stopped, since a loss went bad", end, facts, detail=detail
            )
        elif stop.reason is None and end.reason != "finished":
            text = f"{in_words(end.exit_code, end.reason)}, but {unfinished(end.reason, facts.attempt)}"
            self._send("stopped", text, end, facts, detail=detail)
        elif stop.reason is None:
            self._send("finish", f"finished, after {restarts} restarts", end, facts, detail=detail)
        elif stop.reason != "signal":
            kind: AlertKind = "no_progress" if stop.reason == "no_progress" else "stopped"
            text = f"{in_words(end.exit_code, end.reason)}; not restarted: {stop.text}"
            self._send(kind, text, end, facts, detail=detail)

    def _send(self, kind: AlertKind, text: str, end: End, facts: EndFacts, *, detail: dict[str, Any]) -> None:
        if self._alerts is None:
            return
        attempt, point = facts.attempt, facts.state.resume_point
        run = self._run if attempt is None else attempt.run
        where = "" if end.step is None else f" (step {end.step:,})"
        self._alerts.send(
            Alert(
                kind=kind,
                store=self._store,
                run=run,
                text=f"{run or Path(self._store).name}: {text}{where}",
                attempt=None if attempt is None else attempt.attempt,
                reason=end.reason,
                step=end.step,
                version=None if point is None else point.version,
                detail=detail,
            )
        )
