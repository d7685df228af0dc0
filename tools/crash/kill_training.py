"""Kills a real ``model.fit`` at every system call that changes a file system, and at random times, and checks.

The saves that the fit reported are recorded outside the store, by a callback that runs after ours. After each kill a
warm process checks the store: the invariants, that plain Keras loads the files, and that another fit starts.

    python tools/crash kills                          every call, then 300 random kills: up to an hour
    python tools/crash kills --stride 20 --random 20
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from crash.fork_server import preload
from crash.injection_points import Call, calls_in, one_of_each_name
from crash.planted_faults import FAULTS, LEASE, fix_lease_name, plant
from crash.strace import KILLED, MUTATING, run_traced

EPOCHS = 3
KEPT = 2  # kept by the drop-in without placeholders, besides the best and the published
STARTS = ("used", "empty")
_KILLS_PER_STORE = 10  # random kills
_MODULES = (
    "keras",
    "ckptstore.training.model_checkpoint",
    "ckptstore.keras.model.adapter",
    "crash.kill_training",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Number of kills, number of fits that ended before their kill, and one line for each violation."""

    kills: int
    ended_first: int
    seconds: float
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A save that `ModelCheckpoint.last` reported."""

    version: int
    digest: str
    epoch: int
    loss: float


def use_keras() -> str:
    """Import the backend and Keras once, in the process that all children are forked from; return the backend."""
    backend = os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    preload((*_MODULES, backend))
    return backend


# --- the fit --------------------------------------------------------------------------------------


def fit(folder: Path, report: Path, fault: str = "") -> None:
    """Train and save a tiny model, and record each save when it is reported."""
    plant(fault)
    fix_lease_name()
    _train(_model(), folder, report)


def _fit_forever(folder: Path, report: Path, fault: str, ready: Connection) -> None:
    plant(fault)
    model = _model()
    model.fit(*_data(), verbose=0)  # compiles, so that later kills hit the saves
    ready.send_bytes(b"")
    while True:
        _train(model, folder, report)


def _train(model: Any, folder: Path, report: Path, epochs: int = EPOCHS) -> None:
    import keras

    from ckptstore.training.model_checkpoint import ModelCheckpoint

    saved = ModelCheckpoint(folder / "best.keras", monitor="loss")
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def record(epoch: int, logs: object) -> None:
        last = saved.last
        assert last is not None
        assert last.epoch == epoch
        claim = Claim(version=last.version, digest=last.digest, epoch=epoch, loss=last.metrics["loss"])
        os.write(descriptor, f"{json.dumps(asdict(claim))}\n".encode())

    try:
        model.fit(
            *_data(),
            epochs=epochs,
            batch_size=8,
            verbose=0,
            callbacks=[saved, keras.callbacks.LambdaCallback(on_epoch_end=record)],
        )
    finally:
        os.close(descriptor)


def _model() -> Any:
    import keras

    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    return model


def _data() -> tuple[Any, Any]:
    import numpy as np

    inputs = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    return inputs, inputs.sum(axis=1, keepdims=True)


# --- the check, in a warm process ------------------------------------------------------------------------

_warm: list[Any] = []


def _warm_up(fault: str) -> None:
    plant(fault)
    _warm.append(_model())


def check(folder: Path, report: Path) -> list[str]:
    """Return what is wrong with a folder whose fit was killed; start another fit there."""
    from crash.invariants import PublishedFile, violations

    root = folder / ".ckptstore"
    found = violations(root, published=PublishedFile(path=folder / "best.keras"))
    claims = _claims(report)
    found += _wrong_claims(root, claims, unfinished=2) + _wrong_for_keras(folder, claims)
    _train(_warm[0], folder, report, epochs=1)
    after = _claims(report)
    if len(after) != len(claims) + 1:
        found.append(f"the fit after the kill reported {len(after) - len(claims)} saves instead of 1")
    return found + [f"after another fit: {line}" for line in _wrong_claims(root, after, unfinished=0)]


def _claims(report: Path) -> list[Claim]:
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    return [Claim(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _wrong_claims(root: Path, claims: Sequence[Claim], *, unfinished: int) -> list[str]:
    """Compare with the reports: of all reported and listed checkpoints, the newest two and the best must exist.

    A save that was killed before its retention leaves up to two more, the next older one and the earlier best; the next
    save removes them.
    """
    from ckptstore.store.store import CheckpointStore

    with CheckpointStore(root, read_only=True) as store:
        listed = {checkpoint.version: checkpoint for checkpoint in store.checkpoints()}
    losses = {version: checkpoint.metrics.get("loss", math.nan) for version, checkpoint in listed.items()}
    losses |= {claim.version: claim.loss for claim in claims}
    expected = set(sorted(losses)[-KEPT:])
    expected |= {min(losses, key=lambda version: (losses[version], version))} if losses else set()
    versions = [claim.version for claim in claims]
    found = [] if versions == sorted(set(versions)) else [f"versions were reported as {versions}"]
    for claim in claims:
        existing = listed.get(claim.version)
        if existing is None and claim.version in expected:
            found.append(f"{claim} was reported as saved and does not exist; {sorted(listed)} do")
        if existing is not None and (existing.digest, existing.epoch) != (claim.digest, claim.epoch):
            found.append(f"{claim} was reported as saved and is {existing}")
    extra = sorted(set(listed) - expected)
    if len(extra) > unfinished:
        found.append(f"{extra} still exist besides {sorted(expected)}")
    return found


def _wrong_for_keras(folder: Path, claims: Sequence[Claim]) -> list[str]:
    """Load the published file and the newest checkpoint as a user without ckptstore would."""
    import keras

    from ckptstore.storage.files import digest_file
    from ckptstore.store.store import CheckpointStore

    published = folder / "best.keras"
    with CheckpointStore(folder, read_only=True) as store:
        newest = store.latest()
    found = []
    for path in [published, *([newest.path] if newest else [])]:
        if path.exists():
            try:
                keras.saving.load_model(path)
            except Exception as error:  # whatever it is, it is a violation
                found.append(f"plain Keras does not load {path.name}: {error!r}")
    if claims and not published.exists():
        found.append(f"{published.name} does not exist")
    if published.exists() and (newest is None or digest_file(published) != newest.digest):
        found.append(f"{published.name} does not show the newest, {newest and newest.version}")
    return found


# --- the kills ---------------------------------------------------------------------------------------------


class _Trial:
    """A temporary folder, the process that checks, and the violations so far."""

    def __init__(self, folder: Path, fault: str) -> None:
        self.folder = folder
        self.kills = 0
        self.ended_first = 0
        self.fault = fault
        self.violations: list[str] = []
        self._began = time.monotonic()
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("forkserver"), initializer=_warm_up, initargs=(fault,)
        )
        self._pending: list[tuple[str, Future[list[str]]]] = []

    def check(self, kill: str, folder: Path) -> Future[list[str]]:
        """Check a folder in the background, while the next fit runs."""
        future = self._pool.submit(check, folder, folder / "report")
        self._pending.append((kill, future))
        return future

    def result(self) -> Result:
        """Wait for all checks, and return the result."""
        for kill, future in self._pending:
            try:
                found = future.result()
            except Exception as error:  # whatever it is, the fit did not start again
                found = [f"the fit after the kill failed: {error!r}"]
            self.violations += [f"{kill}: {line}" for line in found]
        seconds = time.monotonic() - self._began
        return Result(
            kills=self.kills,
            ended_first=self.ended_first,
            seconds=seconds,
            violations=tuple(self.violations),
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _new_trial(fault: str) -> Iterator[_Trial]:
    use_keras()
    with tempfile.TemporaryDirectory(prefix="crash-kills-") as folder:
        trial = _Trial(Path(folder), fault)
        try:
            yield trial
        finally:
            trial.close()


def kill_everywhere(
    *, stride: int = 1, calls: str = MUTATING, starts: Sequence[str] = STARTS, fault: str = ""
) -> Result:
    """Kill a fit at its first call that changes a file system, at its second, ... until one ends before its kill.

    The fit begins in a folder that another fit has used, and in an empty one. The calls are those of the training
    thread, which makes the most; the thread that writes a payload is killed at each `write` to that file, to which no
    other thread writes.

    Args:
        stride: Try only every `stride`-th call, and one of each kind.
        calls: The calls, as for strace.
        starts: The kinds of folder, of `STARTS`.
        fault: Of `planted_faults.FAULTS`.
    """
    with _new_trial(fault) as trial:
        seen: set[str] = set()
        for start in starts:
            made = _calls_of_a_fit(trial.folder, start, calls, fault)
            kinds = {position for position in one_of_each_name(made) if made[position].name not in seen}
            seen |= {call.name for call in made}
            chosen = sorted({*range(0, len(made), stride), *kinds})
            # Far beyond the last call of each kind there is nothing left to kill. Runs differ by whole transactions:
            # whether an epoch is the best, and removes the earlier best, depends on the initial weights.
            beyond = 2 * max((call.nth for call in made), default=0) + 100
            _kill_at(trial, start, (*(made[position] for position in chosen), Call(calls, beyond)))
        if calls == MUTATING:
            for save in (1, EPOCHS):
                payload = f".ckptstore/tmp/{LEASE}.{save}.keras"
                writes = (Call("write", nth) for nth in itertools.count(1, 1 + stride // 20))
                _kill_at(trial, starts[0], writes, payload)
        return trial.result()


def _kill_at(trial: _Trial, start: str, calls: Iterable[Call], file: str = "") -> None:
    """Kill one fit after the other, each at its call, until one ends before its kill."""
    for call in calls:
        folder = _prepared(trial.folder, start)
        options = ["-P", str(folder / file)] if file else []
        options += ["-e", f"trace={call.name}", "-e", f"inject={call.name}:signal=SIGKILL:when={call.nth}"]
        code = run_traced(fit, (folder, folder / "report", trial.fault), options)
        kill = f"start {start!r}, killed at {call.name} {call.nth} {file}"
        trial.check(kill, folder)
        if code not in (0, KILLED):
            trial.violations.append(f"{kill}: the fit ended with exit code {code}")
        trial.kills += code == KILLED
        trial.ended_first += code != KILLED
        if code != KILLED:
            return


def _prepared(parent: Path, start: str) -> Path:
    """Create a folder for a fit, the same each time: links are copied as links."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    if start == "used":
        used = parent / "used"
        if not used.exists():
            used.mkdir()
            assert run_traced(fit, (used, used / "report"), ["-e", "trace=none"]) == 0
        shutil.rmtree(folder)
        subprocess.run(["cp", "-a", used, folder], check=True)
    return folder


