"""An alert about a run, as a record, and as the JSON that a command or a webhook gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from ckptstore.records import json_time

AlertKind = Literal["crash", "restart", "hang", "no_progress", "rollback", "finish", "stopped", "disk_low"]
ALERT_KINDS: tuple[AlertKind, ...] = get_args(AlertKind)

# Discord refuses a longer text.
_MAX_TEXT = 1900


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should know about a run.

    Attributes:
        kind: ``"crash"`` (an attempt ended by an error, a signal or for want of memory), ``"restart"``, ``"hang"``,
            ``"no_progress"`` (given up, since starts saved nothing), ``"rollback"``, ``"finish"``, ``"stopped"`` (given
            up for another reason) or ``"disk_low"``.
        store: The store's directory.
        text: One sentence for a person.
        run: The run, or None where the alert is about the store, or the run is not known.
        at: When it happened; aware, UTC.
        host: Name of the machine.
        attempt: Number of the attempt, or None.
        reason: How the attempt ended, as recorded in it, or why it was given up; None where neither is known.
        step: Finished train batches, or None.
        epoch: Zero-based index of the epoch, or None.
        version: The checkpoint that it is about, or None.
        repeated: How many alerts of the same kind and run were left out since the last that was sent.
        detail: What is known beyond that, as JSON.

    Example:
        >>> alert = Alert(kind="finish", store="/runs", run="digits", text="digits has finished")
        >>> alert.to_json()["kind"], alert.to_json()["text"]
        ('finish', 'digits has finished')
    """

    kind: AlertKind
    store: str
    text: str
    run: str | None = None
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    host: str = field(default_factory=lambda: os.uname().nodename)
    attempt: int | None = None
    reason: str | None = None
    step: int | None = None
    epoch: int | None = None
    version: int | None = None
    repeated: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return the alert as a JSON object; the time is ISO 8601 in UTC."""
        return {
            "kind": self.kind,
            "store": self.store,
            "run": self.run,
            "text": self.text,
            "at": json_time(self.at),
            "host": self.host,
            "attempt": self.attempt,
            "reason": self.reason,
            "step": self.step,
            "epoch": self.epoch,
            "version": self.version,
            "repeated": self.repeated,
            "detail": dict(self.detail),
        }


def body_for(url: str, alert: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a webhook gets: of the services that take no other fields, their own ones alone.

    Example:
        >>> body_for("https://hooks.slack.com/services/T/B/X", {"kind": "finish", "text": "done"})
        {'text': 'done'}
        >>> body_for("https://example.org/hook", {"kind": "finish", "text": "done"})
        {'kind': 'finish', 'text': 'done', 'content': 'done'}
    """
    host = urlsplit(url).hostname or ""
    text = str(alert["text"])[:_MAX_TEXT]
    if host.endswith(".slack.com"):
        return {"text": text}
    if host in ("discord.com", "discordapp.com") or host.endswith((".discord.com", ".discordapp.com")):
        # A run may have any name, and none is to call everybody.
        return {"content": text, "allowed_mentions": {"parse": []}}
    return {**alert, "content": text}


def shown_url(url: str) -> str:
    """Return a URL without what may be a secret: all that follows the host, and a password before it.

    Example:
        >>> shown_url("https://me:secret@hooks.slack.com/services/T00/B00/XXX?key=1")
        'https://hooks.slack.com/...'
    """
    parts = urlsplit(url)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}/..."
