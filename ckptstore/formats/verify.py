"""Verification of HDF5 payloads against the digests inside them, and of files that Keras wrote as far as possible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.contents import extents, parts
from ckptstore.formats.description import PREFIX, digest_of
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.hdf5_payload import Hdf5Payload
from ckptstore.formats.streamed_hdf5 import DESCRIPTION, STATE_ARRAYS, STATE_DOCUMENT, escaped
from ckptstore.formats.zip_writer import WEIGHTS, crc32


def verify_hdf5(payload: Hdf5Payload, whole: xxhash.xxh3_128 | None = None) -> list[str]:
    """Check a payload against the digests inside it, in one pass; return one line for each difference.

    Digests cover every byte of the HDF5 file and of the archive's other members, but not the archive's directory.
    That is used for reading, and the CRC-32 in it, which Keras relies on, is checked.

    Args:
        payload: The payload.
        whole: Is given every byte of the HDF5 file, in order.
    """
    description = payload.description()
    problems = _document_problems(payload, description)
    digests, structure, crc = _digest_all(payload, whole)
    expected = _expected(payload, description)
    stored = {found.path: found for found in payload.contents.all()}
    stored.pop(DESCRIPTION)
    problems += [f"{path} is missing" for path in expected if path not in stored]
    for path_inside, found in stored.items():
        problems += _differences(path_inside, found, expected.get(path_inside), digests)
    if structure != description["structure"]:
        problems.append("the HDF5 metadata differ from their digest")
    if payload.archive is not None and crc != payload.archive.weights_crc:
        problems.append(f"{WEIGHTS} differs from its CRC-32 in the archive")
    return problems


def _expected(payload: Hdf5Payload, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    expected = {path: dict(entry) for path, entry in description["variables"].items()}
    state, document = description["state"], payload.contents.document
    if state is not None:
        # The length of the JSON is covered by its digest.
        shape = None if document is None else list(document.shape)
        expected[STATE_DOCUMENT] = {"shape": shape, "dtype": "uint8", "digest": state["document"]}
        expected |= {STATE_ARRAYS + escaped(name): dict(entry) for name, entry in state["arrays"].items()}
    return expected


def _differences(
    path: str, found: StoredDataset, expected: Mapping[str, Any] | None, digests: Mapping[str, str]
) -> list[str]:
    if expected is None:
        return [f"{path} is not in the description"]
    if list(found.shape) != expected["shape"] or found.kind.dtype.name != expected["dtype"]:
        return [f"{path} is {found.shape} {found.kind.dtype.name}, not as described"]
    if digests[path] != expected["digest"]:
        return [f"{path} differs from its digest"]
    return []


def _document_problems(payload: Hdf5Payload, description: Mapping[str, Any]) -> list[str]:
    expected: dict[str, str] = description["documents"]
    try:
        documents = {} if payload.archive is None else payload.archive.documents()
    except CorruptPayloadError as error:
        return [error.reason]
    problems = [f"{name} is missing" for name in expected if name not in documents]
    for name, document in documents.items():
        if name not in expected:
            problems.append(f"{name} is not in the description")
        elif digest_of(document) != expected[name]:
            problems.append(f"{name} differs from its digest")
    return problems


def _digest_all(payload: Hdf5Payload, whole: xxhash.xxh3_128 | None) -> tuple[dict[str, str], str, int]:
    """Compute, in one pass, the digest of each dataset, that of all bytes between them, and the CRC-32 of the whole."""
    source = payload.source
    source.advise_sequential()
    digests = {found.path: PREFIX + xxhash.xxh3_128_hexdigest(b"") for found in payload.contents.all()}
    structure, crc, position = xxhash.xxh3_128(), 0, 0
    with_crc = payload.archive is not None
    for begin, end, found in [*extents(source, payload.contents), (source.nbytes, source.nbytes, None)]:
        for part in parts(source, position, begin):
            structure.update(part)
            if whole is not None:
                whole.update(part)
            crc = crc32(part, crc) if with_crc else 0
        digest = xxhash.xxh3_128()
        for part in parts(source, begin, end):
            digest.update(part)
            if whole is not None:
                whole.update(part)
            crc = crc32(part, crc) if with_crc else 0
        if found is not None:
            digests[found.path] = PREFIX + digest.hexdigest()
        position = end
    return digests, PREFIX + structure.hexdigest(), crc


def check_structure(found: Hdf5Payload) -> None:
    """Check a payload as far as that is possible without digests: its structure, and an archive's CRC-32.

    A ``.weights.h5`` of Keras has no checksum: a flipped bit in a weight cannot be found.

    Raises:
        CorruptPayloadError: It is damaged.
    """
    for stored in found.contents.variables.values():
        if stored.offset is None:
            raise found.corrupt(stored.refusal)
    _check_documents(found)
    if not found.is_described():
        _check_crc(found)


def _check_documents(found: Hdf5Payload) -> None:
    if found.archive is None:
        return
    try:
        json.loads(found.documents()["config.json"])
    except (KeyError, ValueError, RecursionError) as error:
        raise found.corrupt("its config.json is missing, or is not JSON") from error


def _check_crc(found: Hdf5Payload) -> None:
    if found.archive is None:
        return
    crc = 0
    for part in parts(found.source, 0, found.source.nbytes):
        crc = crc32(part, crc)
    if crc != found.archive.weights_crc:
        raise found.corrupt("its weights differ from their CRC-32 in the archive")
