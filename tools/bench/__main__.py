"""Measures the cost of checkpoints with ckptstore, Keras and Orbax, and the least that a save can cost.

Each measurement has its own process, and the subjects take turns, so that other load on the machine affects all alike;
medians are compared as ratios. What is saved is loaded and compared, to the bit, outside the measured time.

    python tools/bench                                   everything: long, and 10 GB of disk
    python tools/bench --quick                           everything, at sizes so small that the figures mean nothing
    python tools/bench --work large --backend torch --subjects ours,floor --repeats 5
    python tools/bench --work scale --checkpoints 10000 --checkpoints 1000000
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

if not __package__:  # started as `python tools/bench`: the package lies in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from rich.console import Console

from bench import job_table, machine, plot, startup, table, targets, workloads
from bench import names as bench_names
from bench.table import Row

SECTIONS = (*bench_names.WORKLOADS, "load", "state", "scale", "start")


class Run:
    """A run of the benchmark: its options, and the processes that measure.

    Args:
        folder: The folder to work in.
        quick: True for sizes that only show that everything works.
        repeats: Number of processes for each subject.
        console: Where progress is printed.
    """

    def __init__(self, folder: Path, *, quick: bool, repeats: int, console: Console) -> None:
        self.quick = quick
        self.repeats = repeats
        self.folder = folder
        self._console = console

    def worker(self, backend: str, module: str = "bench.worker", **specification: Any) -> Row:
        """Measure once, in a new process and a new folder."""
        with scratch(self.folder) as folder:
            result = folder / "result.json"
            specification |= {"quick": self.quick, "folder": str(folder)}
            load = os.getloadavg()[0]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", module, json.dumps(specification), str(result)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={"JAX_PLATFORMS": "cpu", **machine.environment(), "KERAS_BACKEND": backend},
                check=False,
            )
            if not result.exists():
                lines = done.stderr.strip().splitlines()
                return {"failed": f"ended with {done.returncode}: {lines[-1] if lines else 'no message'}"}
            found: Row = json.loads(result.read_text(encoding="utf-8"))
        subject = specification.get("subject", "")
        if "failed" in found:
            self._console.print(f"[red]{subject}: {found['failed']}[/]")
            print(done.stderr, file=sys.stderr)
        took = time.monotonic() - began
        self._console.print(
            f"[dim]{backend} {specification.get('workload', '')} {specification['part']} {subject}: {took:.1f} s[/]"
        )
        return found | {"load": load}

    def in_turns(self, backend: str, subjects: Sequence[str], **specification: Any) -> dict[str, list[Row]]:
        """Measure all subjects in turns; one that is not available is tried once."""
        results: dict[str, list[Row]] = {name: [] for name in subjects}
        for turn in range(self.repeats):
            for name in subjects if turn % 2 == 0 else reversed(subjects):
                if table.reason(results[name]) in (None, "not measured"):
                    results[name].append(self.worker(backend, subject=name, **specification))
        return results


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Create a temporary folder to work in, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ckptstore-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- sections --------------------------------------------------------------------------------------------


def measure_save(run: Run, backend: str, workload: str, subjects: Sequence[str]) -> list[Row]:
    """Measure single saves."""
    only = workloads.by_name(quick=run.quick)[workload].subjects
    names = [name for name in subjects if name not in bench_names.RUNS_ONLY and (not only or name in only)]
    results = run.in_turns(backend, names, workload=workload, part="save")
    rows = [table.save_row(name, results[name]) for name in names]
    table.add_ratios(rows, "wait_s", {"wait_of_copy": "memory copy again", "wait_of_keras": "keras .keras"})
    table.add_ratios(rows, "durable_s", {"durable_of_raw": "raw write + fsync"})
    return rows


def measure_run(run: Run, backend: str, workload: str, subjects: Sequence[str]) -> list[Row]:
    """Measure whole runs."""
    only = workloads.by_name(quick=run.quick)[workload].subjects
    names = [name for name in subjects if name not in bench_names.FLOORS and (not only or name in only)]
    results = run.in_turns(backend, names, workload=workload, part="run")
    return [table.run_row(name, results[name]) for name in names]


def measure_load(run: Run, backend: str, workload: str) -> list[Row]:
    """Measure loading."""
    with scratch(run.folder) as place:
        files = str(place / "files")
        made = run.worker(backend, workload=workload, part="files", files=files)
        if "failed" in made:
            return [{"subject": name, "unavailable": made["failed"]} for name in bench_names.LOADERS]
        results = run.in_turns(backend, bench_names.LOADERS, workload=workload, part="load", files=files)
    rows = [table.load_row(name, results[name], made["digest"]) for name in bench_names.LOADERS]
    table.add_ratios(rows, "warm_s", {"warm_of_keras": "keras load_weights .keras"})
    return rows


def measure_state(run: Run, backend: str, workload: str) -> list[Row]:
    """Measure the cost of the training state within saves and loads."""
    results = run.in_turns(backend, ["ours synchronous"], workload=workload, part="state")["ours synchronous"]
    return table.state_rows(results)


def measure_job(run: Run, backend: str, workload: str, subjects: Sequence[str]) -> list[Row]:
    """Measure saves and restores by several processes; the subjects take turns within each job."""
    names = [name for name in bench_names.JOB_SUBJECTS if name in subjects]
    results = [
        run.worker(backend, "bench.job", workload=workload, part="job", subjects=names)
        for _ in range(run.repeats)
    ]
    return job_table.rows(names, results)


def measure(run: Run, backend: str, workload: str, part: str, subjects: Sequence[str]) -> list[Row]:
    """Measure one part of a workload."""
    if part == "job":
        return measure_job(run, backend, workload, subjects)
    if part == "state":
        return measure_state(run, backend, workload)
    if part == "load":
        return measure_load(run, backend, workload)
    return (measure_save if part == "save" else measure_run)(run, backend, workload, subjects)


def planned(sections: Sequence[str], parts: Sequence[str], *, quick: bool) -> Iterator[tuple[str, str]]:
    """Yield workloads and their parts; ``"load"`` or ``"state"`` without a workload stands for all of them."""
    chosen = [name for name in bench_names.WORKLOADS if name in sections]
    for name, workload in workloads.by_name(quick=quick).items():
        for part in workload.parts:
            if name in chosen and part in parts:
                yield name, part
        for part in ("load", "state"):
            if (
                workload.load
                and part in sections
                and part in parts
                and name in (chosen or bench_names.WORKLOADS)
            ):
                yield name, part


def print_backend(backend: str, parts: Row, console: Console) -> None:
    """Print the results of one backend."""
    columns = {
        "save": ("single saves", table.SAVE_COLUMNS),
        "run": ("whole runs", table.RUN_COLUMNS),
        "load": ("loading", table.LOAD_COLUMNS),
        "state": ("training state", table.STATE_COLUMNS),
    }
    for part, (title, names) in columns.items():
        for workload, rows in parts.get(part, {}).items():
            first: Row = next((row for row in rows if "state_bytes" in row), {})
            size = f", {first['state_bytes'] / 1e6:,.1f} MB of state" if first else ""
            many = f" in {first['variables']:,} variables" if "variables" in first else ""
            table.print_rows(f"{title}: {workload}, {backend}{size}{many}", names, rows, console)
    for workload, rows in parts.get("job", {}).items():
        state = next((row["state_bytes"] for row in rows if "state_bytes" in row), 0)
        job_table.print_job(f"{workload}, {backend}, {state / 1e6:,.1f} MB of state", rows, console)


def print_scale(scale: Row, console: Console) -> None:
    """Print the times of queries and commits by number of checkpoints."""
    for count, questions in scale.items():
        rows = [{"subject": name, **found} for name, found in questions.items() if isinstance(found, dict)]
        columns = ("subject", "median_s", "min_s", "max_s", "first_s", "extra_bytes")
        table.print_rows(f"{int(count):,} checkpoints of ten metrics", columns, rows, console)


# --- the command -----------------------------------------------------------------------------------------


def listed(names: Sequence[str], known: Sequence[str], option: str) -> list[str]:
    """Return the selected names, in the order of the known ones; a prefix selects all that begin with it."""
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    for name in wanted:
        if not any(_matches(candidate, name, known) for candidate in known):
            raise click.BadParameter(f"{name!r}: there are {', '.join(known)}", param_hint=option)
    return [
        candidate
        for candidate in known
        if not wanted or any(_matches(candidate, name, known) for name in wanted)
    ]


def _matches(candidate: str, name: str, known: Sequence[str]) -> bool:
    if name in known:
        return candidate == name
    return candidate.startswith(name) or (name == "floor" and candidate in bench_names.FLOORS)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--work", "selected", multiple=True, help=f"Of {', '.join(SECTIONS)}; all by default.")
@click.option("--subjects", multiple=True, help="Names or prefixes (ours, keras, orbax, floor).")
@click.option("--backend", "backends", multiple=True, help="jax or torch; both by default.")
@click.option(
    "--part", "parts", multiple=True, help="Of a workload: save, run, load, state or job; all by default."
)
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Processes of each subject."
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write; must be on a disk.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the results here."
)
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Write a PNG plot here."
)
@click.option("--checkpoints", type=click.IntRange(min=2), multiple=True, help="For scale; may be repeated.")
@click.option("--quick", is_flag=True, help="Sizes that only show that everything works.")
def main(
    *,
    selected: Sequence[str],
    subjects: Sequence[str],
    backends: Sequence[str],
    parts: Sequence[str],
    repeats: int,
    directory: Path | None,
    json_path: Path | None,
    plot_path: Path | None,
    checkpoints: Sequence[int],
    quick: bool,
) -> None:
    """Measure the selected workloads and print the results."""
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    progress = Console(stderr=True, highlight=False)
    sections = listed(selected, SECTIONS, "--work")
    names = listed(subjects, bench_names.ALL_SUBJECTS, "--subjects")
    chosen = listed(backends, ("jax", "torch"), "--backend")
    wanted = listed(parts, ("save", "run", "load", "state", "job"), "--part")
    counts = sorted(set(checkpoints)) or ([5, 20] if quick else [1_000, 100_000])
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    with scratch(directory or Path(tempfile.gettempdir())) as folder:
        facts = machine.facts(folder, chosen)
        machine.print_facts(facts, console)
        document: Row = {"facts": facts, "quick": quick, "repeats": repeats, "backends": {}}
        run = Run(folder, quick=quick, repeats=repeats, console=progress)

        def keep() -> None:
            if json_path is not None:
                json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

        for backend in chosen:
            found: Row = {}
            for workload, part in planned(sections, wanted, quick=quick):
                rows = measure(run, backend, workload, part, names)
                found.setdefault(part, {})[workload] = rows
                document["backends"][backend] = found
                keep()
            print_backend(backend, found, console)
        if "scale" in sections:
            document["scale"] = {
                str(count): run.worker(chosen[0], part="scale", count=count, repeats=repeats)
                for count in counts
            }
            print_scale(document["scale"], console)
        if "start" in sections:
            document["start"] = startup.starts(repeats * 2, folder)
            table.print_rows("starting", startup.COLUMNS, document["start"], console)
        document["targets"] = targets.evaluate(document)
        targets.print_targets(document["targets"], console)
        facts["load_after"] = machine.load()
        keep()
        if plot_path is not None:
            plot.draw(document, plot_path)


if __name__ == "__main__":
    main()
