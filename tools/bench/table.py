"""Results as tables: medians over all processes, ratios, and printing on a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import names

Row = dict[str, Any]
UNSYNCED = "unsynced"
STATE = {"capture": "capturing, of a synchronous save", "apply": "applying, of a load to resume from"}


def median(values: Iterable[float]) -> float | None:
    """Return the median, or None where there are no values."""
    known = list(values)
    return statistics.median(known) if known else None


def reason(results: Sequence[Row]) -> str | None:
    """Return why a subject has no figures, or None where it has figures."""
    for key in ("unavailable", "failed"):
        for result in results:
            if key in result:
                return str(result[key])
    return None if results else "not measured"


def save_row(name: str, results: Sequence[Row]) -> Row:
    """Return the cost of single saves of one subject; the first of each process is separate."""
    why = reason(results)
    if why is not None:
        return {"subject": name, "unavailable": why}
    first = [result["saves"][0] for result in results]
    later = [save for result in results for save in result["saves"][1:]]
    state = results[0]["state_bytes"]
    return {
        "subject": name,
        "synced": name in names.SYNCED,
        "first_wait_s": median(save["wait_s"] for save in first),
        # The second save may also copy into new memory.
        "second_wait_s": median(result["saves"][1]["wait_s"] for result in results),
        "wait_s": median(save["wait_s"] for save in later),
        "wait_min_s": min(save["wait_s"] for save in later),
        # The extra time of a step, and before it, while a save runs in the background: some subjects copy then.
        "added_s": median(added for result in results for added in result["added_s"]),
        "first_durable_s": median(save["durable_s"] for save in first),
        "durable_s": median(save["durable_s"] for save in later),
        "durable_min_s": min(save["durable_s"] for save in later),
        "cpu_s": median(save["cpu_s"] for save in later),
        "extra_memory_of_state": max(save["extra_bytes"] for result in results for save in result["saves"])
        / state,
        "extra_bytes": max(save["extra_bytes"] for result in results for save in result["saves"]),
        "written_bytes": median(save["written_bytes"] for save in later),
        "idle_s": median(idle for result in results for idle in result["idle_s"]),
        "state_bytes": state,
        "variables": results[0]["variables"],
        "saves": len(first) + len(later),
        "loaded_and_compared": all(result["checked"] for result in results),
    }


def run_row(name: str, results: Sequence[Row]) -> Row:
    """Return how much more a whole run costs with one subject than without."""
    why = reason(results)
    if why is not None:
        return {"subject": name, "unavailable": why}

    def of(cost: Callable[[Row], float]) -> list[float]:
        return [cost(result) for result in results]

    overheads = of(lambda result: result["with"]["run_s"] / result["plain"]["run_s"] - 1)
    committed = [result["committed"] for result in results if result["committed"] is not None]
    return {
        "subject": name,
        "plain_s": median(of(lambda result: result["plain"]["run_s"])),
        "run_s": median(of(lambda result: result["with"]["run_s"])),
        "overhead": median(overheads),
        "overhead_min": min(overheads),
        "overhead_s": median(of(lambda result: result["with"]["run_s"] - result["plain"]["run_s"])),
        "start_s": median(of(lambda result: result["with"]["start_s"] - result["plain"]["start_s"])),
        "end_s": median(of(lambda result: result["with"]["end_s"] - result["plain"]["end_s"])),
        "cpu_s": median(of(lambda result: result["with"]["cpu_s"] - result["plain"]["cpu_s"])),
        "extra_bytes": max(
            0.0, *of(lambda result: result["with"]["peak_bytes"] - result["plain"]["peak_bytes"])
        ),
        "written_bytes": median(of(lambda result: result["with"]["written_bytes"])),
        "saves": results[0]["saves"],
        "committed": median(committed),
        "state_bytes": results[0]["state_bytes"],
    }


def load_row(name: str, results: Sequence[Row], expected: str) -> Row:
    """Return the cost of loading with one subject."""
    why = reason(results)
    if why is not None:
        return {"subject": name, "unavailable": why}
    if name.startswith(("ours", "keras")) and any(result["digests"] != [expected] for result in results):
        return {"subject": name, "unavailable": "FAILED: what was loaded is not what was saved"}
    return {
        "subject": name,
        "cold_s": median(result["cold_s"] for result in results),
        "warm_s": median(result["warm_s"] for result in results),
        "warm_min_s": min(result["warm_s"] for result in results),
        "cpu_s": median(result["cpu_s"] for result in results),
        "extra_memory_of_state": max(result["extra_bytes"] / result["state_bytes"] for result in results),
        "extra_bytes": max(result["extra_bytes"] for result in results),
        "file_bytes": results[0]["file_bytes"],
    }


def state_rows(results: Sequence[Row]) -> list[Row]:
    """Return the share of the training state in a save and in a load."""
    why = reason(results)
    if why is not None:
        return [{"subject": what, "unavailable": why} for what in STATE]
    return [
        {
            "subject": text,
            **{name: median(result[what][name] for result in results) for name in STATE_COLUMNS[1:]},
        }
        for what, text in STATE.items()
    ]


def add_ratios(rows: Sequence[Row], key: str, bases: Mapping[str, str]) -> None:
    """Add ratios of a figure to that of other subjects, under the given names."""
    by_name = {row["subject"]: row for row in rows}
    for row in rows:
        for heading, base in bases.items():
            below = by_name.get(base, {}).get(key)
            if below and row.get(key) is not None:
                row[heading] = row[key] / below


# --- for a terminal --------------------------------------------------------------------------------------

SAVE_COLUMNS = (
    "subject", "idle_s", "first_wait_s", "second_wait_s", "wait_s", "wait_min_s", "wait_of_copy", "wait_of_keras",
    "added_s",
    "durable_s", "durable_min_s", "durable_of_raw", "cpu_s", "extra_memory_of_state", "extra_bytes", "written_bytes",
)  # fmt: skip
RUN_COLUMNS = (
    "subject", "plain_s", "run_s", "overhead", "overhead_s", "start_s", "end_s", "cpu_s", "extra_bytes",
    "written_bytes", "saves", "committed",
)  # fmt: skip
STATE_COLUMNS = ("subject", "whole_s", "state_s", "share")
LOAD_COLUMNS = (
    "subject", "cold_s", "warm_s", "warm_of_keras", "cpu_s", "extra_memory_of_state", "extra_bytes", "file_bytes",
)  # fmt: skip


def cell(name: str, row: Row) -> str:
    """Return a number in the unit of its name."""
    value = row.get(name)
    if value is None:
        return "-"
    if name == "durable_s" and not row.get("synced", True):
        return f"{seconds(value)} {UNSYNCED}"
    if name.endswith("_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if name in {"overhead", "share"}:
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if isinstance(value, float) and not value.is_integer() else f"{value:,}"


def seconds(value: float) -> str:
    """Return a time in a suitable unit.

    Example:
        >>> seconds(1.5), seconds(0.0042), seconds(0.0000042), seconds(-0.2)
        ('1.500 s', '4.20 ms', '4 µs', '-0.200 s')
    """
    if abs(value) < 0.001:
        return f"{value * 1e6:.0f} µs"
    return f"{value:.3f} s" if abs(value) >= 0.1 else f"{value * 1000:.2f} ms"


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Row], console: Console) -> None:
    """Print rows of subjects; lines below name the missing ones, and why."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        heading = name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")
        table.add_column(heading, justify="left" if name == "subject" else "right")
    for row in rows:
        if "unavailable" not in row:
            table.add_row(*(row[name] if name == "subject" else cell(name, row) for name in columns))
    console.print(table)
    for row in rows:
        if "unavailable" in row:
            console.print(f"{row['subject']}: {row['unavailable']}", soft_wrap=True)
    console.print()
