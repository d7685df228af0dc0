"""Two real processes save together; each is killed, and stopped, at steps of its own: files and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import killed_saves

ERRORS = {"SaveAbandonedError", "SaveEndUnknownError"}


def trials(folder: Path, victim: int, every: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, killed_saves.__file__, folder, str(victim), str(every)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "every"), [(0, 4), (1, 1)])
def test_processes_killed_and_stopped_at_each_step_of_a_save(tmp_path: Path, victim: int, every: int) -> None:
    untouched, *struck = trials(tmp_path, victim, every)
    assert untouched["codes"] == [0, 0]
    assert [end["version"] for end in untouched["ends"]] == [2, 2]
    assert untouched["ends"][victim]["steps"] > (40 if victim == 0 else 7)
    assert len(struck) > 14
    for trial in struck:
        killed, ends = trial["signal"] == "SIGKILL", trial["ends"]
        assert trial["codes"] == [-9 if killed and process == victim else 0 for process in (0, 1)], trial
        # The store is whole, nothing is left of the save, and the job that is started again saves.
        assert trial["versions"] in ([1], [1, 2]), trial
        assert trial["whole"], trial
        assert trial["problems"] == [], trial
        assert trial["left"] == [], trial
        assert trial["next"] in ([2, 2], [3, 3]), trial
        known = [end for end in ends if end is not None]
        assert len(known) == 1 + (not killed), trial
        for end in known:
            if "version" in end:
                assert trial["versions"] == [1, 2], trial
            else:
                assert end["error"] in ERRORS, trial
                assert end["error"] != "SaveAbandonedError" or trial["versions"] == [1], trial
        # The other one has waited for its limits, and no longer.
        assert ends[1 - victim]["seconds"] < 8 * killed_saves.LIMIT_S + 2, trial
        if victim == 1:
            assert len({end.get("error") for end in known}) == 1, trial
    assert {tuple(trial["versions"]) for trial in struck} == {(1,), (1, 2)}
