"""The guide's table of what is exact has exactly the cases of `test_exact_resume`."""

from __future__ import annotations

import re
from pathlib import Path

from resume_cases import BACKENDS, CASES

PAGE = Path(__file__).resolve().parent.parent.parent / "ckptstore" / "guide" / "exact.md"
COLUMNS = {"JAX": "jax", "torch": "torch", "TensorFlow": "tensorflow"}


def rows() -> list[dict[str, str]]:
    """Return the rows of the table, by the names of its columns."""
    text = PAGE.read_text(encoding="utf-8").partition("## The table")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    head, _, *body = lines
    return [dict(zip(head, line, strict=True)) for line in body]


def cases_in(row: dict[str, str]) -> list[str]:
    return re.findall(r"`(\w+)`", row["cases in `tests/support/resume_cases.py`"])


def test_every_case_is_in_the_table_once() -> None:
    named = [case for row in rows() for case in cases_in(row)]
    assert sorted(named) == sorted(CASES)


def test_the_table_has_the_cases_that_are_tested() -> None:
    for row in rows():
        for column, backend in COLUMNS.items():
            tried = all(backend in BACKENDS[case] for case in cases_in(row))
            assert row[column].startswith("exact") == tried, f"{row} on {column}"
