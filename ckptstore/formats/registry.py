"""The registered payload formats, found by name, by the name of a file, or by what a file holds.

A new format is a module of `ckptstore.formats.kinds`, and a line here.
"""

from __future__ import annotations

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.kinds import keras_archive, sharded, weights_file, whole_model_h5
from ckptstore.formats.payload_format import PayloadFormat
from ckptstore.records import Format
from ckptstore.storage.payloads.names import without_quarantine_number
from ckptstore.storage.payloads.stored import StoredPayload

_FORMATS: tuple[PayloadFormat, ...] = (
    keras_archive.FORMAT,
    weights_file.FORMAT,
    whole_model_h5.FORMAT,
    sharded.FORMAT,
)
_BY_NAME = {format.name: format for format in _FORMATS}


def all_formats() -> tuple[PayloadFormat, ...]:
    """Return all formats, the usual one first.

    Example:
        >>> [format.name for format in all_formats()]
        ['keras', 'weights', 'h5', 'sharded']
    """
    return _FORMATS


def by_name(name: Format) -> PayloadFormat:
    """Return the format of a name that the manifest records.

    Raises:
        InvalidArgumentError: There is none.
    """
    found = _BY_NAME.get(name)
    if found is None:
        raise InvalidArgumentError(argument="format", value=name, reason=f"must be one of {sorted(_BY_NAME)}")
    return found


def by_file_name(file: str, *, whole_model: bool | None = None) -> PayloadFormat | None:
    """Return the format that a file's name stands for, also of one in quarantine; None if it stands for none.

    Args:
        file: The name, or a path.
        whole_model: True or False for such formats alone: Keras takes ``x.weights.h5`` for a file of weights, or for
            a whole model in ``.h5``, by what the user asked for.

    Example:
        >>> by_file_name("x.weights.h5").name, by_file_name("x.weights.h5", whole_model=True).name
        ('weights', 'h5')
    """
    name = without_quarantine_number(file)
    matching = [
        format
        for format in _FORMATS
        if name.endswith(format.suffix) and whole_model in (None, format.is_whole_model)
    ]
    return max(matching, key=lambda format: len(format.suffix), default=None)


def by_content(stored: StoredPayload) -> PayloadFormat | None:
    """Return the first format that recognises a payload, or None.

    Raises:
        StorageError: It cannot be read.
    """
    for format in _FORMATS:
        if format.is_directory != stored.is_single_file and format.recognises(stored):
            return format
    return None


def format_of(stored: StoredPayload) -> PayloadFormat:
    """Return the format of a payload, by its name or, where that has no known suffix, by its content.

    Raises:
        CorruptPayloadError: No format recognises it.
        StorageError: It cannot be read, or is a directory where its name says that it is a file.
    """
    found = by_file_name(stored.name) or by_content(stored)
    if found is None:
        raise stored.corrupt("it is no payload of a known format")
    return found
