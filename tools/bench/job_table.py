"""The table of a job: each figure is that of the slowest process, and ratios are medians over rounds.

A round has one turn of every subject within the same fit, so that load on the machine affects both sides of a ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from bench.table import Row, median, print_rows, reason

COPY, RAW, OURS = "memory copy again", "raw write + fsync", "ours background"
SAVE_COLUMNS = (
    "subject", "first_wait_s", "wait_s", "wait_of_copy", "wait_of_ours", "durable_s", "durable_of_raw",
    "durable_of_ours", "sync_s", "durable_and_sync_of_ours", "cpu_s", "extra_memory_of_state",
)  # fmt: skip
RESTORE_COLUMNS = (
    "subject", "restore_s", "restore_of_ours", "restore_memory_of_state", "alone_s", "alone_of_ours", "files",
    "file_bytes",
)  # fmt: skip
# What one save or restore costs.
Cost = dict[str, float]


def rows(names: Sequence[str], results: Sequence[Row]) -> list[Row]:
    """Return a row of each subject."""
    why = reason(results)
    if why is not None:
        return [{"subject": name, "unavailable": why} for name in names]
    return [_row(name, results) for name in names]


def print_job(title: str, found: Sequence[Row], console: Console) -> None:
    """Print the saves and the restores of a job, with a line for each subject that could not restore."""
    print_rows(f"{title}: saves by all processes", SAVE_COLUMNS, found, console)
    restored = [row for row in found if "unavailable" not in row and row["restore_s"] is not None]
    print_rows(
        f"{title}: restores by all processes, and alone on one device", RESTORE_COLUMNS, restored, console
    )
    for row in found:
        if row.get("restore_failed"):
            console.print(f"{row['subject']}: a restore failed: {row['restore_failed']}", soft_wrap=True)


def _row(name: str, results: Sequence[Row]) -> Row:
    first = results[0]["processes"][0]
    for process in results[0]["processes"]:
        if name in process["unavailable"]:
            return {"subject": name, "unavailable": process["unavailable"][name]}
    saves = _saves(name, results)
    state = first["state_bytes"]
    row: Row = {
        "subject": name,
        "first_wait_s": median(job[0]["wait_s"] for job in saves if job),
        "wait_s": median(save["wait_s"] for job in saves for save in job[1:]),
        "durable_s": median(save["durable_s"] for job in saves for save in job[1:]),
        "sync_s": median(save["sync_s"] for job in saves for save in job[1:]),
        "cpu_s": median(save["cpu_s"] for job in saves for save in job[1:]),
        "wait_of_copy": _ratio(saves, _saves(COPY, results), "wait_s"),
        "wait_of_ours": _ratio(saves, _saves(OURS, results), "wait_s"),
        "durable_of_raw": _ratio(saves, _saves(RAW, results), "durable_s"),
        "durable_of_ours": _ratio(saves, _saves(OURS, results), "durable_s"),
        "durable_and_sync_of_ours": _ratio(saves, _saves(OURS, results), "durable_s", plus="sync_s"),
        "extra_memory_of_state": max((save["extra_bytes"] for job in saves for save in job), default=0)
        / state,
        "state_bytes": state,
        "variables": first["variables"],
        **first["files"].get(name, {}),
    }
    return row | _restores(name, results, state)


def _saves(name: str, results: Sequence[Row]) -> list[list[Cost]]:
    """Return the cost of each save in each job: times of the slowest process, the sum of the rest."""
    found = []
    for result in results:
        by_process = [process["saves"].get(name, []) for process in result["processes"]]
        found.append([_of_all(saves) for saves in zip(*by_process, strict=False)])
    return found


def _of_all(costs: Sequence[Cost]) -> Cost:
    shared = {
        key: max(cost[key] for cost in costs) for key in costs[0] if key not in ("cpu_s", "extra_bytes")
    }
    return shared | {key: sum(cost[key] for cost in costs) for key in ("cpu_s", "extra_bytes")}


def _ratio(
    above: Sequence[Sequence[Cost]], below: Sequence[Sequence[Cost]], key: str, *, plus: str | None = None
) -> float | None:
    """Return the median ratio of two subjects in the same round, without the first, in which they get their memory."""
    return median(
        (mine[key] + (mine[plus] if plus else 0.0)) / theirs[key]
        for one, other in zip(above, below, strict=True)
        for mine, theirs in list(zip(one, other, strict=False))[1:]
    )


def _restores(name: str, results: Sequence[Row], state: float) -> Row:
    together, alone = partial(_together, results), partial(_alone, results)
    memory = max((cost["extra_bytes"] for job in together(name) for cost in job), default=0)
    return {
        "restore_s": median(cost["restore_s"] for job in together(name) for cost in job),
        "restore_of_ours": _ratio(together(name), together(OURS), "restore_s"),
        "alone_s": median(cost["restore_s"] for job in alone(name) for cost in job),
        "alone_of_ours": _ratio(alone(name), alone(OURS), "restore_s"),
        "restore_memory_of_state": memory / state,
        "restore_failed": _problem(name, results),
    }


def _together(results: Sequence[Row], name: str) -> list[list[Cost]]:
    found = []
    for result in results:
        by_process = [process["restores"]["costs"].get(name, []) for process in result["processes"]]
        found.append([_of_all(costs) for costs in zip(*by_process, strict=False)])
    return found


def _alone(results: Sequence[Row], name: str) -> list[list[Cost]]:
    return [result["alone"]["costs"].get(name, []) for result in results]


def _problem(name: str, results: Sequence[Row]) -> str | None:
    for result in results:
        for restores in (*(process["restores"] for process in result["processes"]), result["alone"]):
            if name in restores["errors"]:
                return str(restores["errors"][name])
    return None
