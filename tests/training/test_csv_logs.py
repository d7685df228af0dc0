"""The file of a `CSVLogger` ends as that of a fit that was never interrupted, whatever a kill leaves in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

from ckptstore.keras.state import csv_log
from ckptstore.keras.state.callbacks import get_states, set_states
from resume_runs import Runs, found

# Its children import Keras.
pytestmark = [pytest.mark.backend, pytest.mark.jax_is_enough]
BACKEND = os.environ["KERAS_BACKEND"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    started = Runs(BACKEND, tmp_path_factory.mktemp("runs"), module="csv_log_runs")
    yield started
    started.close()


@pytest.mark.parametrize(
    ("case", "deaths"),
    [
        # Before the first row; behind a row that no save holds yet; behind two.
        ("one fit", [4, 8, 2]),
        # The second in the second fit.
        ("two fits", [13, 19]),
    ],
)
def test_the_file_of_a_run_that_is_killed_ends_as_one_that_was_not(
    runs: Runs, case: str, deaths: list[int], tmp_path: Path
) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    for folder in (plain, killed):
        folder.mkdir()
    rows = found(runs.run(case, folder=str(plain)))["rows"]
    assert [text.count("\n") for text in rows] == ([5, 9] if case == "two fits" else [5, 5])
    store = str(tmp_path / "store")
    for death in deaths:
        assert runs.run(case, folder=str(killed), store=store, die_after=death).status == -signal.SIGKILL
    outcome = runs.run(case, folder=str(killed), store=store)
    assert found(outcome)["rows"] == rows
    assert "CSVLogger" not in outcome.output
    # A finished run is started again: nothing is trained, and nothing is lost.
    assert found(runs.run(case, folder=str(killed), store=store))["rows"] == rows
    # Nor are the rows of the second fit, where the script makes the first alone now.
    assert found(runs.run("one fit", folder=str(killed), store=store))["rows"][1] == rows[1]


def begun(path: Path, *, append: bool = False) -> keras.callbacks.CSVLogger:
    logger = keras.callbacks.CSVLogger(path, append=append)
    logger.on_train_begin()
    return logger


def written(path: Path, epochs: int) -> keras.callbacks.CSVLogger:
    logger = begun(path)
    for epoch in range(epochs):
        logger.on_epoch_end(epoch, {"loss": 1.0 / (epoch + 1)})
    return logger


def test_a_file_with_other_rows_is_left_as_it_is_and_said(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    first = written(path, 2)
    saved = get_states([first])
    first.on_train_end()
    path.write_text("the user's own\n")
    again = begun(path, append=True)
    with pytest.warns(UserWarning, match="does not hold the rows"):
        assert set_states([again], saved) == []
    again.on_epoch_end(2, {"loss": 0.5})
    again.on_train_end()
    assert path.read_text().splitlines() == ["the user's own", "2,0.5,NA"]


def test_a_file_that_no_save_can_hold_is_named_at_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_log, "MAX_BYTES", 20)
    logger = written(tmp_path / "log.csv", 3)
    assert get_states([logger]) == {}
    again = begun(tmp_path / "log.csv")
    assert set_states([again], {}) == ["CSVLogger:0"]
    (tmp_path / "log.csv").unlink()
    assert get_states([logger]) == {}
    for opened in (logger, again):
        opened.on_train_end()
