"""Output of `ckptstore watch` without a screen: a line for each change, or a JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from ckptstore.printable import printable
from ckptstore.records import Observation, ObservedRun, json_number, json_time
from ckptstore.report.progress import epochs_text, finished_epochs, finished_share, restarts, time_left_s
from ckptstore.report.run_table import newest_value
from ckptstore.report.text import age_text, metric_text, size_text, time_text

# What is different whenever one looks, though nothing has happened.
_ALWAYS_NEW = ("at", "checkpoint_age_s", "phase_s")


def watch_document(observation: Observation) -> dict[str, Any]:
    """Return a store as the JSON document of `ckptstore watch`."""
    disk = observation.disk
    return {
        "store": str(observation.store),
        "at": json_time(observation.at),
        "problem": observation.problem,
        "runs": [_document(observed, observation.at) for observed in observation.runs],
        "disk": None
        if disk is None
        else {"total": disk.total, "free": disk.free, "full_in_s": _rounded(disk.full_in_s)},
    }


def _document(observed: ObservedRun, now: datetime) -> dict[str, Any]:
    """Return the JSON object of a run, as `ckptstore runs` has it, with what only watching shows."""
    run, cost = observed.run, observed.cost
    return {
        **run.to_json(),
        "phase": observed.phase,
        "phase_s": _rounded(observed.phase_s),
        "metrics": {name: json_number(value) for name, value in observed.metrics.items()},
        "monitor": None if observed.monitor is None else observed.monitor[0],
        "finished": _rounded(finished_share(run), 4),
        "time_left_s": _rounded(time_left_s(observed)),
        "checkpoint_age_s": None
        if run.latest is None
        else _rounded((now - run.latest.created_at).total_seconds()),
        "saving_share": None if cost is None else _rounded(cost.share, 5),
        "restarts": restarts(run),
    }


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)


def without_clocks(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of `watch_document` without what differs from second to second though nothing has happened."""
    kept = {name: value for name, value in document.items() if name not in (*_ALWAYS_NEW, "disk")}
    runs = [{name: value for name, value in run.items() if name not in _ALWAYS_NEW} for run in kept["runs"]]
    return {**kept, "runs": runs}


class ChangeLines:
    """Lines about what has changed between two looks at a store, but for single batches."""

    def __init__(self) -> None:
        self._runs: dict[str, object] = {}
        self._problem: str | None = None

    def lines(self, observation: Observation) -> Iterator[str]:
        """Yield a line for each run that is new or has changed, and for a problem that has come or gone."""
        time = time_text(observation.at)
        if observation.problem != self._problem:
            said = observation.problem or "the store can be read again"
            self._problem = observation.problem
            yield f"{time}  {printable(str(observation.store))}: {printable('; '.join(said.splitlines()))}"
        if observation.problem is not None:
            return
        for observed in observation.runs:
            state = _state(observed)
            if self._runs.get(observed.run.name) != state:
                self._runs[observed.run.name] = state
                yield f"{time}  {_watched_line(observed, observation)}"
        gone = set(self._runs) - {observed.run.name for observed in observation.runs}
        for name in sorted(gone):
            del self._runs[name]
            yield f"{time}  {printable(name)}  removed"


def _state(observed: ObservedRun) -> object:
    run = observed.run
    newest = None if run.latest is None else run.latest.version
    return run.state, finished_epochs(run), newest, run.attempts


def _watched_line(observed: ObservedRun, observation: Observation) -> str:
    """Return one line about a run."""
    run = observed.run
    left = time_left_s(observed)
    parts = [printable(run.name), run.state, f"epochs {epochs_text(run) or 0}"]
    parts += [] if run.step is None else [f"step {run.step}"]
    if observed.monitor is not None:
        value = newest_value(observed, observed.monitor[0])
        parts += [] if value is None else [f"{printable(observed.monitor[0])} {metric_text(value)}"]
    if run.latest is not None:
        age = (observation.at - run.latest.created_at).total_seconds()
        parts.append(f"version {run.latest.version} saved {age_text(age)} ago")
    if restarts(run):
        parts.append(f"{restarts(run)} restart{'' if restarts(run) == 1 else 's'}")
    if left is not None:
        parts.append(f"{age_text(left)} left")
    last = run.last_attempt
    if not run.is_active and last is not None and last.reason not in (None, "finished"):
        parts.append(f"ended: {last.reason}".replace("_", " "))
    if observation.disk is not None and observation.disk.full_in_s is not None:
        full = f"disk full in {age_text(observation.disk.full_in_s)}"
        parts.append(f"{full} ({size_text(observation.disk.free)} free)")
    return "  ".join(parts)
