"""Programs as people write them: nothing differs with the callback, nor when killed and started again, unsaid.

Each is a script of a few dozen lines whose only code of ours is a callback, or what a loop by hand calls. A few run
with the suite; ``tools/test --programs`` runs all, and prints a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import EVERY
from program_server import Server
from program_table import EXAMPLES, NO_PROGRAM, PROGRAMS
from program_trials import try_program, unexpected

# The programs import Keras.
pytestmark = pytest.mark.backend
FOLDER = Path(__file__).parent
BACKEND = os.environ["KERAS_BACKEND"]
ALL = os.environ.get("CKPTSTORE_ALL_PROGRAMS", "") not in ("", "0")
HERE = [
    pytest.param(name, marks=pytest.mark.skipif(not program.can_run, reason=f"needs {program.needs}"))
    for name, program in PROGRAMS.items()
    if BACKEND in program.backends and (ALL or BACKEND in program.quick)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(BACKEND, tmp_path_factory.mktemp("programs"))
    yield started
    started.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", HERE)
def test_a_program_ends_the_same(
    server: Server, name: str, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    trial = try_program(server, name, tmp_path, BACKEND)
    record_property("trial", trial.as_json())
    assert unexpected(trial) == []


def test_every_program_is_in_the_table() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"test_programs", "conftest"}
    assert scripts == set(PROGRAMS)
    assert list(PROGRAMS) == sorted(PROGRAMS)
    for program in PROGRAMS.values():
        assert set(program.quick) <= set(program.backends) <= set(EVERY)
        assert set(program.inexact) <= set(program.says) <= set(EVERY)


def test_each_example_has_a_program_or_a_reason() -> None:
    assert set(EXAMPLES.values()) <= set(PROGRAMS)
    assert not EXAMPLES.keys() & NO_PROGRAM.keys()
    assert all(reason for reason in NO_PROGRAM.values())
