"""Verification by several processes that open one payload: each reads a share of it, and all together every byte.

``description.json`` lists a digest of each member and document, and the digest of the whole payload is made of these.
So each process proves from small files that the list is the one that was saved, and then reads the members of its
share alone. What it reads of other members it can check part by part, see `verify_regions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xxhash

from ckptstore.formats.contents import parts
from ckptstore.formats.description import PREFIX
from ckptstore.formats.sharded.description import DESCRIPTION, Description, parse
from ckptstore.formats.sharded.encoding import document_member
from ckptstore.formats.sharded.grid import Part
from ckptstore.formats.sharded.shards import member_of
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.payloads.stored import StoredPayload, whole_of

if TYPE_CHECKING:
    from ckptstore.formats.sharded.opened import OpenSharded

Progress = Callable[[int], object]
# The path of a variable, the first index along each dimension, and the index after its last.
Region = tuple[str, Sequence[int], Sequence[int]]


def verify_share(
    stored: StoredPayload,
    *,
    nbytes: int,
    digest: str,
    process: int,
    processes: int,
    progress: Progress | None = None,
) -> None:
    """Verify one process's share of a payload; see `ckptstore.formats.payload_format.PayloadFormat.verify_share`."""
    if stored.nbytes != nbytes:
        raise stored.corrupt(f"it has {stored.nbytes:,} bytes, {nbytes:,} were saved")
    described = parse(stored.member(DESCRIPTION))
    expected = _expected(stored, described, progress)
    for name, saved in expected.items():
        if stored.members.get(name) != saved.nbytes:
            raise stored.corrupt(f"{name} is missing, or not of the {saved.nbytes:,} bytes that were saved")
    found = whole_of(expected).digest
    if len(stored.members) != len(expected) or found != digest:
        raise stored.corrupt(f"its digest is {found}, {digest} was saved")
    for number in range(process, described.processes, processes):
        name = member_of(number)
        if stored.member(name).digest(progress) != expected[name].digest:
            raise stored.corrupt(f"{name} differs from its digest")


def _expected(stored: StoredPayload, described: Description, progress: Progress | None) -> dict[str, Written]:
    """Return size and digest of each member: of the small ones as they are, of the others as the description says."""
    small = [DESCRIPTION, *map(document_member, described.documents)]
    found = {}
    for name in small:
        source = stored.member(name)
        found[name] = Written(nbytes=source.nbytes, digest=source.digest(progress))
    return found | {member_of(number): saved for number, saved in enumerate(described.files)}


def verify_regions(opened: OpenSharded, regions: Iterable[Region], *, process: int, processes: int) -> int:
    """Verify parts in other shares; see `ckptstore.formats.payload_format.OpenPayload.verify_regions`."""
    descriptions: dict[int, Mapping[str, Any]] = {}
    read = 0
    for path, start, stop in regions:
        for part in opened.described.variables[path].grid.parts_within(start, stop):
            if part.owner % processes == process or not _is_inside(part, start, stop):
                continue
            if part.owner not in descriptions:
                descriptions[part.owner] = opened.member_description(part.owner)["variables"]
            read += _verify_part(opened, path, part, descriptions[part.owner])
    return read


def _is_inside(part: Part, start: Sequence[int], stop: Sequence[int]) -> bool:
    begins = all(begin <= one for begin, one in zip(start, part.start, strict=True))
    return begins and all(one <= end for one, end in zip(part.stop, stop, strict=True))


def _verify_part(opened: OpenSharded, path: str, part: Part, digests: Mapping[str, Any]) -> int:
    member, dataset = opened.dataset(path, part)
    name = f"{path}/{part.name}"
    if dataset.offset is None:
        raise member.source.corrupt(dataset.refusal)
    digest = xxhash.xxh3_128()
    for piece in parts(member.source, dataset.offset, dataset.offset + dataset.nbytes):
        digest.update(piece)
    if name not in digests or digests[name]["digest"] != f"{PREFIX}{digest.hexdigest()}":
        raise opened.corrupt(f"{member_of(part.owner)}: {name} differs from its digest")
    return dataset.nbytes
