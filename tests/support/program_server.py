"""Runs scripts in children that may be killed: a parent imports the backend once, and forks for each.

A program of its own, so that a child has nothing of pytest's. `Server` starts it, and sends what to run as lines of
JSON. A child runs the script as ``python script.py`` would, and ends as a script does, with all that happens at exit.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from process_state import model_state, process_state


@dataclass(frozen=True, kw_only=True)
class Kill:
    """SIGKILL at the n-th event: "batch", "epoch end", "saved", "file" (a change of the file system in a save)."""

    event: str
    number: int


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a script ended: its exit code or signal, what it left, counted and warned of, and what it cost."""

    status: int
    left: dict[str, str] | None
    counts: dict[str, int] = field(default_factory=dict)
    warned: tuple[str, ...]
    output: str
    cpu_s: float


class Server:
    """The parent of the children that run scripts on one backend."""

    def __init__(self, backend: str, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-W", "always::UserWarning", __file__],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, script: Path, folder: Path, *, saves: bool, kill: Kill | None = None, limit_s: int = 280
    ) -> Ran:
        """Run a script in a folder.

        Args:
            script: The script.
            folder: Its working directory.
            saves: False for plain Keras: everything of ckptstore that the script uses does nothing.
            kill: When it is killed.
            limit_s: After how many seconds it is killed because it hangs.
        """
        self._number += 1
        found, warned, printed = (
            self._folder / f"{self._number}.{end}" for end in ("json", "warnings", "txt")
        )
        job = {"script": str(script), "folder": str(folder), "saves": saves, "limit_s": limit_s}
        job |= {"found": str(found), "warned": str(warned), "printed": str(printed)}
        # Real writers where the cost is measured; forked ones, which begin sooner, where it is not.
        job["kill"] = None if kill is None else [kill.event, kill.number]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status, cpu_s = json.loads(self._process.stdout.readline())
        result = json.loads(found.read_text()) if found.exists() else {"left": None, "counts": {}}
        lines = warned.read_text().splitlines() if warned.exists() else []
        return Ran(
            status=status,
            **result,
            warned=tuple(json.loads(line) for line in lines),
            output=printed.read_text(errors="replace"),
            cpu_s=cpu_s,
        )

    def close(self) -> None:
        """End the parent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# --- in the child: what a script leaves ----------------------------------------------------------


def digest_of(value: Any, seen: frozenset[int] = frozenset()) -> str | None:
    """Return a digest of a value that a training makes: models, optimizers, History, arrays, numbers; or None."""
    import keras
    import numpy as np

    if id(value) in seen:
        return None
    seen |= {id(value)}
    if isinstance(value, keras.callbacks.History):
        return digest_of({**value.history, "epochs": list(value.epoch)}, seen)
    if isinstance(value, (keras.callbacks.Callback, type)):
        return None
    if isinstance(value, keras.Model):
        parts = [value.variables, value.metrics_variables, getattr(value, "optimizer", None)]
        return digest_of(parts, seen)
    if isinstance(value, (keras.Layer, keras.optimizers.Optimizer, keras.metrics.Metric)):
        return digest_of(list(value.variables), seen)
    if hasattr(value, "state_dict") and not isinstance(value, keras.Variable):
        return digest_of(value.state_dict(), seen)
    if isinstance(value, dict):
        items = {str(key): digest_of(one, seen) for key, one in value.items()}
        return None if None in items.values() else _sha(json.dumps(items, sort_keys=True))
    if isinstance(value, (list, tuple)):
        digests = [digest_of(one, seen) for one in value]
        return _sha(json.dumps(digests)) if any(digests) or not digests else None
    if value is None:
        return _sha("None")
    if isinstance(value, (bool, int, float, complex, str, np.generic)):
        return _sha(f"{type(value).__name__ if isinstance(value, str) else ''}{_number(value)}")
    if (
        isinstance(value, (keras.Variable, np.ndarray))
        or keras.ops.is_tensor(value)
        or hasattr(value, "numpy")
    ):
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
        return None if array.dtype == object else _sha(f"{array.dtype.str}{array.shape}", array.tobytes())
    return None


def _number(value: Any) -> str:
    # A number of numpy and one of Python are the same here.
    return value if isinstance(value, str) else repr(complex(value))


def _sha(text: str, data: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + data).hexdigest()[:16]


def digests_of(names: dict[str, Any]) -> dict[str, str]:
    """Return the digests of what a script has left under its global names."""
    import keras

    public = {name: value for name, value in names.items() if not name.startswith("_")}
    digests = {name: digest_of(value) for name, value in public.items()}
    for name, value in public.items():
        if isinstance(value, keras.Model):
            digests |= model_state(name, value)
    return {name: digest for name, digest in digests.items() if digest is not None}


# --- in the child: without the store --------------------------------------------------------------


def _save_nothing() -> None:
    import keras

    import ckptstore

    class NoCallback(keras.callbacks.Callback):
        """Stands in for a callback of ckptstore, and does nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__()

    class NoStore:
        """Stands in for a store that has nothing and keeps nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def __enter__(self) -> NoStore:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def resume(self, *arguments: Any, **options: Any) -> None:
            return None

        def save(self, *arguments: Any, **options: Any) -> None:
            return None

    ckptstore.StoreCheckpoint = NoCallback
    ckptstore.ModelCheckpoint = keras.callbacks.ModelCheckpoint
    ckptstore.BackupAndRestore = NoCallback
    ckptstore.CheckpointStore = NoStore


# --- in the child: deaths ---------------------------------------------------------------------------


class Events:
    """Counts what happens, and kills the process at the event that was asked for."""

    def __init__(self, kill: list[Any] | None) -> None:
        self._kill = kill
        self.counts: Counter[str] = Counter()

    def happens(self, event: str) -> None:
        self.counts[event] += 1
        if self._kill == [event, self.counts[event]]:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        import keras

        from ckptstore.background.save_queue import SaveQueue
        from ckptstore.storage import files
        from ckptstore.store.store import CheckpointStore

        self._wrap(keras.callbacks.CallbackList, "on_train_batch_end", after="batch")
        self._wrap(keras.callbacks.CallbackList, "on_epoch_end", before="epoch end", after="epoch end")
        self._wrap(SaveQueue, "submit", before="save", after="saved")
        self._wrap(CheckpointStore, "save", before="save", after="saved")
        files._hooks.append(self._file_changes)

    def _file_changes(self, operation: str, path: Path, phase: str) -> None:
        # Not what opening a store does.
        if self.counts["save"]:
            self.happens("file")

    def _wrap(self, owner: Any, name: str, *, before: str = "", after: str = "") -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if before:
                self.happens(before)
            result = original(*arguments, **options)
            if after:
                self.happens(after)
            return result

        setattr(owner, name, wrapped)


# --- the child, and its parent ------------------------------------------------------------------------


def _run(job: dict[str, Any], writers: Any) -> None:
    signal.alarm(job["limit_s"])
    output = os.open(job["printed"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.chdir(job["folder"])
    sys.argv = [job["script"]]
    sys.path.insert(0, str(Path(job["script"]).parent))
    show = warnings.showwarning

    def record(message: Any, *arguments: Any, **options: Any) -> None:
        with Path(job["warned"]).open("a") as file:
            file.write(json.dumps(str(message)) + "\n")
        show(message, *arguments, **options)

    warnings.showwarning = record
    with ExitStack() as stack:
        events = Events(job["kill"])
        events.watch()
        if not job["saves"]:
            _save_nothing()
        elif job["kill"] is not None:
            if job["kill"][0] == "file":
                os.environ["CKPTSTORE_WRITER"] = "thread"
            else:
                stack.enter_context(writers.used())
        names = runpy.run_path(job["script"], run_name="__main__")
        found = {"left": digests_of(names) | process_state(), "counts": events.counts}
        Path(job["found"]).write_text(json.dumps(found))


def _serve() -> None:
    from forked_writers import Server as Writers

    writers = Writers()
    import keras  # noqa: F401

    import ckptstore.retention
    import ckptstore.store.store
    import ckptstore.training.store_checkpoint  # noqa: F401
    from crash import precompile

    precompile.warm_up()
    # Else each child would look through all that is imported, and copy the memory that it lies in.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line), writers)
            return  # ends as a script does
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)


if __name__ == "__main__":
    _serve()
