"""Fills small disks: a save without room reports that, changes nothing, and succeeds once there is room again.

python tools/crash disks        a tmpfs, an ext4 of 8 MB, and one with few inodes; needs permission to mount
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ckptstore.commit.request import SaveRequest
from ckptstore.errors import DiskFullError
from ckptstore.records import Checkpoint
from ckptstore.retention import keep_last
from ckptstore.storage.files import free_bytes
from ckptstore.store.store import CheckpointStore
from crash.failing_calls import Result, make_used
from crash.invariants import PublishedFile, violations
from crash.planted_faults import plant
from crash.sample_stores import committer_of, is_seed, snapshot_of

DISKS: dict[str, tuple[str, ...]] = {
    "tmpfs": (),
    "ext4": ("-m", "0"),
    "ext4 with few files": ("-m", "0", "-N", "32"),
}


def can_mount() -> bool:
    """Return True if this process may mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk("tmpfs", Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def small_disk(kind: str, folder: Path, *, tmpfs_mib: int = 3) -> Iterator[Path]:
    """Mount a disk of `DISKS` in a folder, for the block; a tmpfs has `tmpfs_mib` MiB."""
    mount_point = folder / "disk"
    mount_point.mkdir()
    if kind == "tmpfs":
        options = ["-t", "tmpfs", "-o", f"size={tmpfs_mib}m", "tmpfs"]
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-F", "-q", *DISKS[kind], image], check=True, capture_output=True)
        options = ["-o", "loop", str(image)]
    subprocess.run(["mount", *options, mount_point], check=True, capture_output=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


def fill_disk(kind: str, *, step: int = 4096, fault: str = "") -> Result:
    """Save on a full disk, then with a little more room each time, until it succeeds; make room after each failure."""
    began = time.monotonic()
    plant(fault)
    with tempfile.TemporaryDirectory(prefix="crash-disks-") as parent, small_disk(kind, Path(parent)) as disk:
        tried, found = _fill(disk, step, limit_names="files" in kind)
        found += violations(
            disk / "store", published=PublishedFile(path=disk / "shown.keras"), is_intact=_is_intact
        )
    return Result(tried=tried, seconds=time.monotonic() - began, violations=tuple(found))


def _save(store: CheckpointStore, seed: int, disk: Path) -> None:
    """Save a snapshot that needs more room than the manifest's transactions."""
    snapshot = snapshot_of(seed)
    snapshot = replace(snapshot, documents={**snapshot.documents, "config.json": bytes(100_000)})
    request = SaveRequest(
        run="default",
        epoch=seed,
        metrics={"loss": float(seed)},
        publish=disk / "shown.keras",
        keep=keep_last(2),
    )
    store.claim("default")
    committer_of(store).commit(snapshot, request)


def _is_intact(checkpoint: Checkpoint) -> bool:
    return is_seed(checkpoint.path, checkpoint.epoch)


def _fill(disk: Path, step: int, *, limit_names: bool) -> tuple[int, list[str]]:
    tried, passed, found, needed_known = 0, 0, list[str](), set[bool]()
    make_used(disk)
    with CheckpointStore(disk / "store") as store:
        # The first save needs one name more than the next: that of the writer's lease.
        for room in itertools.chain([0], itertools.count()):
            ballast = _take_names(disk, room) if limit_names else take_bytes(disk, room * step)
            before = store.checkpoints()
            seed, failed = before[-1].epoch + 1, None
            try:
                _save(store, seed, disk)
            except BaseException as error:
                failed = error
            shutil.rmtree(ballast)
            tried += failed is not None
            passed = 0 if failed is not None else passed + 1
            if isinstance(failed, DiskFullError):
                needed_known.add(failed.needed is not None)
            where = f"room for {room} {'names' if limit_names else f'times {step} bytes'}"
            found += [f"{where}: {line}" for line in _wrong_after(store, before, failed, disk)]
            _save(store, store.checkpoints()[-1].epoch + 1, disk)
            if passed == 3 or room > 200:
                break
    if not limit_names and True not in needed_known:
        found.append("no error reported how many bytes were needed")
    return tried, found


def _wrong_after(
    store: CheckpointStore, before: list[Checkpoint], failed: BaseException | None, disk: Path
) -> Iterator[str]:
    after = store.checkpoints()
    if failed is None:
        return
    if not isinstance(failed, DiskFullError) or failed.errno != errno.ENOSPC or failed.free is None:
        yield f"it is not a DiskFullError with facts: {failed!r}"
    elif failed.needed is not None and failed.needed <= failed.free:
        yield f"{failed.needed} bytes were needed and {failed.free} free"
    if before[-1] not in after or not all(map(_is_intact, after)):
        yield f"there are {after} after {failed!r}; before it there were {before}"
    if len(after) == len(before) and after != before:
        yield f"older ones have changed: {before} to {after}"
    left = [path.name for path in (disk / "store" / "tmp").iterdir() if path.suffix != ".lease"]
    if left:
        yield f"{left} are left behind by {failed!r}"
    if not any(is_seed(disk / "shown.keras", checkpoint.epoch) for checkpoint in (before[-1], after[-1])):
        yield f"the path shows neither the old nor the new checkpoint after {failed!r}"


def take_bytes(disk: Path, room: int = 0) -> Path:
    """Fill a disk except for some bytes; return the directory that fills it."""
    ballast = disk / "ballast"
    ballast.mkdir()
    if room:
        _allocate(ballast / "room", room)
    size = free_bytes(disk) or 0
    for count in itertools.count():
        try:
            _allocate(ballast / f"{count}", size)
        except OSError:
            (ballast / f"{count}").unlink()
            if size <= 1024:
                break
            size = size // 2 + 1
    (ballast / "room").unlink(missing_ok=True)
    return ballast


def _allocate(path: Path, nbytes: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _take_names(disk: Path, room: int) -> Path:
    """Create files until no more are possible, then remove some; return their directory."""
    ballast = disk / "ballast"
    ballast.mkdir()
    for count in itertools.count():
        try:
            (ballast / f"{count}").touch()
        except OSError:
            break
    for path in list(ballast.iterdir())[:room]:
        path.unlink()
    return ballast


def main() -> None:
    results = {kind: fill_disk(kind) for kind in DISKS}
    for kind, result in results.items():
        print(kind, result)
    raise SystemExit(any(result.violations for result in results.values()))


if __name__ == "__main__":
    main()
