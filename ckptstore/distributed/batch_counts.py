"""`BatchCounts`: the processes of a fit tell each other how many batches each epoch has had, and see where they differ.

A step needs all processes. One that has a batch more than another waits in it for ever, or shares it with a step of the
other's next epoch. Nobody is asked, and nobody waits: the training thread counts, another thread tells what has ended
here, looks at what has ended elsewhere, and compares. Process 0 compares with all, each other one with process 0, so
that wherever two differ, one of them differs from process 0.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ckptstore.distributed.messages import Messages
from ckptstore.errors import UnequalBatchesError

# Messages before this many are deleted: there is one at most for each look, and no process is an epoch behind another.
_KEPT = 64


class EpochWord(NamedTuple):
    """Batches of an epoch, as its process tells them to the others.

    Attributes:
        epoch: Its zero-based index.
        training: Its training batches.
        validation: Those of its validation, 0 without one; None while that may come.
    """

    epoch: int
    training: int
    validation: int | None


@dataclass(slots=True)
class EpochBatches:
    """The batches of one epoch in this process, changed by the training thread alone.

    Attributes:
        epoch: Its zero-based index.
        training: Training batches that have begun.
        validation: Batches of its validation that have begun.
        training_ended: True when there are no more of the first.
        ended: True when there are no more of either.
    """

    epoch: int
    training: int = 0
    validation: int = 0
    training_ended: bool = False
    ended: bool = False

    @property
    def word(self) -> EpochWord | None:
        """The batches that can be told now, or None."""
        if not self.training_ended:
            return None
        return EpochWord(self.epoch, self.training, self.validation if self.ended else None)

    def differs_from(self, word: EpochWord) -> Literal["training", "validation"] | None:
        """Return in which part it cannot be what another process tells of the same epoch; None if it may be.

        Example:
            >>> own = EpochBatches(epoch=0, training=10)
            >>> own.differs_from(EpochWord(0, 11, None))  # the eleventh may still come here
            >>> own.training_ended = True
            >>> own.differs_from(EpochWord(0, 11, None))
            'training'
        """
        # What ends a part is read before its count, which the training thread sets first.
        ended, training_ended = self.ended, self.training_ended
        if _differ(self.training, word.training, ended=training_ended):
            return "training"
        if word.validation is not None and _differ(self.validation, word.validation, ended=ended):
            return "validation"
        return None


def _differ(own: int, other: int, *, ended: bool) -> bool:
    return own != other if ended else own > other


class BatchCounts:
    """The counts of one fit, as one process has them.

    Args:
        messages: The messages of this process.
        processes: The number of processes.
        prefix: Begins the keys, without a ``/`` at its end; the same on all processes, and of no other fit.

    Attributes:
        current: The epoch that began last.

    Example:
        >>> from ckptstore.distributed.memory import MemoryService
        >>> from ckptstore.distributed.service import ServiceMessages
        >>> service = MemoryService()
        >>> first, second = (
        ...     BatchCounts(ServiceMessages(service, process=process, service="memory"), 2, "fit") for process in (0, 1)
        ... )
        >>> for counts, batches in (first, 10), (second, 11):
        ...     counts.begin_epoch(0).training = batches
        >>> first.training_ends()
        >>> first.look()
        >>> try:
        ...     second.look()
        ... except UnequalBatchesError as error:
        ...     print(error.message)
        epoch 1 has had 10 training batches on process 0, and 11 so far on process 1
    """

    def __init__(self, messages: Messages, processes: int, prefix: str) -> None:
        self._messages = messages
        self._prefix = prefix
        others = range(1, processes) if messages.process == 0 else (0,)
        # Of each process that this one compares with: how many messages were read, and what they told last of an epoch.
        self._read = dict.fromkeys(others, 0)
        self._received: dict[int, dict[int, EpochWord]] = {process: {} for process in others}
        # The same of this process: how many were written, what they told last, and one that may not have been written.
        self._sent = 0
        self._told: dict[int, EpochWord] = {}
        self._sending = ""
        self._lock = threading.Lock()
        self._epochs: list[EpochBatches] = []
        self.current = EpochBatches(epoch=-1)

    # --- the training thread -----------------------------------------------------------------------

    def begin_epoch(self, epoch: int) -> EpochBatches:
        """Begin an epoch; returns its counts, in which the batches are to be counted as they begin."""
        self.current = EpochBatches(epoch)
        with self._lock:
            self._epochs.append(self.current)
        return self.current

    def training_ends(self) -> None:
        """Note that the epoch has no more training batches; may be called again."""
        self.current.training_ended = True

    def epoch_ends(self) -> EpochWord:
        """Note that the epoch has no more batches of any kind; returns what is told of it."""
        self.training_ends()
        self.current.ended = True
        return EpochWord(self.current.epoch, self.current.training, self.current.validation)

    def compare(self, process: int, word: EpochWord) -> None:
        """Compare the present epoch with what another process tells of the same one.

        Raises:
            UnequalBatchesError: They differ.
        """
        self._compare(self.current, process, word)

    # --- the thread that looks ---------------------------------------------------------------------

    def look(self) -> None:
        """Tell what has ended here since the last look, and compare with what has ended elsewhere; waits for nobody.

        Raises:
            UnequalBatchesError: Another process has had other batches.
            MessagesLostError: The messages do not get through; may be called again.
        """
        self._tell()
        self._receive()
        with self._lock:
            epochs = self._epochs[:]
        for own in epochs:
            for process, words in self._received.items():
                if own.epoch in words:
                    self._compare(own, process, words[own.epoch])
        for own in epochs:
            self._forget_if_settled(own)

    def _tell(self) -> None:
        if not self._sending:
            with self._lock:
                epochs = self._epochs[:]
            new = [
                word for own in epochs if (word := own.word) is not None and self._told.get(own.epoch) != word
            ]
            if not new:
                return
            self._told |= {word.epoch: word for word in new}
            self._sending = json.dumps(new)
        # Where it is not known if it was written, the same is written again.
        self._messages.put(self._key(self._sent, self._messages.process), self._sending)
        self._sending = ""
        self._sent += 1
        if self._sent > _KEPT:
            self._messages.delete([self._key(self._sent - 1 - _KEPT, self._messages.process)])

    def _receive(self) -> None:
        keys = {self._key(number, process): process for process, number in self._read.items()}
        for key, text in self._messages.present([*keys]).items():
            process = keys[key]
            self._read[process] += 1
            self._received[process] |= {word[0]: EpochWord(*word) for word in json.loads(text)}

    def _forget_if_settled(self, own: EpochBatches) -> None:
        """Drop an epoch that has ended on all, and was told and compared."""
        words = (self._told, *self._received.values())
        if own.ended and all(
            own.epoch in found and found[own.epoch].validation is not None for found in words
        ):
            for found in words:
                del found[own.epoch]
            with self._lock:
                self._epochs.remove(own)

    def _compare(self, own: EpochBatches, process: int, word: EpochWord) -> None:
        part = own.differs_from(word)
        if part is None:
            return
        other = word.training if part == "training" else word.validation
        assert other is not None
        raise UnequalBatchesError(
            process=self._messages.process,
            part=part,
            epoch=own.epoch,
            batches=own.training if part == "training" else own.validation,
            ended=own.training_ended if part == "training" else own.ended,
            other=process,
            other_batches=other,
        )

    def _key(self, number: int, process: int) -> str:
        return f"{self._prefix}/{number:08d}/{process}"
