"""`EncodedSharded`: the members that one process writes, laid out, and the meeting with the other processes.

A process's member is an HDF5 file of the parts that it owns and its training state, with a description of its own: it
can be verified by itself. Process 0 also writes the documents and, last, ``description.json``. The steps, and what a
crash of each process leaves:

1. Each process writes its member into the one upload, durably, and posts a report. Before the report of each has
   arrived, nothing has a name: an upload without its writer is swept.
2. Process 0 waits for the reports, with a limit, notes the members, and writes ``description.json``. Then its caller
   commits. One that does not arrive, or says that a member failed, ends this save on process 0; the upload is
   aborted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import xxhash

from ckptstore.errors import InvalidArgumentError, SaveAbandonedError
from ckptstore.errors.save_failures import cause_of_failure, describe_failure, worst_cause
from ckptstore.formats.payload_format import EncodedMember
from ckptstore.formats.sharded.description import DESCRIPTION, DescriptionText, check_fields
from ckptstore.formats.sharded.grid import whole
from ckptstore.formats.sharded.shards import Report, ShardedVariable, Shards, member_of
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot
from ckptstore.formats.streamed_hdf5 import StreamedHdf5, escaped, is_streamable
from ckptstore.formats.zip_writer import is_unsafe_name
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.files import DIGEST
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.names import leading_version

_DOCUMENTS = "documents/"


def document_member(name: str) -> str:
    """Return the name of a document's member; a folder in its name is none there.

    Example:
        >>> document_member("assets/layers/words.txt")
        'documents/assets%2Flayers%2Fwords.txt'
    """
    return _DOCUMENTS + escaped(name)


class EncodedSharded:
    """Implementation of `ckptstore.formats.payload_format.EncodedPayload`.

    Args:
        snapshot: What to write. Without `Snapshot.shards` it is that of one process, and each variable is one part.
        fields: The caller's fields of the description; JSON values.

    Attributes:
        nbytes: Size of this process's members in bytes.

    Raises:
        InvalidArgumentError: A name is not allowed in the format, a value is not JSON, or the snapshot's variables
            are not the parts that its process owns.
    """

    def __init__(self, snapshot: Snapshot, fields: Mapping[str, Any]) -> None:
        check_fields(fields)
        self._shards = snapshot.shards or _of_one_process(snapshot)
        self._files: dict[int, Written] = {}
        self._parts = [
            _Member(process, _laid_out(one, process, fields, self._shards), self._files.__setitem__)
            for process, one in self._snapshots(snapshot).items()
        ]
        self._documents: list[_Document] = []
        self._description: _Description | None = None
        if self._writes(0):
            self._documents = [_Document(name, data) for name, data in snapshot.documents.items()]
            shards = self._shards
            text = DescriptionText(fields, snapshot.documents, shards.variables, shards.processes)
            self._description = _Description(text, self._files)
        self.nbytes = sum(member.nbytes for member in self.members)

    def _writes(self, process: int) -> bool:
        return bool(self._shards.members) or self._shards.process == process

    def _snapshots(self, snapshot: Snapshot) -> dict[int, Snapshot]:
        """Return what is in each member that is written here, by process, under the names of the parts."""
        shards = self._shards
        if shards.members:
            # A copy that must not be resumed from has no state: then none of its members has.
            return {
                process: one if snapshot.state is not None else replace(one, state=None)
                for process, one in enumerate(shards.members)
            }
        owned = list(shards.owned())
        found = [(variable.shape, variable.dtype) for variable in snapshot.variables]
        if found != [(part.shape, variable.dtype) for variable, part in owned]:
            raise InvalidArgumentError(
                argument="snapshot",
                value=f"{len(found)} arrays",
                reason=f"are not the {len(owned)} parts that process {shards.process} owns",
            )
        named = tuple(
            replace(array, path=f"{variable.path}/{part.name}")
            for array, (variable, part) in zip(snapshot.variables, owned, strict=True)
        )
        return {shards.process: replace(snapshot, variables=named, documents={}, shards=None)}

    @property
    def members(self) -> Sequence[EncodedMember]:
        """The members of this process; the description, which needs the digests of all, is the last."""
        last = [] if self._description is None else [self._description]
        return [*self._parts, *self._documents, *last]

    def write_to(self, upload: Upload) -> None:
        """Write and finish the members of this process; process 0 then meets the others.

        Raises:
            SaveAbandonedError: Another process did not write its member, or did not say so in time.
            StorageError: A member could not be written; the other processes are told so.
        """
        reports = self._shards.reports
        if self._description is not None:
            self._write_parts(upload)
            for document in self._documents:
                _write(upload, document, document.write)
            if not self._shards.members and self._shards.processes > 1:
                self._meet(upload)
            _write(upload, self._description, self._description.write)
            return
        process = self._shards.process
        try:
            self._write_parts(upload)
        except BaseException as error:
            if reports is not None:
                problem, cause = describe_failure(error), cause_of_failure(error)
                reports.post(Report(process=process, written=None, problem=problem, cause=cause))
            raise
        if reports is not None:
            reports.post(Report(process=process, written=self._files[process]))

    def _write_parts(self, upload: Upload) -> None:
        for part in self._parts:
            self._files[part.process] = _write(upload, part, part.write_undigested)

    def _meet(self, upload: Upload) -> None:
        """Note the members of the other processes in the upload."""
        shards = self._shards
        posted = () if shards.reports is None else shards.reports.wait(shards.limit_s)
        for report in posted:
            if report.written is not None:
                self._files[report.process] = report.written
                upload.add(member_of(report.process), report.written)
        missing = [process for process in range(shards.processes) if process not in self._files]
        if missing:
            failed = {report.process: report for report in posted if report.written is None}
            causes = {report.cause for report in failed.values()}
            raise SaveAbandonedError(
                process=shards.process,
                save=None,
                version=leading_version(upload.name),
                # One that has not answered yet is not silent, where another has ended the save.
                silent=() if failed else tuple(missing),
                refused={process: report.problem for process, report in failed.items()},
                cause=worst_cause(causes),
                limit_s=shards.limit_s,
            )


def _of_one_process(snapshot: Snapshot) -> Shards:
    return Shards(
        variables=tuple(
            ShardedVariable(path=variable.path, dtype=variable.dtype, grid=whole(variable.shape))
            for variable in snapshot.variables
        )
    )


def _laid_out(snapshot: Snapshot, process: int, fields: Mapping[str, Any], shards: Shards) -> Any:
    described = {**fields, "process": process, "processes": shards.processes}
    if is_streamable(snapshot):
        return StreamedHdf5(snapshot, described, {})
    from ckptstore.formats.in_memory_hdf5 import InMemoryHdf5

    return InMemoryHdf5(snapshot, described, {})


def _write(upload: Upload, member: EncodedMember, write: Callable[[Sink], object]) -> Written:
    writer = upload.member(member.name, member.nbytes)
    try:
        write(writer)
        return writer.finish()
    except BaseException:
        writer.abort()
        raise


class _Member:
    """The member of a process."""

    def __init__(self, process: int, weights: Any, note: Callable[[int, Written], object]) -> None:
        self.process = process
        self.name = member_of(process)
        self.nbytes: int = weights.nbytes
        self._weights = weights
        self._note = note

    def write_undigested(self, sink: Sink) -> None:
        """Write it to a sink that digests what it gets."""
        self._weights.write(sink.write)

    def write(self, sink: Sink) -> None:
        """Write it, and note its digest, which the description needs."""
        digest = xxhash.xxh3_128()

        def digested(data: Any) -> None:
            digest.update(data)
            sink.write(data)

        self._weights.write(digested)
        self._note(self.process, Written(nbytes=self.nbytes, digest=f"{DIGEST}:{digest.hexdigest()}"))


class _Document:
    """A document of the model, such as its configuration."""

    def __init__(self, name: str, data: bytes) -> None:
        if is_unsafe_name(name):
            raise InvalidArgumentError(argument="documents", value=name, reason="cannot be a document's name")
        self.name = document_member(name)
        self.nbytes = len(data)
        self._data = data

    def write(self, sink: Sink) -> None:
        sink.write(self._data)


class _Description:
    """The description; the members that it lists are written, or reported, before it."""

    name = DESCRIPTION

    def __init__(self, text: DescriptionText, files: Mapping[int, Written]) -> None:
        self.nbytes = text.nbytes
        self._text = text
        self._files = files

    def write(self, sink: Sink) -> None:
        sink.write(self._text.complete(self._files))
