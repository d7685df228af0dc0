"""Fixtures of the tests of the supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervised import Running, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as under_way:

        def begin(script: str, *options: object, **settings: Any) -> Running:
            running = Running(tmp_path, script, *options, **settings)
            under_way.callback(running.clean_up)
            return running

        yield begin
