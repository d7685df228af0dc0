"""Lets system calls of a save fail, once or from some call on: checkpoints must stay, and saving must work again.

strace lets a call fail without executing it. When the save has met the error, the child detaches strace: the disk works
again, and the same process must save as if nothing had happened.

    python tools/crash errors                every call, every error, once and lasting: about ten minutes
    python tools/crash errors --stride 31
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptstore.errors import CheckpointStoreError, StorageError
from ckptstore.retention import keep_last
from ckptstore.store.store import CheckpointStore
from crash.fork_server import preload
from crash.injection_points import Call, calls_in, first_calls_from, one_of_each_name
from crash.invariants import PublishedFile, Saved, violations
from crash.planted_faults import FAULTS, LEASE, fix_lease_name, plant
from crash.sample_stores import is_seed, save
from crash.strace import run_traced

ERRORS = ("ENOSPC", "EDQUOT", "EIO")
CALLS = (
    "?rename,?renameat,renameat2,?link,linkat,?unlink,unlinkat,"
    "openat,pwrite64,ftruncate,fallocate,fsync,fdatasync"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Number of saves that met an error, and one line for each violation."""

    tried: int
    seconds: float
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """The calls on some of the store's files that fail: one, or one of each name and all later ones."""

    calls: tuple[Call, ...]
    files: tuple[str, ...]
    error: str
    lasting: bool

    def options(self, folder: Path) -> list[str]:
        """Return the options for strace."""
        options = [
            "-y",
            *_paths(folder, self.files),
            "-e",
            f"trace={','.join(call.name for call in self.calls)}",
        ]
        for call in self.calls:
            when = f"{call.nth}+" if self.lasting else f"{call.nth}"
            options += ["-e", f"inject={call.name}:error={self.error}:when={when}"]
        return options

    def __str__(self) -> str:
        call = self.calls[0]
        return f"{self.error} at {call.name} {call.nth}{' and all later ones' if self.lasting else ''}"


def _paths(folder: Path, files: Sequence[str]) -> list[str]:
    return [option for file in files for option in ("-P", str(folder / file))]


PAYLOADS = tuple(f"store/tmp/{LEASE}.{count}.keras" for count in (1, 2))
_DIRECTORIES = ("store", "store/tmp", "store/checkpoints", ".")
_ALL = (
    *PAYLOADS,
    *_DIRECTORIES,
    f"store/tmp/{LEASE}.lease",
    *(f"store/checkpoints/{version:08d}-default.keras" for version in range(1, 6)),
    "store/manifest.sqlite",
    "store/manifest.sqlite-journal",
    "store/locks/store.lock",
    "store/locks/default.lock",
    "shown.keras",
    ".shown.keras.ckptstore",
)
_SYNC_OF_SQLITE = re.compile(r'fdatasync\(\d+<[^>]*/store>|openat\(\S* "[^"]*/store", O_RDONLY\|O_CLOEXEC\)')
# A close matters where it reports that writing has failed.
GROUPS = ((CALLS, _ALL), ("write", PAYLOADS), ("close", PAYLOADS))

# --- the save that meets an error ------------------------------------------------------------------------


def save_through_error(folder: Path, fault: str = "") -> None:
    """Save while calls fail; then, with a working disk, report what exists, and save again."""
    plant(fault)
    fix_lease_name()
    report: dict[str, Any] = {}
    try:
        _save_through_error(folder, report)
    except BaseException:
        report["broken"] = traceback.format_exc()
    (folder / "report").write_text(json.dumps(report), encoding="utf-8")


def _save_through_error(folder: Path, report: dict[str, Any]) -> None:
    root, target = folder / "store", folder / "shown.keras"
    store = None
    try:
        store = CheckpointStore(root)
        save(store, 3, publish=target, keep=keep_last(2))
    except BaseException as error:
        report["failed"] = _described(error)
    _detach_strace()
    if store is None:
        store = CheckpointStore(root)
    with store:
        epochs = [checkpoint.epoch for checkpoint in store.checkpoints()]
        report["epochs"] = epochs
        report["left"] = [path.name for path in (root / "tmp").iterdir() if path.suffix != ".lease"]
        report["whole"] = [is_seed(checkpoint.path, checkpoint.epoch) for checkpoint in store.checkpoints()]
        report["shown"] = next((seed for seed in (2, 3) if is_seed(target, seed)), None)
        again = save(store, epochs[-1] + 1, publish=target, keep=keep_last(2))
        report["again"] = {"version": again.version, "digest": again.digest, "epoch": again.epoch}


def _described(error: BaseException) -> dict[str, Any]:
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return {
        "ours": isinstance(error, CheckpointStoreError) and isinstance(error, StorageError),
        "errno": getattr(error, "errno", None),
        "sqlite": any(isinstance(cause, sqlite3.Error) for cause in causes),
        "text": f"{type(error).__name__}: {error}",
        "where": traceback.format_exc(),
    }


def _detach_strace() -> None:
    """Make strace detach from this process, and wait for that."""
    while tracer := _tracer():
        os.kill(tracer, signal.SIGTERM)
        time.sleep(0.001)


def _tracer() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("TracerPid:")[2].split()[0])


# --- all injections ----------------------------------------------------------------------------------


