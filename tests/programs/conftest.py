"""Prints the table of the programs that were tried, and writes it as JSON where CKPTSTORE_PROGRAMS_JSON says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from program_trials import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    trials: list[dict[str, Any]] = [
        value
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == "trial"
    ]
    if not trials:
        return
    terminalreporter.section("programs")
    for line in table(trials):
        terminalreporter.write_line(line)
    if path := os.environ.get("CKPTSTORE_PROGRAMS_JSON"):
        file = Path(path)
        before = json.loads(file.read_text()) if file.exists() else []
        file.write_text(json.dumps(before + trials, indent=1))
