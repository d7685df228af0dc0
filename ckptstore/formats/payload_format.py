"""`PayloadFormat`: what the bytes of a payload mean. One object for each format, which `registry` finds.

No other room asks which format a payload has, but only what it is: by the facts below.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from ckptstore.errors import CorruptPayloadError
from ckptstore.formats.sink import Sink
from ckptstore.formats.snapshot import Snapshot, TrainingState
from ckptstore.records import Format
from ckptstore.storage.payloads.interface import Upload
from ckptstore.storage.payloads.stored import StoredPayload
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    import h5py

    from ckptstore.formats.sharded.shards import Division
    from ckptstore.formats.sharded.verify_share import Region

Progress = Callable[[int], object]


class EncodedMember(Protocol):
    """A member of a payload, of known size, that is not written yet.

    Attributes:
        name: Its name; "" for the only one.
        nbytes: Its exact size in bytes.
    """

    name: str
    nbytes: int

    def write(self, sink: Sink) -> None:
        """Write it in one pass; may be called again for another sink.

        The sink receives views of the snapshot's arrays. They must not change until the sink is finished.

        Raises:
            InvalidArgumentError: A variable's shape or dtype differs from the snapshot's.
            Exception: The sink's own errors, unchanged; what was written until then is not a member.
        """


class EncodedPayload(Protocol):
    """A payload that is laid out, but for the values of its arrays.

    Attributes:
        nbytes: Its exact size in bytes.
        members: Its members, in the order in which they are to be written.
    """

    nbytes: int

    @property
    def members(self) -> Sequence[EncodedMember]:
        """Its members, in the order in which they are to be written; of several processes, those of this one."""
        ...

    def write_to(self, upload: Upload) -> None:
        """Write and finish all members, so that only the commit is left; `write_members` does it for one process.

        A format whose members several processes write meets them here, with a time limit, and adds what they report.

        Raises:
            StorageError: A member could not be written, or was not reported in time; the caller aborts the upload.
        """


def write_members(encoded: EncodedPayload, upload: Upload) -> None:
    """Write the members of this process, one after the other, and finish each: it is durable then.

    Raises:
        StorageError: One could not be written; its file is thrown away.
    """
    for member in encoded.members:
        writer = upload.member(member.name, member.nbytes)
        try:
            member.write(writer)
            writer.finish()
        except BaseException:
            writer.abort()
            raise


class OpenPayload(Protocol):
    """A payload that is open and whose contents are listed. Valid while the `StoredPayload` below it is open.

    Every method raises `CorruptPayloadError` if what it reads is damaged, and `StorageError` if it cannot be read.
    """

    @property
    def format(self) -> PayloadFormat:
        """The format that read it."""
        ...

    def corrupt(self, reason: str) -> CorruptPayloadError:
        """Return the error for a damaged payload."""
        ...

    def is_described(self) -> bool:
        """Return True if it carries a description: then ckptstore wrote it, rather than Keras."""
        ...

    def description(self) -> dict[str, Any]:
        """Return the description inside the payload: the writer's fields, and a digest of each part."""
        ...

    def layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype name of each variable, by path."""
        ...

    def documents(self) -> dict[str, bytes]:
        """Return what it holds besides arrays, such as the model's configuration, by name; empty where it cannot."""
        ...

    @property
    def processes(self) -> int:
        """The number of processes whose training state it holds; 1 in a format of one process."""
        ...

    def state(self, process: int = 0) -> TrainingState | None:
        """Return the training state of a process, checked against its digests, or None if there is none.

        Raises:
            InvalidArgumentError: `process` is not less than `processes`.
        """
        ...

    def variables(self, as_views: Collection[str] = ()) -> Mapping[str, Array]:
        """Return the variables by path; each is read on access, so that memory holds one of them.

        Args:
            as_views: Paths of variables that the caller copies at once: it gets views of the file instead of copies.
        """
        ...

    def read_region(self, path: str, start: Sequence[int], stop: Sequence[int], out: Array) -> None:
        """Read a region of a variable, and no more of the payload than it takes; several threads may do so at once.

        The values are not checked against their digests: check the digest of the whole payload first.

        Args:
            path: The variable.
            start: The region's first index along each dimension.
            stop: The index after its last, likewise.
            out: Receives the values; of the region's shape and the variable's dtype. It may be a part of another
                array.
        """
        ...

    def verify_regions(self, regions: Iterable[Region], *, process: int, processes: int) -> int:
        """Verify what one of several processes is about to read besides its share, as far as it reads parts whole.

        A part of which it reads only some has been verified by the process in whose share it is.

        Args:
            regions: The regions that it reads: path, start and stop of each, as for `read_region`.
            process: The number of this process.
            processes: The number of processes that read the payload, each of which has opened it as such.

        Returns:
            The number of bytes that were read; 0 in a format of one file, which each process verifies whole.
        """
        ...

    def division(self) -> Division | None:
        """Return how it is divided among processes; None in a format of one process."""
        ...

    def hdf5(self) -> AbstractContextManager[h5py.File]:
        """Open the payload as an HDF5 file for reading, where Keras' own code reads it (`matches_by_order`).

        Raises:
            InvalidArgumentError: It is none.
        """
        ...


