"""Child processes that die at a chosen file-system step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from ckptstore.storage.files import io_hook
from crash.fork_server import CONTEXT, preload

DIED = 77


def _child(work: Callable[..., None], arguments: tuple[object, ...], at: int) -> None:
    steps = itertools.count(1)

    def die(operation: str, path: Path, phase: str) -> None:
        if next(steps) == at:
            os._exit(DIED)

    with io_hook(die):
        work(*arguments)
    os._exit(0)


def dies_at(at: int, work: Callable[..., None], *arguments: object) -> bool:
    """Run `work` in a child that exits hard at its `at`-th step; return False if it ended before that step.

    Raises:
        AssertionError: The child failed in another way.
    """
    preload()
    process = CONTEXT.Process(target=_child, args=(work, arguments, at))
    process.start()
    _wait_for(process)
    assert process.exitcode in (0, DIED), f"child ended with {process.exitcode} at step {at}"
    return process.exitcode == DIED


def every_death(
    work: Callable[..., None], prepare: Callable[[], tuple[object, ...]]
) -> Iterator[tuple[object, ...]]:
    """Yield the arguments after each death of `work`: at its first step, its second, ..., until it completes."""
    for at in itertools.count(1):
        arguments = prepare()
        died = dies_at(at, work, *arguments)
        yield arguments
        if not died:
            assert at > 5, "no steps were seen: the hook is not called"
            return


def run_in_child(work: Callable[..., None], *arguments: object) -> int:
    """Run `work` in a child process and return its exit code."""
    preload()
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    _wait_for(process)
    assert process.exitcode is not None
    return process.exitcode


def _wait_for(process: BaseProcess) -> None:
    """Wait for a child, and kill it if it does not end: this process would wait for it at its own exit."""
    process.join(60)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError("the child did not end within 60 s")
