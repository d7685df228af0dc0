"""The processes of a fit find out that they have seen different numbers of batches, and wait for none meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from ckptstore.distributed.batch_counts import BatchCounts, EpochBatches, EpochWord
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.errors import MessagesLostError, UnequalBatchesError


class Service(MemoryService):
    """A service of which an answer may be lost, though the message is written."""

    loses = False

    def put_once(self, key: str, value: str) -> str:
        found = super().put_once(key, value)
        if self.loses:
            raise RuntimeError("UNAVAILABLE")
        return found


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def three(service: Service) -> Iterator[Sequence[BatchCounts]]:
    messages = [ServiceMessages(service, process=process, service="memory") for process in range(3)]
    yield [BatchCounts(each, 3, "fit/batches") for each in messages]
    for each in messages:
        each.close()


def run_epoch(counts: BatchCounts, epoch: int, training: int, validation: int = 0) -> None:
    batches = counts.begin_epoch(epoch)
    batches.training = training
    counts.training_ends()
    batches.validation = validation
    counts.epoch_ends()


def test_equal_epochs_are_no_fault_however_far_the_looks_are_behind(
    three: Sequence[BatchCounts], service: Service
) -> None:
    for epoch in range(5):
        for counts in three:
            run_epoch(counts, epoch, 4 + epoch, 2)
    for epoch in range(5, 200):
        for counts in three:
            run_epoch(counts, epoch, 4 + epoch, epoch % 2)
            counts.look()
    for counts in three * 2:
        counts.look()
        assert counts._epochs == []
        assert not counts._told
        assert not any(counts._received.values())
    assert len(service.values) <= 3 * 65


@pytest.mark.parametrize(("process", "other"), [(0, 2), (2, 0)])
def test_one_that_has_begun_a_batch_more_than_another_has_had_finds_it(
    three: Sequence[BatchCounts], process: int, other: int
) -> None:
    for counts in three:
        run_epoch(counts, 0, 10)
    begun = three[process].begin_epoch(1)
    begun.training = 9
    run_epoch(three[other], 1, 10)
    for _ in range(2):  # it may take its time for the tenth
        for counts in three:
            counts.look()
    begun.training = 11
    with pytest.raises(UnequalBatchesError, match="epoch 2 has had 10 training") as caught:
        three[process].look()
    error = caught.value
    assert (error.process, error.other) == (process, other)
    assert (error.part, error.epoch, error.batches, error.other_batches) == ("training", 1, 11, 10)
    assert not error.ended


def test_one_that_ends_earlier_than_another_finds_it(three: Sequence[BatchCounts]) -> None:
    run_epoch(three[1], 0, 10)
    three[1].look()
    three[0].begin_epoch(0).training = 9
    three[0].look()
    three[0].training_ends()
    with pytest.raises(UnequalBatchesError, match="10 training batches on process 1, and 9 on process 0"):
        three[0].look()


def test_a_validation_is_compared_once_it_has_ended(three: Sequence[BatchCounts]) -> None:
    for counts in three[:2]:
        counts.begin_epoch(0).training = 4
        counts.training_ends()
    three[1].current.validation = 5
    three[0].current.validation = 3
    for counts in three[:2] * 2:
        counts.look()
    three[0].epoch_ends()
    three[0].look()
    with pytest.raises(UnequalBatchesError, match="3 validation batches on process 0, and 5 so far"):
        three[1].look()
    assert EpochBatches(0, 4, 1).differs_from(EpochWord(0, 4, 0)) == "validation"  # it has none at all


def test_an_epoch_is_compared_with_what_process_0_decides(three: Sequence[BatchCounts]) -> None:
    run_epoch(three[1], 3, 11)
    three[1].compare(0, EpochWord(3, 11, 0))
    with pytest.raises(UnequalBatchesError, match="10 training batches on process 0, and 11 on process 1"):
        three[1].compare(0, EpochWord(3, 10, 0))


def test_a_lost_answer_costs_a_look_and_no_message(three: Sequence[BatchCounts], service: Service) -> None:
    run_epoch(three[0], 0, 4)
    service.loses = True
    with pytest.raises(MessagesLostError):
        three[0].look()
    service.loses = False
    run_epoch(three[0], 1, 4)
    for _ in range(2):
        three[0].look()
    run_epoch(three[1], 0, 4)
    three[1].look()
    run_epoch(three[1], 1, 5)
    with pytest.raises(UnequalBatchesError, match="epoch 2 has had 4 training"):
        three[1].look()