class PayloadFormat(Protocol):
    """A payload format.

    Attributes:
        name: Its name, which the manifest records.
        suffix: The end of its payloads' names.
        run_suffix: What is added to a run's name that is made from a file's name, so that two formats do not share it.
        noun: What a file of it is called in messages.
        is_whole_model: Keras can make the model from it, without the code that made the model.
        allows_weights_only: It can hold the weights alone, without optimizer and training state.
        has_documents: It holds documents besides arrays, such as the model's configuration and layers' files.
        has_shards: It holds variables in parts, of several processes, and says how they lay on devices: it uses
            `Snapshot.shards`.
        is_directory: A payload is a directory of members, rather than one file.
        keras_fills_it: Keras' own code writes its variables, by `Snapshot.fill`.
        matches_by_order: Its variables are matched to a model's by their order, since Keras names them as it likes.
        loading_code: How plain Keras loads it, as a line of Python with ``{file}``; "" if it cannot.
        exports_as: Names of the formats of which a file can be made from a payload, without a model; the one that
            says most first, which is its own if a payload is a file.
    """

    name: Format
    suffix: str
    run_suffix: str
    noun: str
    is_whole_model: bool
    allows_weights_only: bool
    has_documents: bool
    has_shards: bool
    is_directory: bool
    keras_fills_it: bool
    matches_by_order: bool
    loading_code: str
    exports_as: tuple[Format, ...]

    def streams(self, snapshot: Snapshot) -> bool:
        """Return True if a snapshot is written variable after variable.

        Otherwise it is made in memory first, beside the state itself, by code that cannot run in the background.
        """
        ...

    def encode(self, snapshot: Snapshot, description: Mapping[str, Any]) -> EncodedPayload:
        """Lay out a payload: everything but the values of its arrays.

        Args:
            snapshot: What to save. Variables are read one at a time, when they are written.
            description: JSON fields that describe the checkpoint; digests of all parts are added.

        Raises:
            InvalidArgumentError: A name or a value is not allowed in the format.
        """
        ...

    def recognises(self, stored: StoredPayload) -> bool:
        """Return True if a payload looks like one of this format by its first bytes, or by its members' names."""
        ...

    def open(self, stored: StoredPayload) -> AbstractContextManager[OpenPayload]:
        """List what a payload holds.

        Raises:
            CorruptPayloadError: It is damaged, or of another format.
            StorageError: It cannot be read.
        """
        ...

    def verify_share(
        self,
        stored: StoredPayload,
        *,
        nbytes: int,
        digest: str,
        process: int,
        processes: int,
        progress: Progress | None = None,
    ) -> None:
        """Verify one process's share of a payload; a file is verified whole.

        Together, all processes verify every byte. None of them waits for another.

        Args:
            stored: The payload.
            nbytes: The size that it must have.
            digest: The digest that it must have.
            process: The number of this process, from 0.
            processes: The number of processes that open it.
            progress: Called with the number of bytes of each part that was digested.

        Raises:
            CorruptPayloadError: It differs, as far as this process has read it.
            StorageError: It cannot be read, which does not mean that it is damaged.
        """
        ...

    def verify(self, opened: OpenPayload) -> list[str]:
        """Check a payload against the digests inside it; return one line for each difference.

        Every byte of every part is read, each once.
        """
        ...

    def check_structure(self, opened: OpenPayload) -> None:
        """Check a payload that has no description, since Keras wrote it, as far as it can be checked.

        Raises:
            CorruptPayloadError: It is damaged.
        """

    def decode(self, opened: OpenPayload, progress: Progress | None = None) -> Snapshot:
        """Return the contents as a snapshot, to be written elsewhere; each variable is read when it is written.

        Where there is a description, each variable is checked against its digest then.

        Args:
            opened: The payload; the snapshot is valid while it is open.
            progress: Called with the number of bytes of each variable that was read.
        """
        ...

    def export_nbytes(self, stored: StoredPayload, format: Format) -> int:
        """Return the size in bytes of what `export` writes."""
        ...

    def export(
        self,
        stored: StoredPayload,
        format: Format,
        sink: Sink,
        *,
        nbytes: int,
        digest: str,
        progress: Progress | None = None,
    ) -> None:
        """Write a file of one of `exports_as`, and check the payload meanwhile; use the file only if this returns.

        Args:
            stored: The payload.
            format: The format of the file.
            sink: Receives the file's bytes.
            nbytes: The size that the payload must have.
            digest: The digest that it must have.
            progress: Called with the number of bytes of each part that was read; their sum is `nbytes`.

        Raises:
            CorruptPayloadError: The payload is not what was saved.
            StorageError: It cannot be read.
            Exception: The sink's own errors, unchanged.
        """
