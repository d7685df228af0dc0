"""Targets of the benchmark: each with its figure and limit, met or missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.table import Row, seconds

# The ratio up to which a median counts as no slower than what it is compared with.
NOISE = 1.0
SMALL_WAIT_S = 0.010
QUERY_S = 0.005
STATE_SHARE = 0.05
LATER_TURNS = "commit, a size budget's later turns"


class Targets:
    """Collects targets; each is met, missed, or not measured.

    Attributes:
        rows: One for each target: its text, figure, limit, and `met` (None where it is not measured).
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def at_most(self, where: str, text: str, figure: float | None, limit: float, unit: str = "x") -> None:
        """Add a target that a figure must not exceed."""
        met = None if figure is None else figure <= limit
        self.rows.append(
            {
                "where": where,
                "target": text,
                "figure": figure,
                "limit": limit,
                "unit": unit,
                "most": True,
                "met": met,
            }
        )

    def at_least(self, where: str, text: str, figure: float | None, limit: float, unit: str = "x") -> None:
        """Add a target that a figure must reach."""
        met = None if figure is None else figure >= limit
        self.rows.append(
            {
                "where": where,
                "target": text,
                "figure": figure,
                "limit": limit,
                "unit": unit,
                "most": False,
                "met": met,
            }
        )


def ratio(figure: float | None, base: float | None) -> float | None:
    """Return the quotient of two figures, or None where one of them is missing or the second is 0."""
    return None if figure is None or not base else figure / base


def excess(figure: float | None, base: float | None) -> float | None:
    """Return the difference of two figures, or None where one of them is missing."""
    return None if figure is None or base is None else figure - base


def figures(rows: list[Row]) -> Callable[[str, str], float | None]:
    """Return a function that looks up a figure by subject and name; it returns None where there is none."""
    by_name: Mapping[str, Row] = {row["subject"]: row for row in rows}
    return lambda subject, key: by_name.get(subject, {}).get(key)


def evaluate(document: Mapping[str, Any]) -> list[Row]:
    """Return all targets for what was measured."""
    targets = Targets()
    for backend, parts in document["backends"].items():
        for workload, rows in parts.get("save", {}).items():
            of_saves(targets, f"{workload}, {backend}", workload, figures(rows))
        for workload, rows in parts.get("run", {}).items():
            of_runs(targets, f"{workload}, {backend}", workload, figures(rows))
        for workload, rows in parts.get("load", {}).items():
            of_loads(targets, f"{workload}, {backend}", figures(rows))
        for workload, rows in parts.get("job", {}).items():
            of_jobs(targets, f"{workload}, {backend}", figures(rows))
        for workload, rows in parts.get("state", {}).items():
            for row in rows:
                text = f"training state: {row['subject']}"
                targets.at_most(f"{workload}, {backend}", text, row.get("share"), STATE_SHARE, "%")
    of_scale(targets, document.get("scale", {}))
    return targets.rows


def of_saves(targets: Targets, where: str, workload: str, of: Callable[[str, str], float | None]) -> None:
    """Add the targets of single saves."""
    ours, keras, orbax = "ours background", "keras .keras", "orbax background"
    if workload == "large":
        text = "first background save: step wait / memory copy into fresh pages"
        targets.at_most(where, text, ratio(of(ours, "first_wait_s"), of("memory copy", "first_wait_s")), 1.25)
        text = "second background save: step wait / memory copy into fresh pages"
        targets.at_most(
            where, text, ratio(of(ours, "second_wait_s"), of("memory copy", "first_wait_s")), 1.25
        )
        text = "later background saves: step wait / memory copy into the same memory"
        targets.at_most(where, text, ratio(of(ours, "wait_s"), of("memory copy again", "wait_s")), 1.25)
    elif workload == "sharded":
        text = "background saves of arrays on eight devices: step wait / memory copy into the same memory"
        targets.at_most(where, text, ratio(of(ours, "wait_s"), of("memory copy again", "wait_s")), 1.25)
    else:
        targets.at_most(where, "background save: step wait", of(ours, "wait_s"), SMALL_WAIT_S, "s")
        text = "the same, beyond what a step waits for where nothing is saved"
        targets.at_most(where, text, excess(of(ours, "wait_s"), of(ours, "idle_s")), SMALL_WAIT_S, "s")
        text = "background save: step wait / memory copy into the same memory"
        targets.at_most(where, text, ratio(of(ours, "wait_s"), of("memory copy again", "wait_s")), 1.25)
    text = "background save: Keras ModelCheckpoint (.keras) waits so many times longer"
    targets.at_least(where, text, ratio(of(keras, "wait_s"), of(ours, "wait_s")), 20)
    text = "background save: OrbaxCheckpoint in the background waits so many times longer"
    targets.at_least(where, text, ratio(of(orbax, "wait_s"), of(ours, "wait_s")), 1)
    text = "the same, with the slowdown of the next step"
    targets.at_least(where, text, ratio(of(orbax, "added_s"), of(ours, "added_s")), 1)
    for subject in (ours, "ours synchronous"):
        text = f"{subject.removeprefix('ours ')} save: time to durable / raw write + fsync"
        targets.at_most(
            where, text, ratio(of(subject, "durable_s"), of("raw write + fsync", "durable_s")), 1.2
        )
    for subject in ("ours synchronous", "ours ModelCheckpoint"):
        text = f"{subject} .keras, synced: Keras' unsynced takes so many times longer"
        figure = ratio(of(keras, "durable_s"), of(subject, "durable_s"))
        targets.at_least(where, text, figure, NOISE if workload == "large" else 5)
    if workload == "large":
        text = "background save: extra memory, copies of the state (none waiting)"
        targets.at_most(where, text, of(ours, "extra_memory_of_state"), 1.15)


