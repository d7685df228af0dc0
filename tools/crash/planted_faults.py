"""Faults to plant in a child, by name: what the crash harness must find, or it finds nothing.

Each is put in place of the function that it spoils, in every module that has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LEASE = "f" * 32


def plant(fault: str) -> None:
    """Plant a fault of `FAULTS` in this process; none for ``""``."""
    if fault:
        FAULTS[fault]()


def foresee_lease() -> None:
    """Have this process's next leases be called `LEASE`, so that strace can be told the names of what it writes."""
    from ckptstore.storage import leases

    vars(leases)["uuid"] = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=LEASE))


def _everywhere(original: Callable[..., Any], spoilt: Callable[..., Any]) -> None:
    """Replace a function where it is made, and in every module that imported it already."""
    for name, module in list(sys.modules.items()):
        if name == "ckptstore" or name.startswith("ckptstore."):
            for attribute, value in list(vars(module).items()):
                if value is original:
                    setattr(module, attribute, spoilt)


def _row_before_rename() -> None:
    from ckptstore.manifest.manifest import Manifest
    from ckptstore.storage import files

    rename, add = files.rename_to_new, Manifest.add_checkpoint
    later: list[tuple[Path, Path]] = []

    def add_first(self: Manifest, *arguments: Any, **named: Any) -> Any:
        added = add(self, *arguments, **named)
        while later:
            rename(*later.pop())
        return added

    _everywhere(rename, lambda source, target: later.append((source, target)))
    Manifest.add_checkpoint = add_first  # type: ignore[method-assign]


def _removed_before_marked() -> None:
    from ckptstore.manifest.checkpoints import Checkpoints
    from ckptstore.manifest.retention.checks import RunRetention

    expire = RunRetention.expire

    def remove_first(self: RunRetention, run: str, versions: Sequence[int]) -> None:
        for checkpoint in filter(None, map(Checkpoints(self._transactions).get, versions)):
            checkpoint.path.unlink()
        expire(self, run, versions)

    RunRetention.expire = remove_first  # type: ignore[method-assign]


def _no_adoption() -> None:
    from ckptstore.commit import orphans

    _everywhere(orphans.take_in, lambda layout, manifest, name: None)


def _no_switch_after_a_crash() -> None:
    from ckptstore.commit import recovery

    _everywhere(recovery.finish_publishing, lambda layout, manifest: None)


def _written_in_place() -> None:
    """Show a checkpoint by writing over the file that is there."""
    from ckptstore.storage import publish

    def write_over(payload: Path, target: Path) -> None:
        with target.open("r+b" if target.exists() else "wb", buffering=0) as file:
            data = payload.read_bytes()
            file.write(data[: len(data) // 2])
            file.write(data[len(data) // 2 :])
            file.truncate()

    _everywhere(publish.publish, write_over)


def _leaves_what_it_wrote() -> None:
    """Leave the temporary file of a failed save where it is."""
    from ckptstore.storage import files

    unlink = files.unlink

    def leave(path: Path) -> None:
        if path.parent.name != "tmp" or path.suffix == ".lease":
            unlink(path)

    _everywhere(unlink, leave)


def _ignores_sync_errors() -> None:
    from ckptstore.storage import files

    sync = files.sync_file

    def ignore(descriptor: int, path: Path) -> None:
        with suppress(OSError):
            sync(descriptor, path)

    _everywhere(sync, ignore)


def _tries_a_sync_again() -> None:
    from ckptstore.storage import files

    sync = files.sync_file

    def again(descriptor: int, path: Path) -> None:
        try:
            sync(descriptor, path)
        except OSError:
            sync(descriptor, path)

    _everywhere(sync, again)


def _no_store_lock() -> None:
    from ckptstore.storage import locks

    @contextmanager
    def open_to_all(directory: Path, **named: Any) -> Iterator[None]:
        yield

    _everywhere(locks.store_lock, open_to_all)


def _sweeps_the_living() -> None:
    """Take every temporary file for a dead writer's."""
    from ckptstore.storage import leases

    def sweep_all(directory: Path) -> list[Path]:
        removed = [path for path in directory.iterdir() if path.suffix != ".lease"]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    _everywhere(leases.remove_stale_files, sweep_all)


FAULTS: dict[str, Callable[[], None]] = {
    "row before rename": _row_before_rename,
    "removed before marked": _removed_before_marked,
    "no adoption": _no_adoption,
    "no switch after a crash": _no_switch_after_a_crash,
    "written in place": _written_in_place,
    "leaves what it wrote": _leaves_what_it_wrote,
    "ignores sync errors": _ignores_sync_errors,
    "tries a sync again": _tries_a_sync_again,
    "no store lock": _no_store_lock,
    "sweeps the living": _sweeps_the_living,
}
