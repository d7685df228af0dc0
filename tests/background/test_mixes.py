"""Random mixes of saves: all that may not be dropped are committed, complete and in order."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ckptstore import CheckpointStore
from ckptstore.background.program import WRITER_VARIABLE
from ckptstore.background.save_queue import Backpressure, SaveQueue
from ckptstore.background.worker import Outcome
from ckptstore.commit.request import SaveRequest
from crash.sample_stores import is_seed, snapshot_of
from writer_processes import needs_process, writers

SEEDS = range(6)


class Mix:
    """Submits saves of all kinds at random intervals, and records what must be saved in the end.

    Attributes:
        due: The epochs by the numbers of submitted messages, without those that were replaced.
        outcomes: The outcomes so far.
    """

    def __init__(self, queue: SaveQueue, chosen: random.Random, backpressure: Backpressure) -> None:
        self.queue = queue
        self.chosen = chosen
        self.backpressure = backpressure
        self.pace_s = chosen.choice([0.0, 0.0005, 0.002, 0.01])
        self.due: dict[int, int] = {}
        self.kinds: dict[int, tuple[bool, bool]] = {}
        self.outcomes: list[Outcome] = []

    def submit(self, epoch: int) -> None:
        droppable, best = self.chosen.random() < 0.7, self.chosen.random() < 0.15
        request = SaveRequest(run="default", epoch=epoch, metrics={})
        submitted = self.queue.submit(snapshot_of(epoch), request, droppable=droppable, best=best)
        if submitted is None:
            assert droppable and not best, "only a droppable save that is not the best is refused"
            return
        self.kinds[submitted.number] = droppable, best
        self.due[submitted.number] = epoch
        if submitted.dropped is not None:
            was_droppable, was_best = self.kinds[submitted.dropped]
            assert self.backpressure == "replace" and was_droppable
            assert best or not was_best, "the best is replaced only by a better one"
            del self.due[submitted.dropped]

    def poll(self) -> None:
        time.sleep(2 * self.pace_s * self.chosen.random())
        drawn = self.chosen.random()
        if drawn < 0.03:
            self.queue.drain()
        elif drawn < 0.3:
            self.outcomes += self.queue.outcomes()

    def end(self) -> None:
        self.queue.drain()
        self.outcomes += self.queue.outcomes()
        self.queue.close()
        self.outcomes += self.queue.outcomes()


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
    """Also where the worker process is killed twice, and others take over its messages."""
    monkeypatch.setenv(WRITER_VARIABLE, "thread" if kind == "thread" else "process")
    chosen = random.Random(seed)
    with CheckpointStore(tmp_path) as store:
        mix = Mix(store.open_save_queue("default", backpressure=backpressure), chosen, backpressure)
        for epoch in range(60):
            mix.submit(epoch)
            mix.poll()
            if kind == "killed" and epoch in (20, 40):
                kill_writers(tmp_path)
        mix.end()
        checkpoints = store.checkpoints()
        assert [outcome.error for outcome in mix.outcomes if outcome.error is not None] == []
        assert [outcome.number for outcome in mix.outcomes] == sorted(mix.due)
        assert [checkpoint.epoch for checkpoint in checkpoints] == list(mix.due.values())
        assert all(is_seed(checkpoint.path, checkpoint.epoch) for checkpoint in checkpoints)