def of_runs(targets: Targets, where: str, workload: str, of: Callable[[str, str], float | None]) -> None:
    """Add the targets of whole runs."""
    if workload == "digits":
        for keras in ("keras .keras", "keras .weights.h5"):
            text = f"saving every 10 batches in the background: overhead / that of {keras}"
            targets.at_most(
                where, text, ratio(of("ours background", "overhead_s"), of(keras, "overhead_s")), 1 / 3
            )
    if workload == "digits long":
        targets.at_most(
            where, "save_freq='auto': overhead of the whole run", of("ours auto", "overhead"), 0.035, "%"
        )
    if workload == "large":
        text = "saving in the background while training: extra memory, copies of the state (one waiting)"
        extra, state = of("ours background", "extra_bytes"), of("ours background", "state_bytes")
        targets.at_most(where, text, ratio(extra, state), 2.15)


def of_loads(targets: Targets, where: str, of: Callable[[str, str], float | None]) -> None:
    """Add the targets of loading."""
    for suffix in (".keras", ".weights.h5"):
        for temperature in ("warm", "cold"):
            text = f"restore {suffix}, file {'in memory' if temperature == 'warm' else 'on disk'} / Keras' load_weights"
            key = f"{temperature}_s"
            figure = ratio(of(f"ours restore {suffix}", key), of(f"keras load_weights {suffix}", key))
            targets.at_most(where, text, figure, NOISE)


def of_jobs(targets: Targets, where: str, of: Callable[[str, str], float | None]) -> None:
    """Add the targets of jobs of several processes; the ratios are those of turns in the same round."""
    ours, orbax = "ours background", "orbax CheckpointManager"
    text = "save by all processes: step wait / copy of what a process has to save, into the same memory"
    targets.at_most(where, text, of(ours, "wait_of_copy"), 1.25)
    text = "save by all processes: Orbax' CheckpointManager waits so many times longer"
    targets.at_least(where, text, of(orbax, "wait_of_ours"), 1)
    text = "save by all processes: Orbax, its files synced after it, takes so many times longer until durable"
    targets.at_least(where, text, of(orbax, "durable_and_sync_of_ours"), 1)
    text = "restore by all processes: Orbax takes so many times longer"
    targets.at_least(where, text, of(orbax, "restore_of_ours"), NOISE)
    text = "restore by one process with one device: Orbax takes so many times longer"
    targets.at_least(where, text, of(orbax, "alone_of_ours"), NOISE)


def of_scale(targets: Targets, scale: Mapping[str, Any]) -> None:
    """Add the targets of stores with many checkpoints."""
    counts = sorted(scale, key=int)
    if not counts:
        return
    most, least = scale[counts[-1]], scale[counts[0]]
    where = f"{int(counts[-1]):,} checkpoints"
    for query in ("latest", "best", "resume_point"):
        targets.at_most(where, query, most.get(query, {}).get("median_s"), QUERY_S, "s")
    targets.at_most(where, "ls --limit 20", most["ls --limit 20"].get("median_s"), 0.6, "s")
    if len(counts) > 1:
        figure = ratio(most["commit"].get("median_s"), least["commit"].get("median_s"))
        targets.at_most(where, f"commit / commit with {int(counts[0]):,}", figure, 1.5)
        figure = ratio(most.get(LATER_TURNS, {}).get("median_s"), least.get(LATER_TURNS, {}).get("median_s"))
        targets.at_most(where, f"commit, with a size budget / that with {int(counts[0]):,}", figure, 1.5)
    for query in ("prune --dry-run", "prune --dry-run, all stay"):
        found = most.get(query, {})
        hundreds = max(1.0, int(counts[-1]) / 100_000)
        targets.at_most(where, query, found.get("median_s"), 10 * hundreds, "s")
        figure = found.get("extra_bytes")
        least_bytes = least.get(query, {}).get("extra_bytes")
        if len(counts) > 1 and figure is not None and least_bytes is not None:
            each = (figure - least_bytes) / (int(counts[-1]) - int(counts[0]))
            targets.at_most(where, f"{query}: memory of each checkpoint", each, 300, "B")


def quantity(value: float | None, unit: str) -> str:
    """Return a figure with its unit.

    Example:
        >>> quantity(0.0123, "s"), quantity(1.234, "x"), quantity(0.02, "%"), quantity(None, "x")
        ('12.30 ms', '1.23 x', '2.0 %', 'not measured')
    """
    if value is None:
        return "not measured"
    if unit == "s":
        return seconds(value)
    if unit == "B":
        return f"{value:.0f} B"
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.2f} x"


def print_targets(rows: list[Row], console: Console) -> None:
    """Print all targets."""
    table = Table(title="targets", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in ("where", "target", "figure", "limit", ""):
        table.add_column(heading, justify="right" if heading in ("figure", "limit") else "left")
    for row in rows:
        verdict = {True: "met", False: "[bold red]MISSED[/]", None: "-"}[row["met"]]
        limit = ("at most " if row["most"] else "at least ") + quantity(row["limit"], row["unit"])
        table.add_row(row["where"], row["target"], quantity(row["figure"], row["unit"]), limit, verdict)
    console.print(table)
    missed, met = (sum(row["met"] is verdict for row in rows) for verdict in (False, True))
    console.print(f"{met} met, {missed} MISSED, {len(rows) - met - missed} not measured\n")
