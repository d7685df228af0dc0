"""Kills a real ``model.fit`` at every system call that changes a file system, and at random moments, and checks.

What the fit said that it had saved is noted outside the store, by a callback that runs after ours. A warm process
checks each store after its kill: the invariants, that plain Keras loads what is there, and that a fit starts again.

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
from crash.injection_points import Call, calls_in, one_of_each
from crash.planted_faults import FAULTS, LEASE, foresee_lease, plant
from crash.strace import KILLED, MUTATING, run_traced

EPOCHS = 3
KEPT = 2  # what the drop-in keeps without placeholders, beside the best and the shown
STARTS = ("used", "empty")
_ROUNDS = 10  # random kills that one store has to take
_MODULES = (
    "keras",
    "ckptstore.training.model_checkpoint",
    "ckptstore.keras.model.adapter",
    "crash.kill_training",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How often a fit was killed, how often it ended before it could be, and one line for each violation."""

    kills: int
    passed_untouched: int
    seconds: float
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What `ModelCheckpoint.last` said."""

    version: int
    digest: str
    epoch: int
    loss: float


def use_keras() -> str:
    """Have the backend, which it returns, and Keras imported once, in the process that all children are forked from."""
    backend = os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    preload((*_MODULES, backend))
    return backend


# --- what is killed --------------------------------------------------------------------------------------


def fit(folder: Path, report: Path, fault: str = "") -> None:
    """Train and save a tiny model, and note each save when it is reported."""
    plant(fault)
    foresee_lease()
    _train(_model(), folder, report)


def _fit_for_ever(folder: Path, report: Path, fault: str, ready: Connection) -> None:
    plant(fault)
    model = _model()
    model.fit(*_data(), verbose=0)  # compiles, so that the kills come while it saves
    ready.send_bytes(b"")
    while True:
        _train(model, folder, report)


def _train(model: Any, folder: Path, report: Path, epochs: int = EPOCHS) -> None:
    import keras

    from ckptstore.training.model_checkpoint import ModelCheckpoint

    saved = ModelCheckpoint(folder / "best.keras", monitor="loss")
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(epoch: int, logs: object) -> None:
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
            callbacks=[saved, keras.callbacks.LambdaCallback(on_epoch_end=note)],
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
    """Return what is wrong with a folder whose fit was killed; starts another fit there."""
    from crash.invariants import Shown, violations

    root = folder / ".ckptstore"
    found = violations(root, shown=Shown(path=folder / "best.keras"))
    claims = _claims(report)
    found += _of_the_claims(root, claims, unfinished=2) + _of_plain_keras(folder, claims)
    _train(_warm[0], folder, report, epochs=1)
    after = _claims(report)
    if len(after) != len(claims) + 1:
        found.append(f"the fit after the kill reported {len(after) - len(claims)} saves instead of 1")
    return found + [f"after another fit: {line}" for line in _of_the_claims(root, after, unfinished=0)]


def _claims(report: Path) -> list[Claim]:
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    return [Claim(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _of_the_claims(root: Path, claims: Sequence[Claim], *, unfinished: int) -> list[str]:
    """Compare with what was reported: of that and of what is listed, the newest two and the best must be there.

    A save that was killed before its retention leaves up to two more than that, the next older one and the best until
    then; the next save removes them.
    """
    from ckptstore.store.store import CheckpointStore

    with CheckpointStore(root, read_only=True) as store:
        listed = {one.version: one for one in store.checkpoints()}
    losses = {version: one.metrics.get("loss", math.nan) for version, one in listed.items()}
    losses |= {claim.version: claim.loss for claim in claims}
    expected = set(sorted(losses)[-KEPT:])
    expected |= {min(losses, key=lambda version: (losses[version], version))} if losses else set()
    versions = [claim.version for claim in claims]
    found = [] if versions == sorted(set(versions)) else [f"versions were reported as {versions}"]
    for claim in claims:
        there = listed.get(claim.version)
        if there is None and claim.version in expected:
            found.append(f"{claim} was reported saved and is not there; {sorted(listed)} are")
        if there is not None and (there.digest, there.epoch) != (claim.digest, claim.epoch):
            found.append(f"{claim} was reported saved and is {there}")
    extra = sorted(set(listed) - expected)
    if len(extra) > unfinished:
        found.append(f"{extra} are still there beside {sorted(expected)}")
    return found


def _of_plain_keras(folder: Path, claims: Sequence[Claim]) -> list[str]:
    """Load the shown file and the newest checkpoint as somebody without ckptstore would."""
    import keras

    from ckptstore.storage.files import digest_file
    from ckptstore.store.store import CheckpointStore

    shown = folder / "best.keras"
    with CheckpointStore(folder, read_only=True) as store:
        newest = store.latest()
    found = []
    for path in [shown, *([newest.path] if newest else [])]:
        if path.exists():
            try:
                keras.saving.load_model(path)
            except Exception as error:  # whatever it is, it is a violation
                found.append(f"plain Keras does not load {path.name}: {error!r}")
    if claims and not shown.exists():
        found.append(f"{shown.name} is not there")
    if shown.exists() and (newest is None or digest_file(shown) != newest.digest):
        found.append(f"{shown.name} does not show the newest, {newest and newest.version}")
    return found


# --- killing ---------------------------------------------------------------------------------------------


class _Killing:
    """A temporary folder, the process that checks, and what was found so far."""

    def __init__(self, folder: Path, fault: str) -> None:
        self.folder = folder
        self.kills = 0
        self.untouched = 0
        self.fault = fault
        self.violations: list[str] = []
        self._began = time.monotonic()
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("forkserver"), initializer=_warm_up, initargs=(fault,)
        )
        self._pending: list[tuple[str, Future[list[str]]]] = []

    def check(self, what: str, folder: Path) -> Future[list[str]]:
        """Have a folder checked while the next fit is under way."""
        future = self._pool.submit(check, folder, folder / "report")
        self._pending.append((what, future))
        return future

    def result(self) -> Result:
        for what, future in self._pending:
            try:
                found = future.result()
            except Exception as error:  # whatever it is, the fit did not start again
                found = [f"the fit after the kill failed: {error!r}"]
            self.violations += [f"{what}: {line}" for line in found]
        seconds = time.monotonic() - self._began
        return Result(
            kills=self.kills,
            passed_untouched=self.untouched,
            seconds=seconds,
            violations=tuple(self.violations),
        )

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _killing(fault: str) -> Iterator[_Killing]:
    use_keras()
    with tempfile.TemporaryDirectory(prefix="crash-kills-") as folder:
        killing = _Killing(Path(folder), fault)
        try:
            yield killing
        finally:
            killing.close()


def kill_everywhere(
    *, stride: int = 1, calls: str = MUTATING, starts: Sequence[str] = STARTS, fault: str = ""
) -> Result:
    """Kill a fit at its first call that changes a file system, at its second, ... until one passes untouched.

    The fit begins in a folder that another fit used, and in an empty one. The calls are those of the thread that
    trains, which makes the most; that which writes a payload is killed at each `write` to that file, which is its
    alone.

    Args:
        stride: Only every so many calls, and one of each kind.
        calls: Which.
        starts: Of `STARTS`.
        fault: Of `planted_faults.FAULTS`.
    """
    with _killing(fault) as killing:
        seen: set[str] = set()
        for start in starts:
            made = _calls_of_a_fit(killing.folder, start, calls, fault)
            kinds = {place for place in one_of_each(made) if made[place].name not in seen}
            seen |= {call.name for call in made}
            chosen = sorted({*range(0, len(made), stride), *kinds})
            # Far behind the last of each kind nothing is left to be killed. Runs differ by whole transactions: whether
            # an epoch is the best, and removes what was, depends on the weights that a run begins with.
            beyond = 2 * max((call.nth for call in made), default=0) + 100
            _kill_at(killing, start, (*(made[place] for place in chosen), Call(calls, beyond)))
        if calls == MUTATING:
            for save in (1, EPOCHS):
                payload = f".ckptstore/tmp/{LEASE}.{save}.keras"
                writes = (Call("write", nth) for nth in itertools.count(1, 1 + stride // 20))
                _kill_at(killing, starts[0], writes, payload)
        return killing.result()


def _kill_at(killing: _Killing, start: str, moments: Iterable[Call], file: str = "") -> None:
    """Kill one fit after the other, each at its moment, until one passes untouched."""
    for call in moments:
        folder = _prepared(killing.folder, start)
        options = ["-P", str(folder / file)] if file else []
        options += ["-e", f"trace={call.name}", "-e", f"inject={call.name}:signal=SIGKILL:when={call.nth}"]
        code = run_traced(fit, (folder, folder / "report", killing.fault), options)
        what = f"start {start!r}, killed at {call.name} {call.nth} {file}"
        killing.check(what, folder)
        if code not in (0, KILLED):
            killing.violations.append(f"{what}: the fit ended with exit code {code}")
        killing.kills += code == KILLED
        killing.untouched += code != KILLED
        if code != KILLED:
            return


def _prepared(parent: Path, start: str) -> Path:
    """Make a folder in which a fit is to begin, alike each time: links are copied as links."""
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
    """Return the calls that the thread makes which trains."""
    folder, log = _prepared(parent, start), parent / f"{start}.log"
    run_traced(fit, (folder, folder / "report", fault), ["-e", f"trace={calls}"], log=log)
    return calls_in(log)


def kill_at_random(*, kills: int, seed: int, fault: str = "") -> Result:
    """Kill fits that go on for ever at random moments; a store has to take ten kills, so that leaks show."""
    chosen = random.Random(seed)
    context = get_context("forkserver")
    with _killing(fault) as killing:
        checked: dict[Path, Future[list[str]]] = {}
        for kill in range(kills):
            # Two stores in turn: one is checked while the fit of the other runs.
            track = 2 * (kill // 2 // _ROUNDS) + kill % 2
            folder = killing.folder / f"{track}"
            folder.mkdir(exist_ok=True)
            if folder in checked:
                checked[folder].exception()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(
                target=_fit_for_ever, args=(folder, folder / "report", fault, sender), daemon=True
            )
            process.start()
            sender.close()
            receiver.recv_bytes()
            time.sleep(chosen.uniform(0, 0.5))  # about the time of one run, opening and closing included
            process.kill()
            process.join()
            receiver.close()
            if process.exitcode != KILLED:
                killing.violations.append(f"random kill {kill}: the fit ended with {process.exitcode}")
            killing.kills += 1
            checked[folder] = killing.check(f"random kill {kill} of seed {seed}", folder)
        return killing.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="only every so many calls; 0 for none")
    parser.add_argument("--random", type=int, default=300, help="how many random kills")
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
