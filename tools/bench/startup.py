"""Times of whole processes, from start to end: the interpreter, SQLAlchemy, this package, its command."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import scale

COLUMNS = ("subject", "median_s", "min_s", "max_s", "of_sqlalchemy")


def starts(repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Time all processes in turns."""
    store = folder / "started"
    scale.fill(store, 10)
    command = [sys.executable, "-m", "ckptstore"]
    subjects = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import sqlalchemy'": [sys.executable, "-c", "import sqlalchemy"],
        "python -c 'import ckptstore'": [sys.executable, "-c", "import ckptstore"],
        "ckptstore ls": [*command, "ls", str(store)],
        "ckptstore ls --json": [*command, "ls", str(store), "--json"],
        "ckptstore latest": [*command, "latest", str(store)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(repeats + 1):
        for name, arguments in subjects.items():
            began = time.perf_counter()
            subprocess.run(arguments, stdout=subprocess.DEVNULL, check=True)
            if turn:  # the first one may compile
                seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds["python -c 'import sqlalchemy'"])
    return [
        {"subject": name, **scale.spread(times), "of_sqlalchemy": statistics.median(times) / base}
        for name, times in seconds.items()
    ]
