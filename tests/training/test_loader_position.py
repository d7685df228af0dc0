"""A source that reports its position is set to it, and no batch is read twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import ckptstore
from ckptstore.keras.private import FitLoop, running_fit
from ckptstore.training.data import source as data_source
from resume_cases import BATCH, FEATURES, ROWS, dense, is_installed, rows

pytestmark = [
    pytest.mark.usefixtures("forked_writers"),
    pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="its pipelines ask ahead"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # called by torchdata
    pytest.mark.filterwarnings("ignore:.*input ran out of data:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]
needs_grain = pytest.mark.skipif(not is_installed("grain"), reason="needs grain")
needs_torchdata = pytest.mark.skipif(not is_installed("torchdata"), reason="needs torchdata")


class RecordingRows:
    """Rows that record which of them were requested."""

    def __init__(self) -> None:
        self.inputs, self.targets = rows()
        self.requested: list[int] = []

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        self.requested.append(int(index))
        return self.inputs[index], self.targets[index]


def own_loader(data: RecordingRows, **settings: Any) -> Any:
    from torch.utils.data import DataLoader

    class Own(DataLoader):  # type: ignore[type-arg]
        at, is_resumed = 0, False

        def __iter__(self) -> Any:
            self.at = self.at if self.is_resumed else 0
            self.is_resumed = False
            return self.batches()

        def batches(self) -> Iterator[Any]:
            while self.at < ROWS:
                self.at += BATCH
                yield self.collate_fn([data[index] for index in range(self.at - BATCH, self.at)])

        def state_dict(self) -> dict[str, Any]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.at, self.is_resumed = state["at"], True

    return Own(data, batch_size=BATCH, **settings)  # type: ignore[arg-type]


def stateful_loader(data: RecordingRows) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(data, batch_size=BATCH)  # type: ignore[arg-type]


def grain_dataset(data: RecordingRows) -> Any:
    import grain

    one_at_a_time = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return grain.MapDataset.source(data).to_iter_dataset(one_at_a_time).batch(BATCH)


class At(keras.callbacks.Callback):
    """Calls a function after each batch."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.act(self, batch)


def stop_at(number: int) -> At:
    def act(callback: Any, batch: int) -> None:
        if batch == number:
            raise KeyboardInterrupt

    return At(act)


@pytest.mark.parametrize(
    "make",
    [
        own_loader,
        pytest.param(stateful_loader, marks=needs_torchdata),
        pytest.param(grain_dataset, marks=needs_grain),
    ],
)
@pytest.mark.parametrize("last", [4, ROWS // BATCH - 1])
def test_batches_are_not_read_twice(make: Any, last: int, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    model, data = dense(), RecordingRows()
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            make(data),
            epochs=2,
            verbose=0,
            shuffle=False,
            callbacks=[ckptstore.StoreCheckpoint(store, run="default"), stop_at(last)],
        )
    model, data = dense(), RecordingRows()
    source = make(data)
    model.build((None, FEATURES))
    resumed = ckptstore.StoreCheckpoint(store, run="default")
    data.requested.clear()
    begun = At(lambda callback, batch: seen.append(data.requested[-BATCH:]))
    seen: list[list[int]] = []
    model.fit(source, epochs=2, verbose=0, shuffle=False, callbacks=[resumed, begun])
    batches = [list(range(at, at + BATCH)) for at in range(0, ROWS, BATCH)]
    assert seen == [*batches[last + 1 :], *batches]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only on JAX Keras asks ahead")
@pytest.mark.parametrize("saving", [False, True])
def test_an_accelerator_does_not_read_ahead_of_a_source_that_reports_its_position(
    saving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax

    source = own_loader(RecordingRows())
    ahead: list[int] = []
    noting = At(lambda callback, batch: ahead.append(source.at // BATCH - batch - 1))
    callbacks = [ckptstore.StoreCheckpoint(str(tmp_path / "store"))] if saving else []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    dense().fit(source, epochs=1, verbose=0, shuffle=False, callbacks=[*callbacks, noting])
    assert set(ahead) == ({0} if saving else {0, 1})


def test_wrapped_attributes_are_restored(tmp_path: Path) -> None:
    source, loops = own_loader(RecordingRows()), []

    def act(callback: Any, batch: int) -> None:
        loop = running_fit(callback)
        assert isinstance(loop, FitLoop)
        loops.append((loop.data._iterator.data_adapter, loop.data._iterator.data_adapter._dataloader))

    dense().fit(
        source,
        verbose=0,
        shuffle=False,
        callbacks=[ckptstore.StoreCheckpoint(str(tmp_path / "store")), At(act)],
    )
    adapter, during = loops[0]
    assert during is not source
    assert during.prefetch_factor == source.prefetch_factor  # which Keras 3.12 asks for
    assert adapter._dataloader is source


@pytest.mark.parametrize("epochs", [0, 1])
def test_persistent_workers_are_a_warning(epochs: int, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    loader = own_loader(
        RecordingRows(), num_workers=2, persistent_workers=True
    )  # settings alone: it starts none
    fit = {"verbose": 0, "shuffle": False}
    with pytest.raises(KeyboardInterrupt):
        callbacks = [ckptstore.StoreCheckpoint(store, run="default"), stop_at(3)]
        dense().fit(loader, epochs=epochs + 1, initial_epoch=epochs, callbacks=callbacks, **fit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = [ckptstore.StoreCheckpoint(store, run="default")]
        dense().fit(loader, epochs=epochs + 1, callbacks=callbacks, **fit)
    assert any("persistent_workers" in str(warning.message) for warning in caught) == bool(epochs)


# --- rows that are requested -----------------------------------------------------------------------------------


class Reporting:
    def get_state(self) -> int:
        return 3

    def set_state(self, state: int) -> None:
        raise AssertionError(state)


class ReportingDataset(Reporting, keras.utils.PyDataset):
    pass


class ReportingRows(Reporting, RecordingRows):
    pass


def test_sources_that_report_a_position() -> None:
    assert data_source.reports_position(Reporting())
    assert not data_source.reports_position(ReportingDataset())
    assert not data_source.reports_position(np.zeros(3))
    assert data_source.reports_position(own_loader(RecordingRows()))
    with_workers, reporting = own_loader(RecordingRows()), own_loader(ReportingRows())
    with_workers.num_workers = reporting.num_workers = 2
    assert not data_source.reports_position(with_workers)
    assert data_source.reports_position(reporting)


def test_the_dataset_that_a_loader_does_not_report() -> None:
    data = RecordingRows()
    assert data_source.unreported_dataset(own_loader(data)) is data
    assert data_source.unreported_dataset(own_loader(ReportingRows())) is None
    assert data_source.unreported_dataset(Reporting()) is None


def test_attributes_of_a_users_loader() -> None:
    first, again = own_loader(RecordingRows()), own_loader(RecordingRows())
    for loader in (first, again):
        loader.draw = np.random.default_rng(1)
        loader.epoch = 0
    watcher = data_source.ChangeTracker(first)
    first.epoch = 5
    first.draw.random()
    saved = watcher.capture()
    assert saved is not None
    assert set(saved[""]["attributes"]) == {"draw", "epoch"}
    data_source.apply(again, saved)
    assert again.epoch == 5
    assert again.draw.random() == first.draw.random()
