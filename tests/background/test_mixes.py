"""Whatever is handed over, in whatever mix: all that may not be left out is committed, in order, and is whole."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ckptstore import CheckpointStore
from ckptstore.background.save_queue import WRITER_VARIABLE, Backpressure, SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.commit.request import SaveRequest
from crash.sample_stores import is_seed, snapshot_of
from writer_processes import needs_process, writers

SEEDS = range(6)


class Mix:
    """Hands over saves of all kinds, at any pace, and keeps account of what must be there in the end.

    Attributes:
        due: Epochs by the numbers of messages that were handed over, less those that newer ones replaced.
        heard: What was told of them.
    """

    def __init__(self, queue: SaveQueue, chosen: random.Random, backpressure: Backpressure) -> None:
        self.queue = queue
        self.chosen = chosen
        self.backpressure = backpressure
        self.pace_s = chosen.choice([0.0, 0.0005, 0.002, 0.01])
        self.due: dict[int, int] = {}
        self.kinds: dict[int, tuple[bool, bool]] = {}
        self.heard: list[Outcome] = []

    def submit(self, epoch: int) -> None:
        droppable, best = self.chosen.random() < 0.7, self.chosen.random() < 0.15
        request = SaveRequest(run="default", epoch=epoch, metrics={})
        handed = self.queue.submit(snapshot_of(epoch), request, droppable=droppable, best=best)
        if handed is None:
            assert droppable and not best, "only what may be left out, and is not the best, is refused"
            return
        self.kinds[handed.number] = droppable, best
        self.due[handed.number] = epoch
        if handed.dropped is not None:
            was_droppable, was_best = self.kinds[handed.dropped]
            assert self.backpressure == "replace" and was_droppable
            assert best or not was_best, "the best makes way for a better one alone"
            del self.due[handed.dropped]

    def look_around(self) -> None:
        time.sleep(2 * self.pace_s * self.chosen.random())
        drawn = self.chosen.random()
        if drawn < 0.03:
            self.queue.drain()
        elif drawn < 0.3:
            self.heard += self.queue.outcomes()

    def end(self) -> None:
        self.queue.drain()
        self.heard += self.queue.outcomes()
        self.queue.close()
        self.heard += self.queue.outcomes()


def kill_writers(root: Path) -> None:
    for pid in writers(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("backpressure", ["replace", "wait"])
@pytest.mark.parametrize(
    "kind",
    [pytest.param("process", marks=needs_process), pytest.param("killed", marks=needs_process), "thread"],
)
def test_all_required_saves_are_committed_complete_and_in_order(
    kind: str, backpressure: Backpressure, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process that saves is killed, twice, and others go on with what it had."""
    monkeypatch.setenv(WRITER_VARIABLE, "thread" if kind == "thread" else "process")
    chosen = random.Random(seed)
    with CheckpointStore(tmp_path) as store:
        mix = Mix(store.saving_beside("default", backpressure=backpressure), chosen, backpressure)
        for epoch in range(60):
            mix.submit(epoch)
            mix.look_around()
            if kind == "killed" and epoch in (20, 40):
                kill_writers(tmp_path)
        mix.end()
        assert [one.error for one in mix.heard if one.error is not None] == []
        assert [one.number for one in mix.heard] == sorted(mix.due)
        assert [one.epoch for one in store.checkpoints()] == list(mix.due.values())
        assert all(is_seed(one.path, one.epoch) for one in store.checkpoints())
