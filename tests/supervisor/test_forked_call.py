"""Calls in a child process: results come back, and whatever goes wrong is a text."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ckptstore.errors import NotAStoreError, StorageError
from ckptstore.supervisor.forked_call import call_in_child


class HostileError(Exception):
    """An exception that can be pickled and not loaded again, as those of many packages."""

    def __init__(self, *, path: str) -> None:
        super().__init__(f"cannot read {path}")


def raising(error: BaseException) -> str:
    def function() -> str:
        raise error

    return call_in_child(function, "complaint: {}".format)


def test_a_result_comes_back_from_another_process() -> None:
    assert call_in_child(os.getpid, lambda complaint: 0) not in (0, os.getpid())


def test_errors_come_back_as_text_however_they_pickle() -> None:
    assert raising(HostileError(path="/x")) == "complaint: HostileError('cannot read /x')"
    assert raising(ZeroDivisionError()) == "complaint: ZeroDivisionError()"
    full = StorageError(operation="write", path=Path("/x"), error=OSError(28, "No space left on device"))
    assert raising(full) == f"complaint: {full}"
    assert raising(SystemExit(1)) == "complaint: the process that asked the store has died"


def test_a_child_that_is_killed_is_told() -> None:
    def function() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    assert call_in_child(function, str) == "the process that asked the store has died"


def test_a_path_that_is_no_store_raises_here() -> None:
    with pytest.raises(NotAStoreError):
        raising(NotAStoreError(path=Path("/x"), reason="it is a file"))
