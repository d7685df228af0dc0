"""Large files are removed without waiting until the file system has given their blocks back.

unlink(2) takes a name away in microseconds. What takes long is the end of the last reference, which frees the blocks:
9 ms for each 40 MB where a device is told of free blocks at once (ext4's ``discard``), and none of it is work for the
processor. A descriptor that is held meanwhile makes that an affair of its close, and a thread can wait for that.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckptstore import files
from ckptstore.forks import no_fork

# Bytes on the disk from which on it is worth a thread, and files that are held at once.
_WORTH = 4 << 20
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Held:
    """A descriptor of a file that is being removed, and which file that is."""

    descriptor: int
    device: int
    inode: int


# All of this process, for a forked child: what it inherits would keep the blocks as long as it lives.
_held: set[_Held] = set()


def _close_inherited() -> None:
    while _held:
        held = _held.pop()
        with suppress(OSError):  # it was closed, and not yet taken out
            status = os.fstat(held.descriptor)
            # Since then the number may have become another file's.
            if (status.st_dev, status.st_ino) == (held.device, held.inode):
                os.close(held.descriptor)


os.register_at_fork(after_in_child=_close_inherited)


class Freeing:
    """Removes files; what they took on the disk is free some time after `begin`, and once `wait` returns.

    They lose their names at once, and the names' directory had better be synced before `begin`: a device may free
    blocks and do nothing else meanwhile.

    A crash meanwhile leaves what it would leave anyway: the system closes what a process held, and a file system frees
    at its next mount what no name leads to.

    Example:
        >>> import tempfile
        >>> freeing = Freeing()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "large")
        ...     _ = path.write_bytes(bytes(8 << 20))
        ...     freeing.unlink(path)
        ...     freeing.begin()
        ...     path.exists()
        False
        >>> freeing.wait()
    """

    def __init__(self) -> None:
        self._waiting: list[_Held] = []
        self._helpers: list[threading.Thread] = []
        self._keeps_names = False

    def unlink(self, path: Path) -> None:
        """Remove a file's name; nothing happens where there is none. Durable after `fsync_directory`.

        Raises:
            StorageError: It could not be removed.
        """
        held = self._hold(path)
        if held is not None:
            self._waiting.append(held)
        files.unlink(path)
        # NFS renames a file that is open, and removes it when it is closed: then at once, and never again.
        if held is not None and os.fstat(held.descriptor).st_nlink:
            self._keeps_names = True
            _close([self._waiting.pop()])

    def begin(self) -> None:
        """Have the blocks of all that was removed given back, beside the caller."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        helper = threading.Thread(target=_close, args=(waiting,), name="ckptstore-free", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no thread can be started
            _close(waiting)
        else:
            self._helpers.append(helper)

    def wait(self) -> None:
        """Return when the blocks of all that was removed are free."""
        self.begin()
        while self._helpers:
            self._helpers[-1].join()
            self._helpers.pop()

    def _hold(self, path: Path) -> _Held | None:
        """Return a descriptor of a file whose last name that is; None where removing it is quick, or must be plain."""
        if self._keeps_names or len(self._waiting) >= _AT_ONCE:
            return None
        with no_fork():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                return None  # removing it says what is wrong, if anything is
            status = os.fstat(descriptor)
            if status.st_nlink == 1 and status.st_blocks * 512 >= _WORTH:
                held = _Held(descriptor, status.st_dev, status.st_ino)
                _held.add(held)
                return held
            os.close(descriptor)
            return None


def _close(waiting: list[_Held]) -> None:
    for held in waiting:
        with suppress(OSError):  # it is closed all the same, and nothing was written through it
            os.close(held.descriptor)
        _held.discard(held)
