"""The demonstration: a training on real digits is killed twice, resumes each time, and ends as if nothing had happened.

`tools/digits/training.py` trains a small convolutional net on scikit-learn's 1,797 handwritten digits, with Dropout,
shuffling, EarlyStopping and ReduceLROnPlateau. It gets SIGKILL from outside in the middle of an epoch, and the same
command is started again; that gets SIGKILL in the middle of a save, and is started once more. The exact times differ
from run to run. The first kill hits the training alone, and the process that saves in the background finishes its work;
the second hits both. The result is compared, to the bit, with the same script uninterrupted and without ckptstore. Then
the store is queried with the `ckptstore` command, and plain Keras loads the best checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # started as `python tools/digits`: the package lies in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import ckptstore
from digits import training

MAX_WAIT_S = 120.0


# --- processes -------------------------------------------------------------------------------------------


def command(folder: Path, *options: str) -> list[str]:
    """Return the command that trains."""
    return [sys.executable, training.__file__, str(folder), *options]


def train_and_kill(folder: Path, is_time: Callable[[], bool], *, whole: bool) -> None:
    """Start the training, kill it from outside as soon as it is time, and print what it left.

    With `whole`, its child processes are killed too, as when a machine fails.
    """
    with subprocess.Popen(command(folder)) as training:
        deadline = time.monotonic() + MAX_WAIT_S
        while not (is_time() and (not whole or stopped_in_a_save(folder, training.pid))):
            if training.poll() is not None:
                raise SystemExit(
                    f"the training ended by itself, with {training.returncode}, before it was killed"
                )
            if time.monotonic() > deadline:
                training.kill()
                raise SystemExit(f"the time to kill the training did not come within {MAX_WAIT_S:.0f} s")
        for pid in children(training.pid) if whole else ():
            os.kill(pid, signal.SIGKILL)
        training.kill()
    if training.returncode >= 0:
        raise SystemExit("the training ended before the signal reached it")
    if whole:
        cut = being_written(folder)
        how = f"with all its processes, {'in the middle of a save' if cut else 'between two saves'}"
    else:
        how = "in the middle of an epoch"
    print(f"\n-- killed with SIGKILL {how}; the newest checkpoint is of {where(folder)} --", flush=True)


def stopped_in_a_save(folder: Path, pid: int) -> bool:
    """Stop a training and its children, and return True; let them continue where the save has ended meanwhile."""
    processes = [*children(pid), pid]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    while not all(is_stopped(process) for process in processes):
        time.sleep(0.001)  # on another core, a process runs until that core sees the signal
    if being_written(folder):
        return True
    for process in processes:
        os.kill(process, signal.SIGCONT)
    return False


def is_stopped(pid: int) -> bool:
    """Return True for a process that is stopped, or has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    state = stat.rpartition(")")[2].split()[0]
    return state in "TtZX"


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listed in found for child in listed.read_text(encoding="ascii").split()]


# --- when to kill ----------------------------------------------------------------------------------------


def inside_an_epoch(folder: Path, epoch: int) -> Callable[[], bool]:
    """Return a check that is true once the newest checkpoint is from the middle of `epoch` or of a later one."""

    def is_time() -> bool:
        time.sleep(0.002)
        newest = resume_point(folder)
        return newest is not None and newest.epoch >= epoch and newest.batch is not None

    return is_time


def inside_a_save(folder: Path, saves: int) -> Callable[[], bool]:
    """Return a check that is true once some saves are finished and another is being written."""
    before = newest_version(folder)

    def is_time() -> bool:
        return newest_version(folder) >= before + saves and bool(being_written(folder))

    return is_time


def newest_version(folder: Path) -> int:
    """Return the version of the newest checkpoint, which its file name begins with."""
    names = (path.name for path in (folder / "checkpoints").glob("*.keras"))
    return max((int(name.partition("-")[0]) for name in names), default=0)


