"""Measures saves, resumes, queries and the start of the command, each beside what it is compared with, in one run.

Subjects take turns, so that what else the machine does falls on all alike; medians are compared as ratios.
What is dirty in the page cache is written back before each save, outside the time that is measured.

    tools/bench.py                          everything: about ten minutes, 20 GB of disk
    tools/bench.py small manifest start     some sections
    tools/bench.py large --backend torch --repeat 3 --json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

SECTIONS = ("large", "small", "capture", "resume", "batches", "manifest", "start")
SUBJECTS = (
    "raw write + fsync",
    "keras .keras",
    "ckptstore .keras",
    "keras .weights.h5",
    "ckptstore .weights.h5",
)
METRICS = tuple(
    f"{prefix}{name}" for prefix in ("", "val_") for name in ("loss", "accuracy", "auc", "mae", "f1")
)
EPOCH_STEPS = 100
FITS = {
    "capture": "a save with the state of the fit",
    "resume": "from the start of fit to its first batch, resumed, and behind a restore by hand",
    "batches": "a batch of a tiny model when nothing is saved",
}

Row = dict[str, Any]


def spread(seconds: Sequence[float]) -> Row:
    """Return the median and the extremes."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


# --- saves -----------------------------------------------------------------------------------------------


class Subject:
    """One subject's process; see bench_subjects.py."""

    def __init__(self, name: str, layers: int, width: int, folder: Path, backend: str) -> None:
        script = Path(__file__).with_name("bench_subjects.py")
        self.name = name
        self.seconds: list[float] = []
        self.extra_bytes: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, str(script), name, str(layers), str(width), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"JAX_PLATFORMS": "cpu", **os.environ, "KERAS_BACKEND": backend},
        )
        self.state: Row = self._answer()

    def save(self, file: str) -> None:
        """Let it save once, with nothing left to be written back by anybody."""
        os.sync()
        assert self._process.stdin is not None
        print(file, file=self._process.stdin, flush=True)
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.extra_bytes.append(int(answer["extra_bytes"]))

    def _answer(self) -> Row:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with {self._process.wait()}")
        answer: Row = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def saves(layers: int, width: int, repeat: int, folder: Path, backend: str) -> Iterator[Row]:
    """Time durable saves beside Keras' own, and beside writing the same bytes."""
    with ExitStack() as stack:
        subjects = []
        for name in SUBJECTS:
            place = folder / name.replace(" ", "-")
            place.mkdir()
            subjects.append(Subject(name, layers, width, place, backend))
            stack.callback(subjects[-1].close)
        for turn in range(repeat):
            for subject in subjects:
                subject.save(f"{turn}")
    medians = {subject.name: statistics.median(subject.seconds) for subject in subjects}
    for subject in subjects:
        suffix = subject.name.rpartition(" ")[2]
        yield {
            "subject": subject.name,
            **subject.state,
            **spread(subject.seconds),
            "extra_memory_of_state": max(subject.extra_bytes) / subject.state["state_bytes"],
            "of_keras": medians[subject.name] / medians.get(f"keras {suffix}", medians["keras .keras"]),
            "of_raw": medians[subject.name] / medians["raw write + fsync"],
        }


# --- fits ------------------------------------------------------------------------------------------------


