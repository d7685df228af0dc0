"""Decisions of several processes in a fit, and the stop at one step: threads stand for processes that train in step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ckptstore.distributed.agreements import Agreements
from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.distributed.session import JobSession
from ckptstore.distributed.stopping import AgreedStop
from ckptstore.errors import MessageTimeoutError, PeerFailedError


def side_by_side(processes: int, run: Callable[[int, ServiceMessages], Any]) -> list[Any]:
    """Return what a function returns, or the exception it raises, in each of some threads with one service."""
    service = MemoryService()
    found: list[Any] = [None] * processes

    def work(process: int) -> None:
        try:
            found[process] = run(process, ServiceMessages(service, process=process, service="memory"))
        except Exception as error:
            found[process] = error

    threads = [threading.Thread(target=work, args=(process,), daemon=True) for process in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_all_get_the_decisions_of_process_0_and_old_ones_are_deleted() -> None:
    service = MemoryService()
    wanted = [number % 3 == 0 for number in range(200)]

    def run(process: int) -> list[bool]:
        agreements = Agreements(
            ServiceMessages(service, process=process, service="memory"), "fit", limit_s=20
        )
        found = []
        for value in wanted:
            found.append(agreements.decide(value if process == 0 else not value))
            arrived.wait()  # as in an epoch, at whose end all meet
        return found

    arrived = threading.Barrier(2)
    found: list[Any] = [None, None]
    threads = [threading.Thread(target=lambda p=p: found.__setitem__(p, run(p)), daemon=True) for p in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [wanted, wanted]
    assert len(service.values) <= 65


def test_a_process_that_gives_up_ends_the_wait_of_the_others() -> None:
    def run(process: int, messages: ServiceMessages) -> Any:
        agreements = Agreements(messages, "fit", limit_s=50)
        if process == 0:
            agreements.give_up("OSError: its disk is gone")
            agreements.give_up("another thing, which is too late")
            agreements.check()  # of itself it knows
            return None
        return agreements.decide(True)

    began = time.monotonic()
    _, first, second = side_by_side(3, run)
    assert time.monotonic() - began < 25
    for process, error in ((1, first), (2, second)):
        assert isinstance(error, PeerFailedError)
        assert (error.process, error.failed, error.reason) == (process, 0, "OSError: its disk is gone")


def test_a_pause_notices_a_process_that_gave_up_and_bears_messages_that_are_lost() -> None:
    class Failing(MemoryService):
        lost = True

        def fetch(self, keys: Sequence[str]) -> dict[str, str]:
            if self.lost:
                raise ConnectionError("no route")
            return super().fetch(keys)

    service = Failing()
    job = Job(kind="memory", by="memory", process=1, processes=2, found_in="here")
    session = JobSession(job, ServiceMessages(service, process=1, service="memory"), "token")
    session.pause(0)
    service.lost = False
    first = ServiceMessages(service, process=0, service="memory")
    JobSession(replace(job, process=0), first, "token").agreements.give_up("its disk is gone")
    session.pause(0)  # so soon it does not look again
    session._next_check_s = 0.0
    with pytest.raises(PeerFailedError, match="process 0 has given up: its disk is gone"):
        session.pause(0)


def test_a_decision_that_does_not_come_is_waited_for_up_to_the_limit() -> None:
    messages = ServiceMessages(MemoryService(), process=1, service="memory")
    with pytest.raises(MessageTimeoutError, match=r"process 1 has waited 0\.05 s"):
        Agreements(messages, "fit", limit_s=0.05).decide(True)


def test_a_service_that_stands_still_for_a_while_does_not_end_the_looks() -> None:
    class Failing(MemoryService):
        lost = 3

        def fetch(self, keys: Sequence[str]) -> dict[str, str]:
            self.lost -= 1
            if self.lost >= 0:
                raise ConnectionError("no route")
            return super().fetch(keys)

    service = Failing()
    looked = threading.Semaphore(0)
    first, second = (
        AgreedStop(
            ServiceMessages(service, process=process, service="memory"),
            2,
            "fit/stop",
            interval_s=0.001,
            on_look=looked.release,
        )
        for process in (0, 1)
    )
    first.start()
    for _ in range(5):
        assert looked.acquire(timeout=30)
    second.ask("SIGTERM")
    second.start()
    assert any(first.reached((step, 0)) or time.sleep(0.001) for step in range(10_000))
    assert first.reason == "SIGTERM"
    # What ends a fit otherwise is looked for also when the stop is agreed on, up to its position.
    while looked.acquire(blocking=False):
        pass
    for _ in range(5):
        assert looked.acquire(timeout=30)
    for stop in (first, second):
        stop.close()


class Training:
    """Processes that train in step: none begins a batch whose predecessor another has not begun."""

    def __init__(self, processes: int, *, batches: int, per_epoch: int) -> None:
        self.batches = batches
        self.per_epoch = per_epoch
        self._begun = [0] * processes
        self._changed = threading.Condition()

    def collective(self, process: int, batch: int) -> None:
        """Begin a batch, once all processes have begun the one before."""
        with self._changed:
            self._begun[process] = batch
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: min(self._begun) >= batch - 1, 30)

    def run(self, process: int, stop: AgreedStop, asks_at: int | None, random: random.Random) -> Any:
        """Return the position at which this process stops, or None if it finishes."""
        for batch in range(1, self.batches + 1):
            self.collective(process, batch)
            if random.random() < 0.2:
                time.sleep(random.random() * 0.01)
            if asks_at == batch:
                stop.ask("SIGTERM")
            for position in [(batch, 0), (batch, 1)][: 2 if batch % self.per_epoch == 0 else 1]:
                if stop.reached(position):
                    return position, stop.reason
        with self._changed:
            self._begun[process] = self.batches + 10
            self._changed.notify_all()
        return None


@pytest.mark.parametrize("seed", range(8))
def test_all_stop_at_the_same_position_whoever_asks(seed: int) -> None:
    rng = random.Random(seed)
    processes = rng.choice([2, 3, 4])
    training = Training(processes, batches=100_000, per_epoch=rng.choice([1, 3, 7]))
    askers = rng.sample(range(processes), rng.choice([1, 2]))
    asked_at = rng.randrange(1, 50)

    def run(process: int, messages: ServiceMessages) -> Any:
        stop = AgreedStop(messages, processes, "fit/stop", interval_s=0.01, limit_s=20)
        stop.start()
        try:
            return training.run(
                process, stop, asked_at if process in askers else None, random.Random(seed + process)
            )
        finally:
            stop.close()

    found = side_by_side(processes, run)
    assert len(set(found)) == 1
    (step, _), reason = found[0]
    assert step >= asked_at
    assert reason == "SIGTERM"


def test_a_stop_to_which_one_process_does_not_come_ends_at_its_limit() -> None:
    messages = ServiceMessages(MemoryService(), process=0, service="memory")
    stop = AgreedStop(messages, 2, "fit/stop", interval_s=0.01, limit_s=0.2)
    stop.start()
    stop.ask("SIGTERM")
    with pytest.raises(MessageTimeoutError, match=r"process 0 has waited 0\.2 s"):
        for step in range(1_000_000):
            stop.reached((step, 0))
    stop.close()


@pytest.mark.parametrize("finished", [0, 1])
def test_a_request_that_comes_when_a_process_has_finished_stops_nobody(finished: int) -> None:
    over = threading.Event()

    def run(process: int, messages: ServiceMessages) -> Any:
        stop = AgreedStop(messages, 2, "fit/stop", interval_s=0.001, limit_s=20)
        stop.start()
        stop.reached((1, 0))
        if process == finished:
            stop.close()
            over.set()
            return False
        over.wait(20)
        stop.ask("SIGTERM")
        deadline = time.monotonic() + 20
        while not stop.reason and time.monotonic() < deadline:
            time.sleep(0.001)
        found = any(stop.reached((step, 0)) for step in range(2, 100))
        stop.close()
        return found

    assert side_by_side(2, run) == [False, False]


def test_nothing_is_agreed_on_where_nobody_asks() -> None:
    def run(process: int, messages: ServiceMessages) -> Any:
        stop = AgreedStop(messages, 2, "fit/stop", interval_s=0.001)
        stop.start()
        stop.start()
        found = Training(1, batches=200, per_epoch=5).run(0, stop, None, random.Random(process))
        stop.close()
        return found, stop.reason

    assert side_by_side(2, run) == [(None, ""), (None, "")]


def test_process_0_leaves_after_the_others_or_at_its_limit() -> None:
    gone: list[int] = []

    def run(process: int, messages: ServiceMessages) -> Any:
        agreements = Agreements(messages, "fit")
        if process == 2:
            time.sleep(0.05)
        gone.append(process)
        agreements.leave(range(1, 3), limit_s=20)
        return [*gone]

    assert sorted(side_by_side(3, run)[0]) == [0, 1, 2]
    alone = Agreements(ServiceMessages(MemoryService(), process=0, service="memory"), "fit")
    began = time.monotonic()
    alone.leave([1], limit_s=0.02)
    assert 0.02 <= time.monotonic() - began < 10
