"""Temporary local files of payloads that lie elsewhere, or in another form, for code of others that needs a path."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from ckptstore.storage.files import make_directory
from ckptstore.storage.payloads.stored import StoredPayload


@contextmanager
def temporary_copy(stored: StoredPayload) -> Iterator[Path]:
    """Copy an open payload into a temporary directory for the block, under its own name.

    A crash leaves the directory, where the system keeps temporary files.

    Raises:
        CorruptPayloadError: A member is missing, or became shorter.
        StorageError: It cannot be read.
        OSError: The directory for temporary files is full, or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="ckptstore-") as folder:
        path = Path(folder, stored.name)
        for name in stored.members:
            target = path / name if name else path
            make_directory(target.parent, durable=False)
            with target.open("wb") as file, closing(stored.member(name).parts()) as parts:
                for part in parts:
                    file.write(part)
        yield path


@contextmanager
def temporary_file(name: str, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """Make a file in a temporary directory for the block.

    A crash leaves the directory, where the system keeps temporary files.

    Args:
        name: The file's name.
        fill: Writes the file; its errors are raised unchanged.

    Raises:
        OSError: The directory for temporary files is full, or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="ckptstore-") as folder:
        path = Path(folder, name)
        with path.open("wb") as file:
            fill(file)
        yield path