def being_written(folder: Path) -> list[Path]:
    """Return the payloads that are being written, or were when their writer died."""
    return [path for path in (folder / "tmp").glob("*") if path.suffix != ".lease"]


def resume_point(folder: Path) -> ckptstore.Checkpoint | None:
    """Return the checkpoint to resume from, or None."""
    try:
        with ckptstore.CheckpointStore(folder, read_only=True) as store:
            return store.resume_point()
    except ckptstore.StoreNotFoundError:
        return None


def where(folder: Path) -> str:
    """Return the position from which training resumes."""
    newest = resume_point(folder)
    if newest is None:
        return "nothing"
    return f"epoch {newest.epoch + 1}, " + (
        "its end" if newest.batch is None else f"batch {newest.batch + 1}"
    )


# --- the result -------------------------------------------------------------------------------------


def shown_result(title: str, folder: Path) -> tuple[str, str]:
    """Print and return the digests of all variables and of the History of a finished training."""
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    history = json.dumps(result["history"], sort_keys=True)
    digests = result["variables"], hashlib.sha256(history.encode()).hexdigest()
    print(
        f"{title}: variables {digests[0][:32]}, History of {len(result['history']['loss'])} epochs {digests[1][:32]}"
    )
    return digests


def shown(folder: Path, *arguments: str) -> str:
    """Run the command, print it with its output, and return the output."""
    print(f"\n$ ckptstore {' '.join(arguments)}", flush=True)
    run = [sys.executable, "-m", "ckptstore", *arguments]
    done = subprocess.run(run, cwd=folder, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    print(done.stdout, end="", flush=True)
    return done.stdout


def evaluate(file: str) -> None:
    """Load a checkpoint with plain Keras and print its accuracy on the digits held out."""
    code = """
import sys, keras
from digits import training
images, targets = training.digits()
held_out = training.HELD_OUT
_, accuracy = keras.models.load_model(sys.argv[1]).evaluate(images[-held_out:], targets[-held_out:], verbose=0)
assert "ckptstore" not in sys.modules
print(f"{round(accuracy * held_out)} of {held_out} held-out digits right: {accuracy:.2%}")
"""
    tools = str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", code, file], env={**os.environ, "PYTHONPATH": tools}, check=True)


def demonstrate(folder: Path) -> None:
    """Run the whole demonstration in a folder."""
    began = time.monotonic()
    draw = random.SystemRandom()
    killed, plain = folder / "digits", folder / "uninterrupted"
    print("-- training with StoreCheckpoint --", flush=True)
    train_and_kill(killed, inside_an_epoch(killed, draw.randint(1, 4)), whole=False)
    print("-- the same command again --", flush=True)
    train_and_kill(killed, inside_a_save(killed, draw.randint(1, 4)), whole=True)
    print("-- and again --", flush=True)
    subprocess.run(command(killed), check=True)
    print("\n-- the same script without ckptstore, uninterrupted --", flush=True)
    subprocess.run(command(plain, "--without-ckptstore"), check=True)
    print("\n-- compared to the bit --")
    same = shown_result("killed twice ", killed) == shown_result("uninterrupted", plain)
    print("identical" if same else "DIFFERENT")
    shown(folder, "ls", "digits")
    best = shown(folder, "best", "digits", "--metric", "val_accuracy").splitlines()[0]
    shown(folder, "verify", "digits")
    print("\n-- the best checkpoint, loaded by plain Keras --", flush=True)
    evaluate(best)
    print(f"\n({time.monotonic() - began:.0f} s, in {folder})")
    if not same:
        raise SystemExit(1)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where to train; a temporary folder by default")
    folder: Path | None = parser.parse_args().folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        demonstrate(folder.resolve())
        return
    with tempfile.TemporaryDirectory(prefix="ckptstore-demo-") as made:
        demonstrate(Path(made).resolve())


if __name__ == "__main__":
    main()
