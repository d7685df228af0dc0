"""A snapshot reaches another process byte for byte, through memory that is reused."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.background.handoff import EventfdHandoff, LocalHandoff
from ckptstore.background.message import MessageReader, MessageWriter
from ckptstore.commit.request import SaveRequest
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Snapshot, TrainingState, Variable
from ckptstore.retention import keep_last
from ckptstore.system.shared_memory import SharedMemory
from process_shards import InMemoryReports, snapshot_of_process

DTYPES = [
    *(
        "float16",
        "float32",
        "float64",
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "bool",
    ),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4),
]


def array(seed: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)


def snapshot(
    values: dict[str, np.ndarray[Any, Any]], state: dict[str, Any] | None = None, **more: Any
) -> Snapshot:
    variables = tuple(
        Variable(path=path, shape=value.shape, dtype=value.dtype, read=partial(np.asarray, value))
        for path, value in values.items()
    )
    arrays = {"generator": np.arange(5, dtype="uint32"), "empty": np.empty((0, 3))}
    return Snapshot(
        format="keras",
        variables=variables,
        attributes={"layers/dense/vars": {"name": "dense"}},
        documents={"config.json": b'{"a": 1}', "metadata.json": b""},
        state=None if state is None else TrainingState(document=state, arrays=arrays),
        **more,
    )


def other_side(memory: SharedMemory) -> SharedMemory:
    """Return the same memory as another process sees it."""
    assert memory.descriptor is not None
    return SharedMemory(os.dup(memory.descriptor))


@given(
    shapes=st.lists(
        st.tuples(st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(DTYPES)), max_size=6
    )
)
@settings(max_examples=60)
def test_a_message_is_read_as_it_was_written(shapes: list[tuple[tuple[int, ...], Any]]) -> None:
    values = {f"v/{i}": array(i, shape, dtype) for i, (shape, dtype) in enumerate(shapes)}
    memory = SharedMemory.shareable()
    request = SaveRequest(
        run="digits", epoch=3, metrics={"loss": 1.5}, keep=keep_last(2), publish=Path("/a/b")
    )
    MessageWriter().write(memory, snapshot(values, {"seed": 1}), request, 7)
    message = MessageReader(other_side(memory)).read()
    assert message.number == 7
    assert message.request.blocked_s is not None
    assert message.request.created_at == request.created_at
    assert (message.request.run, message.request.epoch) == ("digits", 3)
    assert repr(message.request.keep) == "keep_last(2)"
    assert [variable.path for variable in message.snapshot.variables] == list(values)
    for variable in message.snapshot.variables:
        read, value = variable.read(), values[variable.path]
        assert (variable.shape, variable.dtype) == (value.shape, value.dtype)
        assert read.dtype == variable.dtype
        assert read.tobytes() == value.tobytes()
    assert message.snapshot.documents == {"config.json": b'{"a": 1}', "metadata.json": b""}
    assert message.snapshot.attributes == {"layers/dense/vars": {"name": "dense"}}
    assert message.snapshot.state is not None
    assert message.snapshot.state.document == {"seed": 1}
    assert message.snapshot.state.arrays["generator"].tobytes() == np.arange(5, dtype="uint32").tobytes()
    assert message.snapshot.state.arrays["empty"].shape == (0, 3)


def test_a_message_holds_the_values_at_the_time_of_writing() -> None:
    live = np.ones((3, 3), "float32")
    memory = SharedMemory.shareable()
    MessageWriter().write(memory, snapshot({"v": live}), SaveRequest(run="r", epoch=0), 1)
    live[:] = 2
    (variable,) = MessageReader(other_side(memory)).read().snapshot.variables
    assert np.array_equal(variable.read(), np.ones((3, 3), "float32"))


def test_messages_of_different_structures_follow_each_other_in_one_slot() -> None:
    """A model may be built further, or unfrozen: the reader must not use the structure of the last message."""
    memory, writer = SharedMemory.shareable(), MessageWriter()
    reader = MessageReader(other_side(memory))
    rows = [3, 3, 100_000, 2, 400_000]
    for number, size in enumerate(rows, start=1):
        values = {f"v/{i}": array(number + i, (size,), "float32") for i in range(1 + size % 3)}
        writer.write(memory, snapshot(values, {"n": number}), SaveRequest(run="r", epoch=number), number)
        message = reader.read()
        assert message.number == message.request.epoch == number
        assert {variable.path: variable.read().tobytes() for variable in message.snapshot.variables} == {
            path: value.tobytes() for path, value in values.items()
        }


def test_the_structure_is_worked_out_once_while_it_stays_the_same() -> None:
    memory, writer = SharedMemory.shareable(), MessageWriter()
    reader = MessageReader(other_side(memory))
    live = np.zeros(3, "float32")
    first = snapshot({"v": live}, {"n": 0})
    messages = []
    for number in range(1, 4):
        live[:] = number
        again = Snapshot(
            format="keras", variables=first.variables, attributes=first.attributes, documents=first.documents,
            state=first.state,
        )  # fmt: skip
        writer.write(memory, again, SaveRequest(run="r", epoch=number), number)
        messages.append(reader.read())
        assert messages[-1].snapshot.variables[0].read().tolist() == [number] * 3
    assert len({id(message.snapshot.variables) for message in messages}) == 1


def test_the_division_comes_along_without_the_place_where_processes_meet() -> None:
    memory, writer = SharedMemory.shareable(), MessageWriter()
    reader = MessageReader(other_side(memory))
    first = snapshot_of_process(1, InMemoryReports())
    for number, sent in enumerate((first, first, snapshot_of_process(2), snapshot({"v": np.ones(3)}))):
        writer.write(memory, sent, SaveRequest(run="r", epoch=0), number)
        found = reader.read().snapshot
        assert found.shards == (None if sent.shards is None else replace(sent.shards, reports=None))
        assert [variable.shape for variable in found.variables] == [one.shape for one in sent.variables]
        if sent is not first:
            continue
        # The process that commits writes the same member.
        ours, theirs = (next(iter(payload.encode(one, {}).members)).nbytes for one in (sent, found))
        assert ours == theirs


def test_memory_is_used_again_and_grows_when_it_must() -> None:
    memory = SharedMemory.shareable()
    assert memory.reserve(10)
    size = memory.nbytes
    assert not memory.reserve(size)
    assert memory.nbytes == size
    other = other_side(memory)
    assert other.refresh()
    assert not other.refresh()
    memory.put(0, b"before")
    assert other.get(0, 6) == b"before"
    assert memory.reserve(size + 1)
    assert other.refresh()
    memory.put(size, b"behind")
    assert other.get(size, 6) == b"behind"
    memory.prefault()
    memory.prefault_in_background(lambda: None)
    assert other.get(size, 6) == b"behind"


class Copies:
    """Copies one array, and records the arrays that it prepared for."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.prepared: list[object] = []
        self.threads: list[str] = []

    def prepare(self, targets: Sequence[np.ndarray]) -> None:
        self.prepared.append(targets)
        self.threads.append(threading.current_thread().name)

    def __call__(self, targets: Sequence[np.ndarray]) -> None:
        assert [id(prepared) for prepared in self.prepared] == [id(targets)]
        np.copyto(targets[0], self.value, casting="no")