def inject_errors(
    *,
    stride: int = 1,
    errors: Sequence[str] = ERRORS,
    groups: Sequence[tuple[str, tuple[str, ...]]] = GROUPS,
    fault: str = "",
) -> Result:
    """Let the first call of a save fail, then the second, ...: that one only, and that one and all later ones.

    The calls are those of the thread that saves, on the store's files; then those of the thread that writes the
    payload; then the closing of payloads.

    Args:
        stride: Try only every `stride`-th combination, and one of each kind of call.
        errors: The error names.
        groups: Calls, and the files (relative to the folder of store and published file) on which they fail.
        fault: Of `planted_faults.FAULTS`.
    """
    preload()
    began, tried, found = time.monotonic(), 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="crash-errors-") as parent:
        used = Path(parent) / "used"
        make_used(used)
        for injection in _chosen(used, stride, errors, groups, fault):
            folder = _copy_of(used)
            log = Path(parent) / "log"
            code = run_traced(save_through_error, (folder, fault), injection.options(folder), log=log)
            lines = log.read_text(encoding="utf-8").splitlines()
            hits = [line for line in lines if "(INJECTED)" in line]
            tried += bool(hits)
            which = f"{injection} ({hits[0].strip()[:200] if hits else 'not reached'})"
            found += [f"{which}: {line}" for line in _wrong_with(folder, injection, code, hits)]
            shutil.rmtree(folder)
    return Result(tried=tried, seconds=time.monotonic() - began, violations=tuple(found))


def make_used(folder: Path) -> None:
    """Create a store of two checkpoints in `folder`, and publish the second there."""
    with CheckpointStore(folder / "store") as store:
        for seed in (1, 2):
            save(store, seed, publish=folder / "shown.keras", keep=keep_last(2))


def _copy_of(used: Path) -> Path:
    folder = used.parent / "copy"
    subprocess.run(["cp", "-a", used, folder], check=True)
    return folder


def _chosen(
    used: Path,
    stride: int,
    errors: Sequence[str],
    groups: Sequence[tuple[str, tuple[str, ...]]],
    fault: str,
) -> Iterator[Injection]:
    """Yield every `stride`-th combination, and one of each kind of call."""
    for calls, files in groups:
        folder, log = _copy_of(used), used.parent / "log"
        options = [*_paths(folder, files), "-e", f"trace={calls}"]
        run_traced(save_through_error, (folder, fault), options, log=log)
        shutil.rmtree(folder)
        made = calls_in(log)
        everything = list(itertools.product(range(len(made)), errors, (False, True)))
        chosen = dict.fromkeys(everything[::stride])
        for count, position in enumerate(sorted(one_of_each_name(made))):
            chosen[position, errors[count % len(errors)], bool(count % 2)] = None
        for position, error, lasting in chosen:
            failing = first_calls_from(made, position) if lasting else [made[position]]
            yield Injection(calls=tuple(failing), files=files, error=error, lasting=lasting)


def _wrong_with(folder: Path, injection: Injection, code: int, hits: Sequence[str]) -> Iterator[str]:
    path = folder / "report"
    if code != 0 or not path.exists():
        yield f"the process ended with exit code {code}"
        return
    report = json.loads(path.read_text(encoding="utf-8"))
    if "broken" in report:
        yield f"saving does not work again in this process: {report['broken']}"
        return
    failed = report.get("failed")
    if failed is None and not all(_may_be_ignored(hit, injection) for hit in hits):
        yield "the error was ignored"
    if failed is not None:
        yield from _wrong_error(failed, injection)
    yield from _wrong_checkpoints(report, failed, removable=not any("unlink" in hit for hit in hits))
    again = Saved(**report["again"])
    yield from violations(
        folder / "store",
        [again],
        published=PublishedFile(path=folder / "shown.keras"),
        is_intact=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch),
        save_again=lambda store: save(store, 9),
    )
    if not is_seed(folder / "shown.keras", again.epoch):
        yield "the published file is not that of the later save"


def _may_be_ignored(hit: str, injection: Injection) -> bool:
    """Return True if a save may succeed in spite of an error: where it found room, or SQLite synced its directory.

    SQLite does that for the name of its journal, which exists since the first save, and ignores the result.
    """
    if _SYNC_OF_SQLITE.search(hit):
        return True
    return injection.error != "EIO" and "sync(" not in hit


def _wrong_error(failed: dict[str, Any], injection: Injection) -> Iterator[str]:
    if not failed["ours"]:
        yield f"it is not a StorageError: {failed['where']}"
    expected = getattr(errno, injection.error)
    if failed["errno"] != expected and not failed["sqlite"]:
        yield f"its errno is {failed['errno']} instead of {expected}: {failed['where']}"


def _wrong_checkpoints(
    report: dict[str, Any], failed: dict[str, Any] | None, *, removable: bool
) -> Iterator[str]:
    epochs = report["epochs"]
    if not all(report["whole"]):
        yield f"of {epochs}, intact are {report['whole']}"
    if report["left"] and removable:
        yield f"{report['left']} are left behind"
    if failed is None and epochs != [2, 3]:
        yield f"it was reported as saved, and there are {epochs}"
    # A failure after the COMMIT (switching the path, retention) leaves the checkpoint in the store.
    if epochs not in ([1, 2], [1, 2, 3], [2, 3]):
        yield f"there are {epochs} afterwards: {failed and failed['text']}"
    if report["shown"] not in ((2,) if 3 not in epochs else (2, 3)):
        yield f"the path shows {report['shown']}, and there are {epochs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="try only every STRIDE-th injection")
    parser.add_argument("--fault", choices=["", *FAULTS], default="", help="plant a fault")
    options = parser.parse_args()
    result = inject_errors(stride=options.stride, fault=options.fault)
    print(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
