"""Cuts the power at every operation of workloads on a store, and checks each folder that the disk may hold then."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptstore.storage.files import digest_file
from crash.disk_model import MODELS, Disk, fingerprint, random_tree, write_tree
from crash.file_operations import Mark, Recording, Resize, Tree, Write
from crash.fork_server import preload
from crash.invariants import PublishedFile, violations
from crash.planted_faults import POWER_CUT_FAULTS, power_cut_fault
from crash.precompile import share_compiled
from crash.recording import record
from crash.sample_stores import is_seed, save
from crash.strace import available
from crash.workloads import PUBLISHED, WORKLOADS, Claims, run_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Numbers of a run, and one line for each violation.

    Attributes:
        states: Number of distinct folders that were checked.
        points: Number of instants of a power cut: before the first operation, and after each.
        seconds: Wall-clock time.
        violations: Each with workload, instant, model, and what is wrong.
    """

    states: int
    points: int
    seconds: float
    violations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A recorded workload, with the claims before it, and the digest of every version that ever existed."""

    name: str
    fault: str | None
    recording: Recording
    claims: Claims
    before: frozenset[str]
    digests: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class _Cut:
    """One folder that a power cut leaves, and the claims that it must meet."""

    recorded: _Recorded
    at: str
    model: str
    tree: Tree
    claims: Claims


def power_cuts(
    *,
    random_per_point: int,
    workloads: Sequence[str] | None = None,
    fault: str | None = None,
    jobs: int = 2,
    thin: bool = False,
) -> Result:
    """Run workloads, cut the power at every instant, and check the folder that each model of a disk leaves.

    Args:
        random_per_point: Number of folders picked at random for each instant (always the same for the same recording),
            besides those of all named models.
        workloads: Names from `workloads.WORKLOADS`; None for all, or for the one that reveals the fault.
        fault: The name of a `planted_faults.power_cut_fault` to plant; the search ends when it is found.
        jobs: Processes that check; 0 to check in this one.
        thin: Skip the instants between two changes of the same file's bytes: the models already include folders with
            only part of the last change, or of all.
    """
    began = time.monotonic()
    share_compiled()
    preload()
    if workloads is None:
        workloads = tuple(WORKLOADS) if fault is None else (power_cut_fault(fault).workload,)
    count, found, points = 0, list[str](), 0
    with tempfile.TemporaryDirectory(prefix="ckptstore-power-", dir=_memory()) as folder:
        for name in workloads:
            place = Path(folder, "run")
            place.mkdir()
            recorded = _record(name, fault, place)
            shutil.rmtree(place)
            points += len(_points(recorded.recording, thin=thin))
            for wrong in _checked(_cuts(recorded, random_per_point, thin=thin), Path(folder), jobs):
                count += 1
                found += wrong
                if wrong and fault is not None:
                    break
    return Result(states=count, points=points, seconds=time.monotonic() - began, violations=tuple(found))


def _memory() -> str | None:
    """Return a file system in memory, or None where there is none; the checked folders need not be durable."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _record(name: str, fault: str | None, folder: Path) -> _Recorded:
    workload = WORKLOADS[name]
    claims = workload.prepare(folder)
    published = folder / PUBLISHED
    before = frozenset({digest_file(published)} if published.exists() else ())
    recording = record(_perform, (name, fault), folder)
    digests = {saved.version: saved.digest for saved in claims.saved}
    for operation in recording.operations:
        if isinstance(operation, Mark) and "digest" in operation.report:
            digests[operation.report["version"]] = operation.report["digest"]
    return _Recorded(name, fault, recording, claims, before, tuple(digests.items()))


def _perform(marks: Path, name: str, fault: str | None) -> None:
    if fault is not None:
        power_cut_fault(fault).plant()
    run_workload(marks, name)


# --- the folders -----------------------------------------------------------------------------------------------------