def test_a_thread_prepares_the_copy_with_the_arrays_of_the_first_save() -> None:
    memory, writer = SharedMemory.shareable(), MessageWriter()
    made = replace(snapshot({"v": np.zeros(3)}), copy=Copies(np.arange(3.0)))
    writer.prepare(memory, made)
    writer.write(memory, made, SaveRequest(run="r", epoch=0), 1)
    assert made.copy.threads == ["ckptstore-memory"]
    assert MessageReader(memory).read().snapshot.variables[0].read().tolist() == [0.0, 1.0, 2.0]


def test_arrays_prepared_for_another_structure_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, writer = SharedMemory.shareable(), MessageWriter()
    structure_changed = threading.Event()
    prefault, prefault_here = memory.prefault, memory._prefault

    def late() -> None:
        if threading.current_thread() is not threading.main_thread():
            structure_changed.wait()
        prefault_here()

    def after_the_structure_changed() -> None:
        structure_changed.set()
        prefault()

    monkeypatch.setattr(memory, "_prefault", late)
    monkeypatch.setattr(memory, "prefault", after_the_structure_changed)
    before = replace(snapshot({"v": np.ones(3)}), copy=Copies(np.ones(3)))
    writer.prepare(memory, before)
    writer.write(memory, snapshot({"v": np.zeros((2, 2), "int32")}), SaveRequest(run="r", epoch=0), 1)
    assert before.copy.prepared
    (found,) = MessageReader(memory).read().snapshot.variables
    assert (found.shape, found.read().tolist()) == ((2, 2), [[0, 0], [0, 0]])


@pytest.mark.parametrize("closed", [True, False])
def test_memory_is_released(closed: bool) -> None:
    def open_memories() -> set[str]:
        paths = Path("/proc/self/fd").iterdir()
        return {
            str(path) for path in paths if path.is_symlink() and "ckptstore-snapshot" in str(path.readlink())
        }

    gc.collect()
    before = open_memories()
    memory = SharedMemory.shareable()
    memory.reserve(1 << 20)
    assert open_memories() > before
    if closed:
        memory.close()
    del memory
    assert open_memories() == before


@pytest.mark.parametrize("kind", [EventfdHandoff, LocalHandoff])
def test_a_handoff_is_taken_once(kind: Any) -> None:
    handoff = kind()
    assert not handoff.take()
    handoff.give()
    assert handoff.take()
    assert not handoff.take()
    handoff.close()
    handoff.close()


def test_the_time_of_a_save_is_when_it_was_requested() -> None:
    request = SaveRequest(run="r", epoch=0)
    memory = SharedMemory.shareable()
    MessageWriter().write(memory, snapshot({}), request, 1)
    message = MessageReader(other_side(memory)).read()
    assert message.request.began == request.began
    assert message.request.created_at <= datetime.now(UTC)
    assert message.request.blocked_s is not None
    assert 0 <= message.request.blocked_s <= request.waited_s()
