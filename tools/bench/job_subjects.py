"""Subjects that save a model of several processes: ckptstore, Orbax, and floors for one process's share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bench import workloads
from bench.subjects import raw_write
from bench.workloads import NotAvailableError


class JobSubject(Protocol):
    """Something that saves in turns with others, in every process of a job.

    Attributes:
        folder: Where it saves.
    """

    folder: Path

    def callbacks(self) -> list[Any]:
        """Return the callbacks of the fit that it needs, besides its turns."""

    def save(self, model: Any, step: int) -> None:
        """Save, in its turn; in the background where it can."""

    def wait(self) -> None:
        """Return when what it saved is as safe as it makes it."""

    def saved(self) -> Any:
        """Return what a restore needs to find what was saved last, as JSON; None where nothing can be restored."""


def job_subject(name: str, folder: Path, process: int, processes: int, round_length: int) -> JobSubject:
    """Return a subject by name.

    Raises:
        NotAvailableError: It is not installed, or does not work here.
    """
    if name == "ours background":
        return Ours(folder, round_length)
    if name == "orbax CheckpointManager":
        return OrbaxManager(folder)
    if name == "orbax background":
        return KerasOrbax(folder)
    return Floor(folder / str(process), process, processes, writes=name == "raw write + fsync")


def share(values: list[Any], process: int, processes: int) -> list[Any]:
    """Return the distinct parts of arrays that a process has to save, in host memory.

    Of arrays that every process has whole it saves every n-th, where n is the number of processes.
    """
    import numpy as np

    found = []
    for number, value in enumerate(values):
        if value.is_fully_replicated and number % processes != process:
            continue
        parts = {str(shard.index): shard.data for shard in value.addressable_shards}
        found += [np.asarray(part) for part in parts.values()]
    return found


def tree_of(model: Any) -> dict[str, Any]:
    """Return all arrays of a model's state by path, as a user of Orbax would save them."""
    return {f"{number:04d}": variable.value for number, variable in enumerate(workloads.variables(model))}


class Ours:
    """`ckptstore.StoreCheckpoint`, which counts its turns itself."""

    def __init__(self, folder: Path, round_length: int) -> None:
        import ckptstore

        self.folder = folder
        self._callback = ckptstore.StoreCheckpoint(
            folder, monitor="loss", save_freq=round_length, keep=ckptstore.keep_last(2)
        )

    def callbacks(self) -> list[Any]:
        """See `JobSubject`."""
        return [self._callback]

    def save(self, model: Any, step: int) -> None:
        """Do nothing: the callback counts."""

    def wait(self) -> None:
        """See `JobSubject`."""
        self._callback.wait()

    def saved(self) -> Any:
        """See `JobSubject`."""
        assert self._callback.last is not None
        return self._callback.last.version


def require_orbax() -> None:
    """Refuse to measure Orbax where it is not installed.

    Raises:
        NotAvailableError: It is not.
    """
    if importlib.util.find_spec("orbax") is None:
        raise NotAvailableError("orbax-checkpoint is not installed: pip install 'ckptstore[bench]'")


class OrbaxManager:
    """Orbax' own `CheckpointManager`, in the background, on the same arrays."""

    def __init__(self, folder: Path) -> None:
        require_orbax()
        from orbax import checkpoint

        self.folder = folder
        options = checkpoint.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = checkpoint.CheckpointManager(folder, options=options)
        self._step = 0

    def callbacks(self) -> list[Any]:
        """See `JobSubject`."""
        return []

    def save(self, model: Any, step: int) -> None:
        """See `JobSubject`."""
        from orbax import checkpoint

        self._step = step
        self._manager.save(step, args=checkpoint.args.StandardSave(tree_of(model)))

    def wait(self) -> None:
        """See `JobSubject`."""
        self._manager.wait_until_finished()

    def saved(self) -> Any:
        """See `JobSubject`."""
        return self._step


class KerasOrbax:
    """`keras.callbacks.OrbaxCheckpoint`, in the background."""

    def __init__(self, folder: Path) -> None:
        require_orbax()
        import keras

        try:
            self._callback = keras.callbacks.OrbaxCheckpoint(
                str(folder), monitor="loss", save_freq=1, max_to_keep=2
            )
        except (AttributeError, ImportError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise NotAvailableError(f"keras {keras.__version__} and this Orbax: {reason}") from error
        self.folder = folder

    def callbacks(self) -> list[Any]:
        """See `JobSubject`."""
        return []

    def save(self, model: Any, step: int) -> None:
        """See `JobSubject`."""
        if self._callback.model is not model:
            self._callback.set_model(model)
        # A batch number below the last one would begin an epoch.
        self._callback.on_train_batch_end(step)

    def wait(self) -> None:
        """See `JobSubject`."""
        self._callback.wait_until_finished()

    def saved(self) -> Any:
        """See `JobSubject`."""
        return True


class Floor:
    """Copies what this process has to save, into the same memory again, or writes and syncs it."""

    def __init__(self, folder: Path, process: int, processes: int, *, writes: bool) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._share = process, processes
        self._writes = writes
        self._copies: list[Any] = []
        self._paths: list[Path] = []

    def callbacks(self) -> list[Any]:
        """See `JobSubject`."""
        return []

    def save(self, model: Any, step: int) -> None:
        """See `JobSubject`."""
        import numpy as np

        arrays = share([variable.value for variable in workloads.variables(model)], *self._share)
        if self._writes:
            self._paths.append(self.folder / f"raw-{step}")
            raw_write(self._paths[-1], arrays)
        elif self._copies:
            for target, array in zip(self._copies, arrays, strict=True):
                np.copyto(target, array)
        else:
            self._copies = [array.copy() for array in arrays]

    def wait(self) -> None:
        """See `JobSubject`."""
        for path in self._paths[:-2]:
            path.unlink(missing_ok=True)

    def saved(self) -> Any:
        """See `JobSubject`."""
        return None


def sync_files(folder: Path) -> int:
    """Sync all files and folders below a folder, and return the number of files."""
    count = 0
    for directory, _, names in os.walk(folder):
        for name in (*names, "."):
            descriptor = os.open(Path(directory, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        count += len(names)
    return count


def newest_files(folder: Path) -> Mapping[str, int]:
    """Return the number and the size of the files of the newest checkpoint below a folder."""
    places = [path for path in (folder / "checkpoints", folder) if path.is_dir()]
    found = [path for path in places[0].iterdir() if not path.name.startswith(".")]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    files = [path for path in newest.rglob("*") if path.is_file()] if newest.is_dir() else [newest]
    return {"files": len(files), "file_bytes": sum(path.stat().st_size for path in files)}