def _calls_of_a_fit(parent: Path, start: str, calls: str, fault: str) -> list[Call]:
    """Return the calls of the training thread."""
    folder, log = _prepared(parent, start), parent / f"{start}.log"
    run_traced(fit, (folder, folder / "report", fault), ["-e", f"trace={calls}"], log=log)
    return calls_in(log)


def kill_at_random(*, kills: int, seed: int, fault: str = "") -> Result:
    """Kill endless fits at random times; each store takes ten kills, so that leaks show."""
    chosen = random.Random(seed)
    context = get_context("forkserver")
    with _new_trial(fault) as trial:
        checked: dict[Path, Future[list[str]]] = {}
        for kill in range(kills):
            # Two stores alternate: one is checked while the fit of the other runs.
            track = 2 * (kill // 2 // _KILLS_PER_STORE) + kill % 2
            folder = trial.folder / f"{track}"
            folder.mkdir(exist_ok=True)
            if folder in checked:
                checked[folder].exception()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_fit_forever, args=(folder, folder / "report", fault, sender), daemon=True
            )
            process.start()
            sender.close()
            receiver.recv_bytes()
            time.sleep(chosen.uniform(0, 0.5))  # about the time of one fit, with opening and closing
            process.kill()
            process.join()
            receiver.close()
            if process.exitcode != KILLED:
                trial.violations.append(f"random kill {kill}: the fit ended with {process.exitcode}")
            trial.kills += 1
            checked[folder] = trial.check(f"random kill {kill} of seed {seed}", folder)
        return trial.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="kill at every STRIDE-th call only; 0 for none")
    parser.add_argument("--random", type=int, default=300, help="number of random kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=["", *FAULTS], default="", help="plant a fault")
    options = parser.parse_args()
    results = []
    if options.stride:
        results.append(kill_everywhere(stride=options.stride, fault=options.fault))
        print(results[-1], flush=True)
    if options.random:
        results.append(kill_at_random(kills=options.random, seed=options.seed, fault=options.fault))
        print(results[-1], flush=True)
    raise SystemExit(any(result.violations for result in results))


if __name__ == "__main__":
    main()