def _cuts(recorded: _Recorded, random_per_point: int, *, thin: bool) -> Iterator[_Cut]:
    """Yield distinct folders with distinct claims, model by model, the most effective models first."""
    seen: set[tuple[bytes, Claims]] = set()
    hashes: dict[bytes, bytes] = {}
    models = (*MODELS, *(f"random {n}" for n in range(random_per_point)))
    for model in models:
        disk, claims = Disk(recorded.recording), recorded.claims
        for point in _points(recorded.recording, thin=thin):
            while disk.done < point:
                operation = disk.step()
                if isinstance(operation, Mark):
                    claims = claims.after(operation.report)
            make = MODELS.get(model)
            tree = make(disk) if make else random_tree(disk, f"{recorded.name}/{point}/{model}")
            key = (fingerprint(tree, hashes), claims)
            if key not in seen:
                seen.add(key)
                yield _Cut(recorded, _instant(recorded.recording, point), model, tree.reachable(), claims)


def _points(recording: Recording, *, thin: bool) -> list[int]:
    """Return the numbers of operations after which the power is cut."""
    changed = [
        operation.inode if isinstance(operation, Write | Resize) else None
        for operation in recording.operations
    ]
    return [
        point
        for point in range(len(changed) + 1)
        if not thin
        or point in (0, len(changed))
        or changed[point] is None
        or changed[point - 1] != changed[point]
    ]


def _instant(recording: Recording, point: int) -> str:
    if point == 0:
        return "before operation 1"
    return f"after operation {point} of {len(recording.operations)} ({recording.operations[point - 1].text})"


# --- the check -------------------------------------------------------------------------------------------------------


def _checked(cuts: Iterator[_Cut], folder: Path, jobs: int) -> Iterator[list[str]]:
    """Yield what is wrong with each folder."""
    numbered = ((cut, folder / str(number)) for number, cut in enumerate(cuts))
    if jobs == 0:
        yield from map(_check, numbered)
        return
    with multiprocessing.get_context("forkserver").Pool(jobs) as pool:
        yield from pool.imap_unordered(_check, numbered, chunksize=4)


def _check(numbered: tuple[_Cut, Path]) -> list[str]:
    """Create the folder, open the store in it, and return what is wrong."""
    cut, folder = numbered
    write_tree(cut.tree, folder)
    try:
        with warnings.catch_warnings():
            # Some failures are only warnings: that a published path could not be switched, for example.
            warnings.simplefilter("error")
            wrong = _wrong(cut, folder)
    except Exception as error:
        wrong = [f"{type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)
    fault = f", with {cut.recorded.fault!r}" if cut.recorded.fault else ""
    return [
        f"{cut.recorded.name}{fault}: power cut {cut.at}, model {cut.model!r}: {line.replace(str(folder), '')}"
        for line in wrong
    ]


def _wrong(cut: _Cut, folder: Path) -> list[str]:
    published, workload = folder / PUBLISHED, WORKLOADS[cut.recorded.name]
    unseeded = set() if workload.seeded else {saved.version for saved in cut.recorded.claims.saved}
    found = workload.repair(folder / workload.store)
    found += violations(
        folder / workload.store,
        [saved for saved in cut.claims.saved if saved.version not in cut.claims.removed],
        published=PublishedFile(path=published, before=cut.recorded.before),
        is_intact=lambda checkpoint: (
            checkpoint.version in unseeded or is_seed(checkpoint.path, checkpoint.epoch)
        ),
        save_again=lambda store: save(store, 50),
    )
    if cut.claims.published:
        later = {digest for version, digest in cut.recorded.digests if version >= cut.claims.published}
        if not published.exists() or digest_file(published) not in later:
            found.append(f"the published path shows neither version {cut.claims.published} nor a later one")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--random", type=int, default=20, help="random folders for each instant")
    parser.add_argument("--workload", choices=[*WORKLOADS], action="append", help="only this one")
    parser.add_argument("--fault", choices=[*POWER_CUT_FAULTS], help="plant a fault")
    options = parser.parse_args()
    if not available():
        raise SystemExit("this needs strace, and permission to attach it to one's own processes")
    result = power_cuts(random_per_point=options.random, workloads=options.workload, fault=options.fault)
    print(result)
    raise SystemExit(bool(result.violations))


if __name__ == "__main__":
    main()
