"""Verification of a payload of several members: every byte of every member is read, each once."""

from __future__ import annotations

import xxhash

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats import verify
from ckptstore.formats.description import PREFIX, digest_of
from ckptstore.formats.sharded.description import DESCRIPTION
from ckptstore.formats.sharded.encoding import document_member
from ckptstore.formats.sharded.opened import OpenSharded
from ckptstore.formats.sharded.shards import member_of


def verify_sharded(opened: OpenSharded) -> list[str]:
    """Return one line for each difference, with the member, and where it can be told the variable and the part."""
    described, present = opened.described, opened.stored.members
    documents = {document_member(name): digest for name, digest in described.documents.items()}
    shards = {member_of(process): process for process in range(described.processes)}
    expected = {DESCRIPTION, *documents, *shards}
    problems = [f"{name} is missing" for name in (*documents, *shards) if name not in present]
    problems += [f"{name} is not in the description" for name in present if name not in expected]
    for name, process in shards.items():
        if name in present:
            problems += [f"{name}: {line}" for line in _member_problems(opened, process)]
    for name, digest in documents.items():
        if name in present:
            file = opened.stored.member(name)
            if digest_of(file.read(0, file.nbytes)) != digest:
                problems.append(f"{name} differs from its digest")
    return problems


def _member_problems(opened: OpenSharded, process: int) -> list[str]:
    try:
        member = opened.member(process)
        whole = xxhash.xxh3_128()
        problems = verify.verify_hdf5(member, whole)
    except CorruptPayloadError as error:
        return [error.reason.removeprefix(f"{member_of(process)}: ")]
    if problems:
        return problems
    if PREFIX + whole.hexdigest() != opened.described.files[process].digest:
        return ["it is whole, but is not the member of this save"]
    wanted = {
        f"{path}/{part.name}": (part.shape, variable.dtype)
        for path, variable in opened.described.variables.items()
        for part in variable.grid.parts_of(process)
    }
    found = {name: (one.shape, one.kind.dtype.name) for name, one in member.contents.variables.items()}
    different = [name for name in {*wanted, *found} if wanted.get(name) != found.get(name)]
    return [f"{name} is not the part that the description lists" for name in sorted(different)]
