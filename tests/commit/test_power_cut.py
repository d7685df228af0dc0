"""A power cut at any instant loses nothing that was reported, and leaves a store that opens and works by itself.

Every call that changes files is recorded, and every folder that a disk may hold after each of them is checked. That
the check can fail is shown by faults planted in the code.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptstore.storage import durable_writer
from ckptstore.storage.files import digest_file, io_hook
from ckptstore.store.store import CheckpointStore
from crash import planted_faults
from crash.invariants import PublishedFile, Saved, violations
from crash.power_cuts import power_cuts
from crash.sample_stores import is_seed, save
from crash.steps import run_in_child
from crash.strace import available
from crash.workloads import WORKLOADS


@pytest.fixture(scope="module")
def strace() -> None:
    if not available():
        pytest.skip("strace is not installed, or may not attach")


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("workload", WORKLOADS)
def test_no_power_cut_breaks_a_store(workload: str) -> None:
    result = power_cuts(random_per_point=2, workloads=[workload], jobs=0, thin=True)
    assert result.violations == ()
    assert result.states > result.points / 2


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("fault", planted_faults.POWER_CUT_FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    assert power_cuts(random_per_point=4, fault=fault, jobs=0, thin=True).violations


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("fault", planted_faults.RECOVERED_FAULTS)
def test_recovery_repairs_what_these_faults_leave(fault: str) -> None:
    assert power_cuts(random_per_point=1, fault=fault, jobs=0, thin=True).violations == ()


# --- a real file system ----------------------------------------------------------------------------------------------

_SHUT_DOWN = 0x8004587D
_WITHOUT_LOG = (2).to_bytes(4, "little")


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _wait_until_released(image: Path) -> None:
    """Wait until no mount of an image is left, not even the copy that another test's mount namespace may have.

    A file system that is still mounted somewhere is not read from the disk again, but given back as it was shut down.
    """
    until = time.monotonic() + 60
    while subprocess.run(["losetup", "-j", image], capture_output=True, check=True).stdout:
        assert time.monotonic() < until, "the image is still in use"
        time.sleep(0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A file system of its own: each call takes the power from it, if it has it, and gives it back."""
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)

    def cut() -> Path:
        _run("umount", str(place))
        _wait_until_released(image)
        if not _run("mount", "-o", "loop", str(image), str(place)):
            pytest.skip("an ext4 image cannot be mounted here")
        return place

    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not _run("mkfs.ext4", "-Fq", str(image)):
        pytest.skip("needs root and mkfs.ext4")
    try:
        yield cut
    finally:
        for _ in range(50):
            if not place.is_mount() or _run("umount", str(place)):
                break
            time.sleep(0.1)
        assert not place.is_mount()


def _save_until(place: Path, at: int, report: Path, synced: bool) -> None:
    """Save, and take the file system away before or after its `at`-th step; the process dies with it."""
    steps = 0

    def stop(operation: str, path: Path, phase: str) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            _shut_down(place)

    if not synced:
        durable_writer.sync_file = lambda descriptor, path: None
        # What passes by the page cache is on this disk as soon as it is written.
        durable_writer._set_direct = lambda descriptor, on=True: False
    with CheckpointStore(place / "store") as store:
        with io_hook(stop):
            saved = save(store, 3, publish=place / "shown.keras")
        report.write_text(f"{saved.version} {saved.digest}")
        _shut_down(place)


def _shut_down(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.ioctl(descriptor, _SHUT_DOWN, _WITHOUT_LOG)
    os.kill(os.getpid(), signal.SIGKILL)


def _after_a_cut(
    disk: Callable[[], Path], at: int, report: Path, *, synced: bool = True
) -> tuple[bool, list[str]]:
    """Cut the power at a step of a save; tells whether the save was reported, and what is wrong afterwards."""
    report.unlink(missing_ok=True)
    place = disk()
    root, shown = place / "store", place / "shown.keras"
    with CheckpointStore(root) as store:
        saved = [
            Saved(version=checkpoint.version, digest=checkpoint.digest, epoch=checkpoint.epoch)
            for checkpoint in store.checkpoints()
        ]
        saved = saved or [
            Saved(version=checkpoint.version, digest=checkpoint.digest, epoch=checkpoint.epoch)
            for checkpoint in (save(store, 1, publish=shown), save(store, 2, publish=shown))
        ]
    disk()
    before = frozenset({digest_file(shown)})
    assert run_in_child(_save_until, place, at, report, synced) == -signal.SIGKILL
    disk()
    if report.exists():
        version, digest = report.read_text().split()
        saved.append(Saved(version=int(version), digest=digest, epoch=3))
    found = violations(
        root,
        saved,
        published=PublishedFile(path=shown, before=before),
        is_intact=lambda checkpoint: is_seed(checkpoint.path, checkpoint.epoch),
        save_again=lambda store: save(store, 50),
    )
    return report.exists(), found


def test_a_save_on_a_real_disk_whose_power_is_cut_at_any_step(
    disk: Callable[[], Path], tmp_path: Path
) -> None:
    reported, at = False, 0
    while not reported:
        at += 4
        reported, found = _after_a_cut(disk, at, tmp_path / "report")
        assert found == [], f"power cut at step {at}"
    assert at > 20


def test_a_payload_that_was_not_synced_is_found_on_a_real_disk(
    disk: Callable[[], Path], tmp_path: Path
) -> None:
    reported, found = _after_a_cut(disk, 10_000, tmp_path / "report", synced=False)
    assert reported
    assert found
