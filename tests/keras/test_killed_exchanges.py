"""Two real processes of which one is killed or stopped at each message: the other ends in time, and knows the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

from killed_exchanges import LIMIT_S, TRIALS, results_of

BACKEND = keras.backend.backend()
# How process 0 ends when the other one dies before or behind its messages.
BY_0 = [
    ("JobIncompleteError", "ResumeRefusedError"),
    ("ResumeRefusedError", "SaveAbandonedError"),
    ("SaveAbandonedError", None),
]
# A process that does not hear of process 0 knows no end, and says so.
BY_1 = {"MessagesLostError", "JobIncompleteError", "ResumeRefusedError", "SaveEndUnknownError"}


def check(trial: dict[str, Any]) -> None:
    victim, ends = trial["victim"], trial["ends"]
    for process, (code, end) in enumerate(zip(trial["codes"], ends, strict=True)):
        if process == victim and not trial["stops"]:
            assert code == -9
            continue
        if code == -6 and BACKEND == "jax" and process == 1 and victim == 0:
            continue  # JAX itself ends a process whose process 0 is dead
        assert code == 0, "it has not ended in time"
        assert "failed" not in end, end
        assert end["seconds"] < 8 * LIMIT_S + 15.0
        kind = end["error"][0] if "error" in end else None
        # Whoever says that there is a checkpoint, or that there is none, is right.
        if end.get("save") or kind == "SaveAbandonedError":
            assert trial["committed"] == end["save"]
    assert trial["part"] or not trial["committed"]
    other = ends[1 - victim]
    if other is None:
        return
    kind, text, silent = other.get("error") or (None, "", [])
    if victim == 1 and (not trial["stops"] or kind is not None):
        assert kind == BY_0[trial["number"]][trial["behind"]]
        assert kind is None or (silent == [1] and "process 1" in text)
    if victim == 0 and kind is None:
        assert (trial["number"], trial["committed"]) in ((4, True), (5, True))
    elif victim == 0:
        assert kind in BY_1
        assert kind == "MessagesLostError" or "process 0" in text


@pytest.mark.slow
def test_a_process_killed_or_stopped_at_each_message_leaves_the_other_with_the_truth(tmp_path: Path) -> None:
    results = results_of(BACKEND, tmp_path)
    assert len(results) == len(TRIALS)
    wrong = []
    for trial in results:
        try:
            check(trial)
        except AssertionError as error:
            wrong.append((str(error), trial))
    assert not wrong
