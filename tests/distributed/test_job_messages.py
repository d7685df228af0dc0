"""Every implementation of `Messages` passes the same checks: in memory, and over each backend's own service."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from ckptstore.distributed.job import Job
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.errors import MessagesLostError
from message_checks import CHECKS, a_fit, check_fits


def in_threads(task: Any) -> list[Any]:
    """Return what a task returns in two threads, which stand for processes."""
    results: list[Any] = [None, None]

    def run(process: int) -> None:
        try:
            results[process] = task(process)
        except BaseException as error:
            results[process] = error

    threads = [threading.Thread(target=run, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def in_memory(service: Any, process: int, **options: Any) -> ServiceMessages:
    return ServiceMessages(service, process=process, service="memory", **options)


@pytest.mark.parametrize("name", CHECKS)
def test_in_memory(name: str) -> None:
    service = MemoryService()
    in_threads(lambda process: CHECKS[name](process, in_memory(service, process)))


def test_a_whole_fit_in_memory() -> None:
    service = MemoryService()

    def task(process: int) -> Any:
        job = Job(kind="memory", by="memory", process=process, processes=2, found_in="here")
        return a_fit(job, in_memory(service, process))

    check_fits(in_threads(task))


class Faulty(MemoryService):
    """A service that does not answer until it is let to, or refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.error: Exception | None = None

    def put_once(self, key: str, value: str) -> str:
        self.answers.wait(20.0)
        return super().put_once(key, value)

    def fetch(self, keys: Sequence[str]) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return super().fetch(keys)


def test_a_service_that_does_not_answer_ends_each_call_at_its_limit() -> None:
    service = Faulty()
    messages = in_memory(service, 1, reply_limit_s=0.3)
    began = time.monotonic()
    with pytest.raises(
        MessagesLostError, match="process 1 cannot reach memory for the message 'a'"
    ) as caught:
        messages.put("a", "1")
    assert (caught.value.key, caught.value.reason) == ("a", "no answer within 0.3 s")
    # One that waits behind it is bounded too, and is not made later.
    with pytest.raises(MessagesLostError):
        messages.put("b", "1")
    with pytest.raises(MessagesLostError):
        messages.get("c", 30.0)
    assert 0.8 < time.monotonic() - began < 5.0
    service.answers.set()
    messages.put("d", "1")
    assert set(service.values) == {"a", "d"}
    messages.put("a", "1")  # to repeat it is no error


def test_an_error_of_the_service_is_told_in_one_line() -> None:
    service = Faulty()
    service.error = RuntimeError("UNAVAILABLE: failed to connect\nAdditional GRPC error information")
    with pytest.raises(MessagesLostError, match="UNAVAILABLE: failed to connect") as caught:
        in_memory(service, 0).present(["a"])
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is service.error


def test_messages_can_be_used_again_once_they_were_closed() -> None:
    messages = in_memory(MemoryService(), 0)
    messages.put("a", "1")
    messages.close()
    messages.close()
    assert messages.get("a", 0.0) == "1"
    messages.close()
