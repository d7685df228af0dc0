"""The processes that a backend connects: found, and their messages over the backend's own service, in a real job."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

from ckptstore.errors import MessagesLostError
from ckptstore.keras.private import find_job, messages_of, preemption_signals
from ckptstore.keras.private.backends import jax_job
from message_checks import CHECKS, check_fits
from process_groups import results_of

BACKEND = keras.backend.backend()
BY = {"jax": "jax.distributed", "torch": "torch.distributed", "tensorflow": "MultiWorkerMirroredStrategy"}


def test_two_processes_find_each_other_and_their_messages_pass_all_checks(tmp_path: Path) -> None:
    *processes, _ = results_of(BACKEND, tmp_path, "message_checks:in_process")
    for number, found in enumerate(processes):
        assert "error" not in found, found["error"]
        assert found["job"] == [BACKEND, BY[BACKEND], number, 2, None]
        assert found["imported"] == []
        assert {name: found[name] for name in CHECKS} == dict.fromkeys(CHECKS, "passed")
    check_fits([found["fit"] for found in processes])


def test_a_process_by_itself_has_no_others() -> None:
    for backend in ("jax", "torch", "tensorflow", "numpy"):
        job = find_job(backend, keras.Sequential())
        assert job is None or not job.has_others


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_a_jax_with_another_layout_counts_its_processes_and_says_that_it_has_no_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import jax

    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    for state in (None, SimpleNamespace(), SimpleNamespace(client=None)):
        monkeypatch.setattr(jax_job, "_state", lambda state=state: state)
        job = find_job("jax")
        assert job is not None
        assert (job.process, job.processes, job.found_in) == (3, 4, "jax.process_count()")
        with pytest.raises(
            MessagesLostError, match=r"process 3 cannot reach jax\.distributed: .* 0\.4\.38 to 0\.10\.2"
        ):
            messages_of(job)
        assert preemption_signals("jax") == ()


@pytest.mark.skipif(BACKEND != "torch", reason="of torch")
@pytest.mark.filterwarnings("ignore")  # gloo's own
def test_a_torch_without_its_private_store_is_reached_at_the_master_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch import distributed
    from torch.distributed import distributed_c10d

    server = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.delattr(distributed_c10d, "_get_default_store")
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        job = find_job("torch")
        assert job is not None
        with pytest.raises(MessagesLostError, match="MASTER_ADDR names none"):
            messages_of(job)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(server.port))
        job = find_job("torch")
        assert job is not None
        messages = messages_of(job)
        messages.put("ckptstore/a", "1")
        assert messages.present(["ckptstore/a", "ckptstore/b"]) == {"ckptstore/a": "1"}
        assert server.get("ckptstore/a") == b"1"
        messages.close()
    finally:
        monkeypatch.undo()
        distributed.destroy_process_group()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}, ("worker", 1), (2, 3)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, ("chief", 0), (0, 3)),
        ({"worker": ["b:1", "c:1"]}, ("worker", 1), (1, 2)),
        ({}, (None, None), (0, 1)),
    ],
)
def test_a_cluster_of_tensorflow_is_counted(
    cluster: dict[str, list[str]],
    task: tuple[str | None, int | None],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tensorflow as tf

    class Strategy:
        cluster_resolver = SimpleNamespace(
            cluster_spec=lambda: SimpleNamespace(as_dict=lambda: cluster), task_type=task[0], task_id=task[1]
        )

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", Strategy)
    job = find_job("tensorflow", SimpleNamespace(distribute_strategy=Strategy()))
    assert job is not None
    assert (job.process, job.processes) == expected
    assert job.lacks_messages is None
    assert find_job("tensorflow", SimpleNamespace(distribute_strategy=None)) is None
    other = SimpleNamespace(cluster_resolver=Strategy.cluster_resolver)
    job = find_job("tensorflow", SimpleNamespace(distribute_strategy=other))
    assert job is not None
    assert (job.by, job.processes) == ("SimpleNamespace", expected[1])
    assert job.lacks_messages is not None
