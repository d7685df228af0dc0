"""A store's runs as metrics in Prometheus' text format, for the textfile collector of node_exporter.

Every metric begins with ``ckptstore_`` and has the labels ``store`` and ``run``. Seconds, bytes and ratios are plain
numbers, as Prometheus wants them; times of events are Unix times, so that an age is ``time() - metric``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from ckptstore.records import Observation, ObservedRun, RunState
from ckptstore.report.progress import restarts

_STATES: tuple[RunState, ...] = get_args(RunState)
# Labels, and a number or None where it is not known.
_Values = Iterable[tuple[Mapping[str, str], float | None]]


def _saved_at(observed: ObservedRun) -> float | None:
    return None if observed.run.latest is None else observed.run.latest.created_at.timestamp()


def _saved_bytes(observed: ObservedRun) -> float | None:
    return None if observed.run.latest is None else observed.run.latest.nbytes


def _saving_share(observed: ObservedRun) -> float | None:
    return None if observed.cost is None else observed.cost.share


# Name without prefix, help, and the number of a run or None where it is not known.
_FACTS: tuple[tuple[str, str, Callable[[ObservedRun], float | None]], ...] = (
    ("run_step", "Finished train batches of the run.", lambda one: one.run.step),
    ("run_epoch", "Epoch that the run is in, from 0.", lambda one: one.run.epoch),
    ("run_epochs", "Epochs that the run trains to.", lambda one: one.run.epochs),
    ("run_steps_per_second", "Train batches per second, lately.", lambda one: one.run.steps_per_s),
    ("run_attempts", "Processes that have trained the run.", lambda one: one.run.attempts),
    ("run_restarts", "Attempts after the first.", lambda one: restarts(one.run)),
    ("run_checkpoints", "Complete checkpoints of the run.", lambda one: one.run.checkpoints),
    ("run_last_checkpoint_timestamp_seconds", "When the newest checkpoint was saved.", _saved_at),
    ("run_last_checkpoint_bytes", "Size of the newest checkpoint.", _saved_bytes),
    ("run_saving_ratio", "Share of the time that training waited for its last saves, 0 to 1.", _saving_share),
)


def render(seen: Observation) -> str:
    r"""Return a store's metrics as text in the format that Prometheus calls 0.0.4.

    Args:
        seen: The store; where its runs cannot be seen, ``ckptstore_up`` is 0 and there are no other metrics of runs.

    Example:
        >>> from datetime import UTC, datetime
        >>> from pathlib import Path
        >>> seen = Observation(store=Path("/runs/digits"), at=datetime.fromtimestamp(0, UTC))
        >>> print(render(seen), end="")
        # HELP ckptstore_up 1 if the store could be read.
        # TYPE ckptstore_up gauge
        ckptstore_up{store="/runs/digits"} 1
        # HELP ckptstore_seen_timestamp_seconds When these metrics were taken.
        # TYPE ckptstore_seen_timestamp_seconds gauge
        ckptstore_seen_timestamp_seconds{store="/runs/digits"} 0
    """
    store = {"store": str(seen.store)}
    runs = [] if seen.problem is not None else list(seen.runs)
    lines = [
        *_metric("up", "1 if the store could be read.", [(store, float(seen.problem is None))]),
        *_metric("seen_timestamp_seconds", "When these metrics were taken.", [(store, seen.at.timestamp())]),
    ]
    if seen.disk is not None:
        lines += _metric("disk_size_bytes", "Size of the store's disk.", [(store, seen.disk.total)])
        lines += _metric("disk_free_bytes", "Free bytes on the store's disk.", [(store, seen.disk.free)])
        full = [(store, seen.disk.full_in_s)]
        lines += _metric("disk_full_in_seconds", "Seconds until the disk is full, as it fills now.", full)
    for name, text, values in _of_runs(runs, seen):
        lines += _metric(name, text, [({**store, **labels}, value) for labels, value in values])
    return "".join(f"{line}\n" for line in lines)


def _of_runs(runs: list[ObservedRun], seen: Observation) -> Iterator[tuple[str, str, _Values]]:
    """Yield the metrics of runs: name, help and values."""
    yield (
        "run_state",
        f"1 for the run's present state, 0 for the others: {', '.join(_STATES)}.",
        (
            ({"run": observed.run.name, "state": state}, float(observed.run.state == state))
            for observed in runs
            for state in _STATES
        ),
    )
    for name, text, value_of in _FACTS:
        yield name, text, [({"run": observed.run.name}, value_of(observed)) for observed in runs]
    yield (
        "run_last_checkpoint_age_seconds",
        "Age of the newest checkpoint when these metrics were taken.",
        (
            ({"run": observed.run.name}, (seen.at - observed.run.latest.created_at).total_seconds())
            for observed in runs
            if observed.run.latest is not None
        ),
    )
    yield (
        "run_metric",
        "The run's newest metrics, by their names in Keras' logs.",
        (
            ({"run": observed.run.name, "metric": name}, value)
            for observed in runs
            for name, value in sorted(observed.metrics.items())
        ),
    )


def _metric(name: str, text: str, values: _Values) -> list[str]:
    """Return the lines of a metric; none where no value is known."""
    known = [
        f"ckptstore_{name}{{{_labels(labels)}}} {_number(value)}"
        for labels, value in values
        if value is not None
    ]
    return [f"# HELP ckptstore_{name} {text}", f"# TYPE ckptstore_{name} gauge", *known] if known else []


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    # A name that is no UTF-8 comes from the file system.
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
