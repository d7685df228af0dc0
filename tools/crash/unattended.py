"""Disturbs a real training under ``ckptstore run`` at random times, and checks that it needs nobody.

It must finish by itself with the weights, optimizer and History of a training that nobody disturbed, to the bit. Each
of its attempts must be recorded with the true reason of its end, which this program knows. At the end no process, held
lock, temporary file or shared memory may be left, and ``ckptstore verify`` must find nothing.

    python tools/crash unattended                                    some minutes: each disturbance twice, and a NaN
    python tools/crash unattended --rounds 5 --seed 3
    python tools/crash unattended --only deadlock --only disk-full
    KERAS_BACKEND=torch python tools/crash unattended --rounds 1     the backend that trains; JAX by default

Out-of-memory kills need permission to make a control group, full disks to mount; without it they are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckptstore.records import Attempt
from ckptstore.store.store import CheckpointStore
from crash.disturbances import DISTURBANCES
from crash.full_disks import can_mount, small_disk
from crash.memory_limits import memory_group
from crash.remains import remains, shared_names
from crash.supervision import Cost, Supervision, Violation
from crash.training_processes import STEPS_PER_EPOCH, environment

_PACE_S = 0.05
# Most steps that a training makes until a disturbance and in it.
_STEPS_PER_DISTURBANCE = 150
_DISK_MIB = 32
_MEMORY = 1 << 30
_FINISHED = "none: it finishes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A disturbance: how often it was tried, the true reason of the end, and the recorded reasons with their counts."""

    disturbance: str
    count: int
    true: str
    recorded: Counter[str]


@dataclass(slots=True, kw_only=True)
class Result:
    """One row for each disturbance, the cost of the supervisors, the seconds, and one line for each violation."""

    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def unattended(
    *, rounds: int = 1, seed: int = 0, only: Sequence[str] = (), hang_after_s: float = 12.0
) -> Result:
    """Disturb a training, and return what was recorded.

    Args:
        rounds: How often each disturbance is tried.
        seed: Of their order and their times.
        only: Disturbances to try, of `DISTURBANCES` and ``"nan"``, which has a training of its own; all if empty.
        hang_after_s: For ``--hang-after``.
    """
    began, result, chosen = time.monotonic(), Result(), random.Random(seed)
    plan = [name for name in only or DISTURBANCES if name != "nan"] * rounds
    with contextlib.ExitStack() as under_way:
        folder = Path(under_way.enter_context(tempfile.TemporaryDirectory(prefix="crash-unattended-")))
        place = folder
        if "disk-full" in plan and can_mount():
            place = under_way.enter_context(small_disk("tmpfs", folder, tmpfs_mib=_DISK_MIB))
        elif "disk-full" in plan:
            result.skipped["disk-full"] = "not permitted to mount"
        group = under_way.enter_context(memory_group(_MEMORY)) if "out-of-memory" in plan else None
        if "out-of-memory" in plan and group is None:
            result.skipped["out-of-memory"] = "not permitted to make a control group"
        plan = [name for name in plan if name not in result.skipped]
        chosen.shuffle(plan)
        training = Supervision(
            folder=folder,
            store=place / "store",
            epochs=2 + len(plan) * _STEPS_PER_DISTURBANCE // STEPS_PER_EPOCH,
            hang_after_s=hang_after_s,
            group=group,
        )
        if plan:
            _run_plan(training, plan, chosen, result)
        if not only or "nan" in only:
            _meet_nan(folder, hang_after_s, result)
    result.seconds = time.monotonic() - began
    return result


def _run_plan(training: Supervision, plan: Sequence[str], chosen: random.Random, result: Result) -> None:
    """Carry a plan out, and check what it has left."""
    before = shared_names()
    (training.folder / "pace").write_text(str(_PACE_S))
    with _ending(training, result):
        training.start()
        for name in plan:
            print(f"  {name}", flush=True)
            DISTURBANCES[name](training, chosen)
        training.wait_for_training()
        (training.folder / "pace").unlink()
        code = training.wait_for_supervisor()
        if code != 0:
            raise Violation(f"the supervisor ended with {code}:\n{training.log_end()}")
        result.violations += _wrong_result(training)
        result.violations += [
            f"a second training ran: {facts}" for facts in training.journal("a second training")
        ]
        result.violations += remains(training.folder, training.store, before)
        training.truth[training.journal("end")[-1]["start"]] = _FINISHED, "finished"
        compare_reasons(training, result)
        if training.undisturbing.count("SIGSTOP, then SIGCONT") > _events(training.store, "paused"):
            result.violations.append("a pause was not recorded")


