"""JSON description inside a payload: what the payload is, and a digest of each of its parts.

The text is written after everything that it describes. Its length is known in advance, since all digests have the
same length. `structure` is the digest of all bytes of the HDF5 file that belong neither to an array nor to this
text, so that the digests together cover every byte of that file. The last digest is that of the text itself. An
array's digest is that of its bytes as stored: C order, little-endian.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xxhash

from ckptstore.errors import InvalidArgumentError
from ckptstore.storage.random_access import RandomAccess

PREFIX = "xxh3_128:"
# Fields that this module writes; callers may not use these names.
RESERVED = ("variables", "documents", "state", "structure", "description")
_SEAL = '", "description": "' + PREFIX
_SEAL_LENGTH = len(_SEAL) + 32 + len('"}')
_BLANK = "0" * 32
NOT_OURS = "its description is not one that ckptstore writes"


def digest_of(data: Any) -> str:
    """Return ``"xxh3_128:<32 hex digits>"`` of the bytes of any buffer.

    Example:
        >>> digest_of(b"")
        'xxh3_128:99aa06d3014798d86001c324468d497f'
    """
    return PREFIX + xxhash.xxh3_128_hexdigest(data)


def entries_template(arrays: Iterable[tuple[str, tuple[int, ...], str]]) -> str:
    """Return the JSON object that lists arrays (name, shape, dtype), with a ``%s`` for each digest."""
    digest = f'"digest": "{PREFIX}%s"'
    entries = [
        f'{_literal(name)}: {{"shape": {[*map(int, shape)]}, "dtype": {_literal(dtype)}, {digest}}}'
        for name, shape, dtype in arrays
    ]
    return "{" + ", ".join(entries) + "}"


def to_json(value: Any, argument: str) -> bytes:
    """Return a value as JSON text in ASCII; NaN and infinities are written as Python does.

    Raises:
        InvalidArgumentError: The value is not JSON.
    """
    try:
        return json.dumps(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(argument=argument, value=value, reason=f"is not JSON: {error}") from error


class DescriptionText:
    """Text of a payload's description before its digests are known.

    Args:
        fields: The caller's fields; JSON values.
        documents: Digests of the archive's other members.
        variables: Template of the variables, from `entries_template`.
        arrays: Template of the training state's arrays, or None if there is no training state.

    Raises:
        InvalidArgumentError: `fields` is not JSON, or uses a name that is reserved.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        documents: Mapping[str, str],
        variables: str,
        arrays: str | None,
    ) -> None:
        for name in RESERVED:
            if name in fields:
                raise InvalidArgumentError(argument="description", value=name, reason="is a reserved name")
        head = to_json({**fields, "documents": dict(documents)}, "description").decode("ascii")
        state = "null" if arrays is None else f'{{"document": "{PREFIX}%s", "arrays": {arrays}}}'
        parts = [
            head[:-1].replace("%", "%%"),
            f', "variables": {variables}, "state": {state}, "structure": "{PREFIX}%s',
        ]
        self._template = "".join(parts)
        self.nbytes = len(self._template % ((_BLANK,) * self._holes())) + _SEAL_LENGTH

    def _holes(self) -> int:
        return self._template.replace("%%", "").count("%s")

    def complete(
        self, *, variables: Sequence[str], state: str | None, arrays: Sequence[str], structure: str
    ) -> bytes:
        """Return the text, exactly `nbytes` bytes long; all digests are 32 hex digits."""
        digests = (*variables, *(() if state is None else (state,)), *arrays, structure)
        return sealed(self._template % digests)


def sealed(body: str) -> bytes:
    """Return the text of a description with its own digest as the last field.

    Args:
        body: A JSON object of ASCII up to the end of its last value, which is a text; without the quote after it.
    """
    return f'{body}{_SEAL}{xxhash.xxh3_128_hexdigest(body.encode("ascii"))}"}}'.encode("ascii")


def unsealed(source: RandomAccess, text: bytes) -> dict[str, Any]:
    """Return the JSON object that `sealed` has written, without the digest.

    Raises:
        CorruptPayloadError: The text is not as it was written.
    """
    body = text[:-_SEAL_LENGTH]
    seal = f'{_SEAL}{xxhash.xxh3_128_hexdigest(body)}"}}'.encode("ascii")
    if text[len(body) :] != seal:
        raise source.corrupt("its description is damaged")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.corrupt("its description is not JSON") from error
    if not isinstance(found, dict):
        raise source.corrupt(NOT_OURS)
    del found["description"]
    return found


def parse_description(source: RandomAccess, text: bytes) -> dict[str, Any]:
    """Return the description in a text.

    Raises:
        CorruptPayloadError: The text is not as it was written.
    """
    found = unsealed(source, text)
    if not _has_valid_fields(found):
        raise source.corrupt(NOT_OURS)
    return found


def parse_state(source: RandomAccess, text: bytes) -> dict[str, Any]:
    """Return the JSON document of the training state."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise source.corrupt("its training state is not JSON") from error
    if not isinstance(found, dict):
        raise source.corrupt("its training state is not a JSON object")
    return found


def _has_valid_fields(found: dict[str, Any]) -> bool:
    """Return True if the fields that this module reads have the right types; its digest is no proof of origin."""
    if not isinstance(found.get("structure"), str) or not is_digests(found.get("documents")):
        return False
    if not _is_entries(found.get("variables")):
        return False
    state = found.get("state", {})
    if isinstance(state, dict):
        return isinstance(state.get("document"), str) and _is_entries(state.get("arrays"))
    return state is None


def is_digests(value: object) -> bool:
    """Return True for an object whose values are all texts."""
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


def _is_entries(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("shape"), list)
        and all(isinstance(size, int) for size in entry["shape"])
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("digest"), str)
        for entry in value.values()
    )


def _literal(text: str) -> str:
    return json.dumps(text).replace("%", "%%")
