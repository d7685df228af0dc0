"""Subjects that save: callbacks of ckptstore, Keras and Orbax, and floors: the least that a save can cost."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import workloads
from bench.names import FLOORS, KERAS, ORBAX
from bench.workloads import NotAvailableError

NEVER = 10**9


class Subject:
    """Something that saves.

    Args:
        callback: The callback for the fit.
        wait: Returns when the last save is as safe as this subject makes it.
        load: Restores the last save before `note` into a model; None where there is nothing to load.
        note: Called after a save is done: remembers what to load.
        count: Returns the number of checkpoints of a whole run, or None where it is unknown.
    """

    def __init__(
        self,
        callback: Any,
        *,
        wait: Callable[[], object] = lambda: None,
        load: Callable[[Any], object] | None = None,
        note: Callable[[], object] = lambda: None,
        count: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.callback = callback
        self.wait = wait
        self.load = load
        self.note = note
        self.count = count


def subject(name: str, folder: Path, every: int) -> Subject:
    """Return a subject by name, which saves every `every` batches.

    Raises:
        NotAvailableError: It is not installed, or does not support what is measured.
    """
    if name in FLOORS:
        return _floor(name, folder, every)
    if name in ORBAX:
        return _orbax(name, folder, every)
    if name in KERAS:
        return _keras(name, folder, every)
    if name == "ours ModelCheckpoint":
        return _drop_in(folder, every)
    return _store(name, folder, every)


# --- ckptstore -------------------------------------------------------------------------------------------


def _store(name: str, folder: Path, every: int) -> Subject:
    import ckptstore

    save_freq: Any = {"ours idle": NEVER, "ours auto": "auto"}.get(name, every)
    try:
        callback = ckptstore.StoreCheckpoint(
            folder,
            monitor="loss",
            save_freq=save_freq,
            keep=ckptstore.keep_last(2),
            background=name != "ours synchronous",
        )
    except (TypeError, ValueError) as error:
        raise NotAvailableError(f"not available: {error}") from error
    noted: list[int] = []

    def note() -> None:
        callback.wait()
        assert callback.last is not None
        noted[:] = [callback.last.version]

    def load(model: Any) -> None:
        with ckptstore.CheckpointStore(folder) as store:
            problems = store.verify()
            assert not problems, problems
            store.restore(noted[0], model)

    def count() -> int:
        with ckptstore.CheckpointStore(folder, read_only=True) as store:
            newest = store.latest()
            return 0 if newest is None else newest.version

    return Subject(callback, wait=callback.wait, load=load, note=note, count=count)


def _drop_in(folder: Path, every: int) -> Subject:
    import ckptstore

    options: dict[str, Any] = {"monitor": "loss", "save_freq": every}
    if "background" in inspect.signature(ckptstore.ModelCheckpoint).parameters:
        options["background"] = False
    callback = ckptstore.ModelCheckpoint(folder / "model.keras", **options)

    def load(model: Any) -> None:
        with ckptstore.CheckpointStore(folder) as store:
            problems = store.verify()
            assert not problems, problems
        model.load_weights(folder / "model.keras")

    return Subject(callback, load=load)


# --- others ----------------------------------------------------------------------------------------------


def _keras(name: str, folder: Path, every: int) -> Subject:
    import keras

    folder.mkdir()
    if name == "keras BackupAndRestore":
        callback = keras.callbacks.BackupAndRestore(str(folder), save_freq=every, delete_checkpoint=False)
        return Subject(callback, load=lambda model: model.load_weights(_only(folder, "*.weights.h5")))
    path = folder / f"model{name.removeprefix('keras ')}"
    weights = name.endswith(".weights.h5")
    callback = keras.callbacks.ModelCheckpoint(
        str(path), monitor="loss", save_freq=every, save_weights_only=weights
    )
    return Subject(callback, load=lambda model: model.load_weights(path))


def _only(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def _orbax(name: str, folder: Path, every: int) -> Subject:
    import keras

    if importlib.util.find_spec("orbax") is None:
        raise NotAvailableError("orbax-checkpoint is not installed: pip install 'ckptstore[bench]'")
    try:
        callback = keras.callbacks.OrbaxCheckpoint(
            str(folder), monitor="loss", save_freq=every, save_on_background=name == "orbax background"
        )
    except (AttributeError, ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise NotAvailableError(
            f"keras {keras.__version__} and this Orbax are incompatible: {reason}"
        ) from error
    return Subject(
        callback,
        wait=callback.wait_until_finished,
        load=lambda model: model.load_weights(str(folder)),
    )


# --- floors ----------------------------------------------------------------------------------------------


def _floor(name: str, folder: Path, every: int) -> Subject:
    import keras
    import numpy as np

    class Floor(keras.callbacks.Callback):  # type: ignore[misc]
        """Does the least that a save must do, every `every` batches."""

        def __init__(self) -> None:
            super().__init__()
            self.copies: list[Any] = []
            self.paths: list[Path] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            """Save."""
            if (batch + 1) % every:
                return
            model = self.model  # on JAX, makes Keras return the state to its variables
            if name == "a look at the model":
                return
            arrays = workloads.host_arrays(model)
            if name == "raw write + fsync":
                self.paths.append(folder / f"raw-{batch}")
                raw_write(self.paths[-1], arrays)
            elif self.copies and name == "memory copy again":
                for target, array in zip(self.copies, arrays, strict=True):
                    np.copyto(target, array)
            else:
                self.copies = [array.copy() for array in arrays]

        def clean_up(self) -> None:
            """Release what the next save creates again."""
            if name == "memory copy":
                self.copies = []
            # As many files stay as a store keeps: reusing the pages of a removed file is faster than new pages.
            for path in self.paths[:-2]:
                path.unlink(missing_ok=True)

    folder.mkdir()
    floor = Floor()
    return Subject(floor, note=floor.clean_up)


def raw_write(path: Path, arrays: list[Any]) -> None:
    """Write the bytes of all arrays to a new file, and sync it."""
    with path.open("xb", buffering=0) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, sum(array.nbytes for array in arrays)))
        for array in arrays:
            data = memoryview(array.reshape(-1)).cast("B")
            while data:
                data = data[file.write(data) :]
        os.fsync(file.fileno())