@contextlib.contextmanager
def _ending(training: Supervision, result: Result) -> Iterator[None]:
    """Turn a violation into a line of the result, and leave no process behind."""
    try:
        yield
    except Violation as violation:
        result.violations.append(str(violation))
    finally:
        training.end()
        result.cost = training.cost


def _wrong_result(training: Supervision) -> list[str]:
    """Compare with a training that nobody disturbs, without a supervisor."""
    folder = training.folder / "undisturbed"
    folder.mkdir()
    program = ["-m", "crash.unattended_training", str(folder), str(folder / "store"), str(training.epochs)]
    subprocess.run([sys.executable, *program], env=environment(), cwd=folder, check=True)
    expected = json.loads((folder / "result").read_text())
    found = json.loads((training.folder / "result").read_text())
    return [
        f"the {part} differ from those of an undisturbed training"
        for part in expected
        if found[part] != expected[part]
    ]


def compare_reasons(training: Supervision, result: Result) -> None:
    """Compare the recorded reason of each start with the true one, and add the rows of the table."""
    recorded = _recorded_reasons(training.store)
    rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for token, (disturbance, true) in training.truth.items():
        reason = recorded.pop(token, "nothing")
        rows[disturbance, true][reason] += 1
        if reason != true:
            result.violations.append(
                f"{disturbance}: {reason!r} is recorded, and not {true!r} (start {token})"
            )
    result.violations += [f"start {token} ended, undisturbed: {reason}" for token, reason in recorded.items()]
    for name, count in Counter(training.undisturbing).items():
        result.rows.append(
            Row(disturbance=name, count=count, true="no end", recorded=Counter({"no end": count}))
        )
    result.rows += [
        Row(disturbance=name, count=sum(reasons.values()), true=true, recorded=reasons)
        for (name, true), reasons in rows.items()
    ]


def _recorded_reasons(path: Path) -> dict[str, str]:
    """Return what the store says of the end of each start, by its token."""
    with CheckpointStore(path, read_only=True) as store:
        found: dict[str, str] = {_token(attempt): attempt.reason or "open" for attempt in store.attempts()}
        for event in store.events(kind="start_ended"):  # it had not reached a fit
            detail = event.detail or {}
            killed = "killed" if detail.get("signal") == "SIGKILL" else "nothing"
            found.setdefault(detail.get("start", ""), detail.get("reason") or killed)
    return found


def _token(attempt: Attempt) -> str:
    return str(attempt.detail.get("start"))


def _events(path: Path, kind: str) -> int:
    with CheckpointStore(path, read_only=True) as store:
        return len(store.events(kind=kind))


def _meet_nan(parent: Path, hang_after_s: float, result: Result) -> None:
    """Let a training with ``on_bad_loss="stop"`` meet a NaN: it ends as a failed one, and is not started again."""
    folder = parent / "nan"
    folder.mkdir()
    (folder / "pace").write_text(str(_PACE_S))
    training = Supervision(folder=folder, store=folder / "store", epochs=50, hang_after_s=hang_after_s)
    print("  NaN", flush=True)
    cost = result.cost
    with _ending(training, result):
        training.start()
        _, token = training.wait_for_training()
        training.ask("NaN")
        training.wait_for_supervisor()
        training.ended_by(token, "NaN", "nan")
        compare_reasons(training, result)
        with CheckpointStore(training.store, read_only=True) as store:
            states = [run.state for run in store.runs()]
        if states != ["failed"]:
            result.violations.append(f"the run that met a NaN is {states}, and not failed")
    result.cost = cost


def show(result: Result) -> None:
    """Print a result as a table."""
    print(f"\n{'disturbance':<34} {'count':>5}  {'true reason':<12} recorded")
    for row in result.rows:
        recorded = ", ".join(f"{reason} {count}" for reason, count in row.recorded.items())
        print(f"{row.disturbance:<34} {row.count:>5}  {row.true:<12} {recorded}")
    for name, why in result.skipped.items():
        print(f"{name:<34} {0:>5}  left out: {why}")
    cost = result.cost
    print(
        f"\nsupervisors: {cost.cpu_s:.1f} s of processor time in {cost.ran_s:.0f} s, "
        f"{cost.peak_bytes / (1 << 20):.0f} MiB at most; all in {result.seconds:.0f} s"
    )
    for line in result.violations:
        print(f"VIOLATED {line}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="how often each is tried; 2 by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        action="append",
        choices=[*DISTURBANCES, "nan"],
        default=[],
        metavar="NAME",
        help=f"of {', '.join(DISTURBANCES)}, nan; may be repeated",
    )
    parser.add_argument("--hang-after", type=float, default=12.0, metavar="SECONDS")
    options = parser.parse_args()
    result = unattended(
        rounds=options.rounds,
        seed=options.seed,
        only=options.only,
        hang_after_s=options.hang_after,
    )
    show(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