def fits(part: str, size: Sequence[int], repeat: int, folder: Path, backend: str) -> Iterator[Row]:
    """Time what the training state of a fit costs, each subject beside the first, in one process; see bench_fit.py."""
    script = Path(__file__).with_name("bench_fit.py")
    done = subprocess.run(
        [sys.executable, str(script), part, *map(str, size), str(repeat), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={"JAX_PLATFORMS": "cpu", **os.environ, "KERAS_BACKEND": backend},
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    seconds: dict[str, list[float]] = found["seconds"]
    base = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        row = {"subject": name, **found["facts"], **spread(times)}
        yield row | {"of_first": statistics.median(times) / base, **found.get(name, {})}


# --- queries ---------------------------------------------------------------------------------------------


def fill(folder: Path, count: int) -> None:
    """Make a store with `count` checkpoints of ten metrics; the newest payload is of zeros, the others are empty."""
    import ckptstore

    with ckptstore.CheckpointStore(folder):
        pass
    values = random.Random(count)
    now = "2026-01-01T00:00:00.000000+00:00"
    nbytes, digest = 1_000_000, "xxh3_128:" + "0" * 32
    with sqlite3.connect(folder / "manifest.sqlite") as database:
        database.execute("INSERT INTO runs (id, name, created_at) VALUES (1, 'default', ?)", (now,))
        database.executemany("INSERT INTO metric_names (id, name) VALUES (?, ?)", enumerate(METRICS, start=1))
        database.executemany(
            "INSERT INTO checkpoints (version, run_id, epoch, batch, step, created_at, file, nbytes, digest,"
            " format, state, resumable, pinned)"
            " VALUES (?, 1, ?, NULL, ?, ?, ?, ?, ?, 'keras', 'complete', 1, 0)",
            (
                (n, n - 1, n * EPOCH_STEPS, now, f"checkpoints/{n:08d}-default.keras", nbytes, digest)
                for n in range(1, count + 1)
            ),
        )
        database.executemany(
            "INSERT INTO metrics (version, metric_id, run_id, state, value) VALUES (?, ?, 1, 'complete', ?)",
            ((n, m, values.random()) for n in range(1, count + 1) for m in range(1, len(METRICS) + 1)),
        )
        database.execute("UPDATE store SET next_version = ?", (count + 1,))
    database.close()
    for n in range(1, count + 1):
        (folder / "checkpoints" / f"{n:08d}-default.keras").touch()
    with (folder / "checkpoints" / f"{count:08d}-default.keras").open("wb") as file:
        file.truncate(nbytes)


def queries(counts: Sequence[int], repeat: int, folder: Path) -> Iterator[Row]:
    """Time the three questions, and opening for writing with its recovery, with few and with many checkpoints."""
    import ckptstore

    questions: dict[str, Callable[[ckptstore.CheckpointStore], object]] = {
        "latest": lambda store: store.latest(),
        "best": lambda store: store.best("val_loss"),
        "resume_point": lambda store: store.resume_point(),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        stores = {}
        for count in counts:
            fill(folder / str(count), count)
            stores[count] = stack.enter_context(
                ckptstore.CheckpointStore(folder / str(count), read_only=True)
            )
        for turn in range(repeat + 1):
            for count, store in stores.items():
                for question, ask in questions.items():
                    began = time.perf_counter()
                    assert ask(store) is not None
                    if turn:  # the first of each compiles statements and fills caches
                        seconds.setdefault((question, count), []).append(time.perf_counter() - began)
    for turn in range(repeat + 1):
        for count in counts:
            began = time.perf_counter()
            with ckptstore.CheckpointStore(folder / str(count)):
                if turn:
                    seconds.setdefault(("open for writing", count), []).append(time.perf_counter() - began)
    for (question, count), times in sorted(seconds.items()):
        of_fewest = statistics.median(times) / statistics.median(seconds[question, min(counts)])
        yield {"subject": question, "checkpoints": count, **spread(times), "of_fewest": of_fewest}


# --- start -----------------------------------------------------------------------------------------------


def starts(repeat: int, folder: Path) -> Iterator[Row]:
    """Time whole processes: the interpreter, SQLAlchemy, this package, its command."""
    fill(folder / "started", 10)
    command = [sys.executable, "-m", "ckptstore.cli"]
    subjects = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import sqlalchemy'": [sys.executable, "-c", "import sqlalchemy"],
        "python -c 'import ckptstore'": [sys.executable, "-c", "import ckptstore"],
        "ckptstore ls": [*command, "ls", str(folder / "started")],
        "ckptstore ls --json": [*command, "ls", str(folder / "started"), "--json"],
        "ckptstore latest": [*command, "latest", str(folder / "started")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeat + 1):
        for name, arguments in subjects.items():
            began = time.perf_counter()
            subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
            if turn:  # the first may have had to compile
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["python -c 'import sqlalchemy'"])
    for name, times in seconds.items():
        yield {"subject": name, **spread(times), "of_sqlalchemy": statistics.median(times) / base}


# --- the run ---------------------------------------------------------------------------------------------


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder lies on, or "unknown"."""
    done = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def facts(folder: Path, backend: str) -> Row:
    """Return what the numbers depend on."""
    packages = ("ckptstore", "keras", backend, "numpy", "h5py", "sqlalchemy")
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def cell(name: str, value: Any) -> str:
    """Return a number in the unit of its name."""
    if name.endswith("_s"):
        if value < 0.001:
            return f"{value * 1e6:.0f} µs"
        return f"{value:.3f} s" if value >= 0.1 else f"{value * 1000:.2f} ms"
    if name.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def print_table(title: str, rows: Sequence[Row], console: Console) -> None:
    """Print a section."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        heading = name.removesuffix("_s").removesuffix("_bytes").replace("_", " ")
        table.add_column(heading, justify="left" if name == "subject" else "right")
    for row in rows:
        table.add_row(*(cell(name, value) for name, value in row.items()))
    console.print(table, "")


@contextmanager
def place(given: Path | None) -> Iterator[Path]:
    """Return a new folder to work in, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ckptstore-bench-", dir=given))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def section(name: str, options: argparse.Namespace) -> tuple[str, list[Row]]:
    """Measure one section; returns its title and rows."""
    with place(options.folder) as folder:
        if name == "manifest":
            rows = queries(options.checkpoints, options.repeat * 20, folder)
            return "queries, ten metrics a checkpoint", list(rows)
        if name == "start":
            return "starting", list(starts(options.repeat * 2, folder))
        if name in ("capture", "resume", "batches"):
            sizes = [(1, 8)] if name == "batches" else [options.large, options.small]
            measured: list[Row] = []
            for number, size in enumerate(sizes):
                inside = folder / str(number)
                inside.mkdir()
                measured += fits(name, size, options.repeat, inside, options.backend)
                shutil.rmtree(inside)
            return f"{FITS[name]}, {options.backend}", measured
        layers, width = options.large if name == "large" else options.small
        title = f"saves: {layers} Dense({width}) with Adam, {options.backend}"
        return title, list(saves(layers, width, options.repeat, folder, options.backend))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by itself"
    )
    parser.add_argument("--backend", default="jax", choices=["jax", "torch"])
    parser.add_argument("--repeat", type=int, default=5, help="saves of each subject")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    sizes: dict[str, Any] = {"nargs": 2, "type": int, "metavar": ("LAYERS", "WIDTH")}
    parser.add_argument("--large", default=[16, 2048], **sizes)
    parser.add_argument("--small", default=[200, 128], **sizes)
    parser.add_argument("--checkpoints", nargs="+", type=int, default=[1_000, 100_000])
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def main(arguments: Sequence[str] | None = None, output: IO[str] | None = None) -> None:
    """Run the sections that were asked for and print their tables."""
    options = parse(arguments)
    console = Console(file=output, width=None if sys.stdout.isatty() else 140, highlight=False)
    document: Row = {"facts": facts(options.folder or Path(tempfile.gettempdir()), options.backend)}
    if not options.json:
        console.print(", ".join(f"{name} {value}" for name, value in document["facts"].items()), "")
    for name in options.sections or SECTIONS:
        title, rows = section(name, options)
        document[name] = rows
        if not options.json:
            print_table(title, rows, console)
    if options.json:
        print(json.dumps(document, indent=2), file=output)


if __name__ == "__main__":
    main()
