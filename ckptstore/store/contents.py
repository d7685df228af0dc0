"""Contents of a checkpoint's payload, read without Keras: its variables, their parts, and its configuration."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from ckptstore.formats.payload import read_division, read_documents, read_layout
from ckptstore.formats.sharded.shards import Division
from ckptstore.records import Checkpoint
from ckptstore.storage.payloads.at import payload_of

_CONFIGURATION = ("config.json", "metadata.json")


def layout_of(checkpoint: Checkpoint) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype name of each variable by its path in the payload.

    Raises:
        CorruptPayloadError: The payload is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    return read_layout(payload_of(checkpoint))


def division_of(checkpoint: Checkpoint) -> Division | None:
    """Return how the payload is divided among processes; None in a format of one process.

    Raises:
        CorruptPayloadError: The payload is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    return read_division(payload_of(checkpoint))


def configuration_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration that Keras wrote into a ``.keras`` payload, parsed, by document name.

    A document that is not JSON is left out; other formats have none.

    Raises:
        CorruptPayloadError: The payload is missing or damaged.
        StorageError: It cannot be read, which does not mean that it is damaged.
    """
    documents = read_documents(payload_of(checkpoint))
    found = {}
    for name in _CONFIGURATION:
        with suppress(KeyError, ValueError, RecursionError):
            found[name] = json.loads(documents[name])
    return found
