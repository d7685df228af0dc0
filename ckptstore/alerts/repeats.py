"""Alerts that come again and again: within an hour those of one kind and run are counted, and the first is sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckptstore.alerts.alert import Alert

INTERVAL_S = 3600.0


@dataclass(slots=True)
class _Sent:
    at_s: float
    left_out: int = 0


class Repeats:
    """Decides which alerts are sent.

    Example:
        >>> repeats = Repeats()
        >>> crash = Alert(kind="crash", store="/runs", run="digits", text="digits was killed")
        >>> [repeats.admit(crash, now) is not None for now in (0, 60, 120)]
        [True, False, False]
        >>> again = repeats.admit(crash, 4000)
        >>> again.repeated, again.text
        (2, 'digits was killed (and 2 more like this since the last alert)')
    """

    def __init__(self) -> None:
        self._sent: dict[tuple[str, str | None], _Sent] = {}

    def admit(self, alert: Alert, now_s: float) -> Alert | None:
        """Return the alert to send, with the number of those that were left out before it; None to leave it out.

        Args:
            alert: The alert.
            now_s: Seconds of a clock that only increases.
        """
        key = alert.kind, alert.run
        before = self._sent.get(key)
        if before is not None and now_s - before.at_s < INTERVAL_S:
            before.left_out += 1
            return None
        left_out = 0 if before is None else before.left_out
        self._sent[key] = _Sent(now_s)
        if not left_out:
            return alert
        return replace(
            alert,
            repeated=left_out,
            text=f"{alert.text} (and {left_out} more like this since the last alert)",
        )
