"""A fit says that another process has given up, while a step of its own may wait for that one."""

from __future__ import annotations

import pytest

from ckptstore.distributed.agreements import Agreements
from ckptstore.distributed.batch_counts import BatchCounts
from ckptstore.distributed.memory import MemoryService
from ckptstore.distributed.service import ServiceMessages
from ckptstore.errors import DistributedError, PeerFailedError
from ckptstore.training.job.peer_watch import PeerWatch


def test_one_line_says_which_process_has_given_up_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    service = MemoryService()
    first, second = (ServiceMessages(service, process=process, service="memory") for process in (0, 1))
    left: list[DistributedError] = []
    watch = PeerWatch(Agreements(first, "fit"), BatchCounts(first, 2, "fit/batches"), leave=left.append)
    watch.check()
    for _ in range(8):
        watch()
    Agreements(second, "fit").give_up("RuntimeError: no such file")
    for _ in range(8):
        watch()
    out, err = capfd.readouterr()
    assert (out + err).count("process 1 has given up: RuntimeError: no such file; a step that waits") == 1
    # From then on it is for the training thread to end, or else for `leave`.
    assert isinstance(watch.error, PeerFailedError)
    assert left[0] is watch.error
    with pytest.raises(PeerFailedError, match="process 1 has given up"):
        watch.check()
    first.close()
    second.close()
