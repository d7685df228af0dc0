"""Checks that every payload store must pass: local files, and objects in memory, with faults of each.

`PLACES` names the implementations. Another one is a `Place` more, and no check more.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import xxhash

from ckptstore.errors import CorruptPayloadError, DiskFullError, InvalidArgumentError, StorageError
from ckptstore.storage.durable_writer import Written
from ckptstore.storage.files import io_hook
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import release
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.interface import PayloadStore, Upload, WriteSession
from ckptstore.storage.payloads.local import LocalPayloadStore
from ckptstore.storage.payloads.local_writing import LocalWriteSession
from ckptstore.storage.payloads.mounts import mounted
from ckptstore.storage.payloads.stored import ONLY, whole_of
from object_payloads import Bucket, ObjectPayloadStore, ObjectSession

FIRST, SECOND = "00000001-run.keras", "00000002-run.weights.h5"
BYTES = bytes(range(256)) * 40
MEMBERS = {"process_0/data": b"first" * 3000, "process_1/data": b"second", "description.json": b"{}"}


class Place(ABC):
    """A place for payloads, and what happens to it."""

    payloads: PayloadStore

    @abstractmethod
    def again(self) -> PayloadStore:
        """Return the same place as another process sees it."""

    @abstractmethod
    def kill(self, session: WriteSession) -> None:
        """Let the session's process die: the kernel releases its locks, nothing else happens."""

    @abstractmethod
    def hidden(self) -> list[str]:
        """Return what lies there besides payloads."""

    @abstractmethod
    def flip(self, name: str, offset: int) -> AbstractContextManager[None]:
        """Let reads return a flipped bit."""

    @abstractmethod
    def failing(self, fault: str) -> AbstractContextManager[None]:
        """Let ``"no room"``, ``"connection lost"`` or ``"commit refused"`` happen in the block."""


class LocalPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.layout = Layout(folder / "store")
        self.layout.make_directories()
        self.payloads = LocalPayloadStore(self.layout)

    def again(self) -> PayloadStore:
        return LocalPayloadStore(self.layout)

    def kill(self, session: WriteSession) -> None:
        assert isinstance(session, LocalWriteSession) and session._lease is not None
        release(session._lease._lock, session._lease._path)

    def hidden(self) -> list[str]:
        return sorted(path.name for path in self.layout.tmp.iterdir() if path.suffix != ".lease")

    @contextmanager
    def flip(self, name: str, offset: int) -> Iterator[None]:
        path = self.layout.checkpoints / name
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x40
        path.write_bytes(data)
        yield

    @contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        step, code = {
            "no room": ("write", errno.ENOSPC),
            "connection lost": ("write", errno.EIO),
            "commit refused": ("rename", errno.EIO),
        }[fault]

        def fail(operation: str, path: Path, phase: str) -> None:
            if operation == step and phase == "before":
                raise OSError(code, "planted")

        with io_hook(fail):
            yield


class ObjectPlace(Place):
    def __init__(self, folder: Path) -> None:
        self.bucket = Bucket()
        self.payloads = ObjectPayloadStore(self.bucket)

    def again(self) -> PayloadStore:
        return ObjectPayloadStore(self.bucket)

    def kill(self, session: WriteSession) -> None:
        assert isinstance(session, ObjectSession)
        self.bucket.living.discard(id(session))

    def hidden(self) -> list[str]:
        return sorted(self.bucket.uploads)

    @contextmanager
    def flip(self, name: str, offset: int) -> Iterator[None]:
        self.bucket.flipped = name, offset
        yield
        self.bucket.flipped = None

    @contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        room = self.bucket.room
        if fault == "no room":
            self.bucket.room = 100
        elif fault == "connection lost":
            self.bucket.cut_after = 100
        else:
            self.bucket.refused = "payloads/"
        yield
        self.bucket.room, self.bucket.cut_after, self.bucket.refused = room, None, None


PLACES = {"local files": LocalPlace, "objects in memory": ObjectPlace}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = PLACES[request.param](tmp_path)
    return made


@pytest.fixture
def session(place: Place) -> Iterator[WriteSession]:
    made = place.payloads.session()
    made.renew()
    yield made
    made.close()


def written(session: WriteSession, name: str, members: dict[str, bytes]) -> Upload:
    """Return an upload whose members are finished, and that is not committed."""
    upload = session.begin(name)
    for member, data in members.items():
        writer = upload.member(member, len(data))
        try:
            for begin in range(0, len(data), 4000):
                writer.write(data[begin : begin + 4000])
            found = writer.finish()
        except BaseException:
            writer.abort()
            upload.abort()
            raise
        assert found == Written(nbytes=len(data), digest=f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}")
    return upload


def put(session: WriteSession, name: str, members: dict[str, bytes]) -> Written:
    upload = written(session, name, members)
    session.commit(upload)
    assert upload.is_committed
    return upload.written


def contents(payloads: PayloadStore, name: str, *, quarantined: bool = False) -> dict[str, bytes]:
    with payloads.open(name, quarantined=quarantined) as stored:
        assert stored.name == name
        return {member: stored.member(member).read(0, size) for member, size in stored.members.items()}


KINDS = pytest.mark.parametrize("members", [{ONLY: BYTES}, MEMBERS], ids=["one file", "several members"])


@KINDS
def test_a_payload_is_seen_only_once_it_is_committed(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    upload = written(session, FIRST, members)
    assert place.hidden()
    for payloads in (place.payloads, place.again()):
        assert payloads.names() == [] and not payloads.exists(FIRST) and payloads.nbytes(FIRST) is None
        with pytest.raises(CorruptPayloadError, match="missing"), payloads.open(FIRST):
            pass
    session.commit(upload)
    assert not place.hidden()
    for payloads in (place.payloads, place.again()):
        assert payloads.names() == [FIRST] and payloads.exists(FIRST)
        assert payloads.nbytes(FIRST) == upload.written.nbytes == sum(map(len, members.values()))
        assert contents(payloads, FIRST) == members


@KINDS
def test_size_and_digest_are_those_of_the_bytes_wherever_they_lie(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    found = put(session, FIRST, dict(reversed(members.items())))
    expected = whole_of(
        {
            name: Written(nbytes=len(data), digest=f"xxh3_128:{xxhash.xxh3_128_hexdigest(data)}")
            for name, data in members.items()
        }
    )
    assert found == expected
    read = 0

    def count(nbytes: int) -> None:
        nonlocal read
        read += nbytes

    with place.payloads.open(FIRST) as stored:
        assert stored.digest(count) == found.digest and read == found.nbytes
        stored.verify(found.nbytes, found.digest)
        with pytest.raises(CorruptPayloadError, match=r"were saved"):
            stored.verify(found.nbytes + 1, found.digest)
        with pytest.raises(CorruptPayloadError, match="digest"):
            stored.verify(found.nbytes, found.digest[:-1] + "x")


@pytest.mark.parametrize("change", ["renamed", "moved bytes", "dropped"])
def test_a_change_of_any_member_changes_the_digest(session: WriteSession, change: str) -> None:
    members = dict(MEMBERS)
    if change == "renamed":
        members["process_2/data"] = members.pop("process_1/data")
    elif change == "moved bytes":
        members["process_0/data"], members["process_1/data"] = (
            members["process_0/data"][:-1],
            members["process_1/data"] + b"t",
        )
    else:
        del members["description.json"]
    assert put(session, FIRST, MEMBERS).digest != put(session, SECOND, members).digest


@KINDS
def test_a_name_is_used_once(place: Place, session: WriteSession, members: dict[str, bytes]) -> None:
    put(session, FIRST, members)
    again = written(session, FIRST, dict.fromkeys(members, b"other"))
    with pytest.raises(StorageError):
        session.commit(again)
    assert not again.is_committed
    again.abort()
    assert contents(place.payloads, FIRST) == members and not place.hidden()


@KINDS
def test_an_upload_that_is_given_up_leaves_nothing(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    written(session, FIRST, members).abort()
    assert not place.hidden() and place.payloads.names() == []


@KINDS
def test_a_commit_that_was_not_recorded_is_undone(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    upload = written(session, FIRST, members)
    session.commit(upload)
    session.undo(upload)
    assert place.payloads.names() == [] and not place.payloads.exists(FIRST)


def test_what_is_not_finished_is_not_committed(place: Place, session: WriteSession) -> None:
    for name, member in ((FIRST, ONLY), (SECOND, "part")):
        upload = session.begin(name)
        writer = upload.member(member, 3)
        writer.write(b"abc")
        with pytest.raises(StorageError):
            session.commit(upload)
        writer.abort()
        upload.abort()
    assert place.payloads.names() == [] and not place.hidden()


@KINDS
def test_a_sweep_removes_what_the_dead_left_and_nothing_of_the_living(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    put(session, FIRST, members)
    living = written(session, SECOND, members)
    dead = place.again().session()
    dead.renew()
    written(dead, "00000003-run.keras", members)
    before = place.hidden()
    place.again().sweep()
    assert place.hidden() == before
    place.kill(dead)
    place.again().sweep()
    assert len(place.hidden()) == 1
    session.renew()
    session.commit(living)
    assert contents(place.payloads, SECOND) == members and contents(place.payloads, FIRST) == members


@KINDS
def test_removal_passes_over_what_is_not_there(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    for number in range(1, 5):
        put(session, f"{number:08d}-run.keras", members)
    place.payloads.remove([])
    place.payloads.remove(["00000001-run.keras", "00000009-run.keras"])
    place.payloads.remove(["00000003-run.keras", "00000001-run.keras"], in_background=True)
    place.payloads.wait_until_freed()
    assert place.again().names() == ["00000002-run.keras", "00000004-run.keras"]
    assert not place.hidden()


@KINDS
def test_an_open_payload_stays_readable_when_it_is_removed(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    put(session, FIRST, members)
    with place.payloads.open(FIRST) as stored:
        readers = {name: stored.member(name) for name in stored.members}
        place.again().remove([FIRST])
        assert {name: reader.read(0, reader.nbytes) for name, reader in readers.items()} == members


@KINDS
def test_quarantine_keeps_everything_under_names_of_its_own(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    saved = put(session, FIRST, members)
    payloads = place.payloads
    aside = payloads.quarantine(FIRST)
    assert payloads.names() == [] and payloads.quarantined() == [aside] == [FIRST]
    put(session, FIRST, dict.fromkeys(members, b"another"))
    other = payloads.quarantine(FIRST)
    assert place.again().quarantined() == sorted([aside, other]) and aside != other
    assert contents(payloads, aside, quarantined=True) == members
    assert payloads.nbytes(aside, quarantined=True) == saved.nbytes
    assert payloads.exists(other, quarantined=True) and not payloads.exists(FIRST)
    payloads.put_back(aside, FIRST)
    with pytest.raises(StorageError):
        payloads.put_back(other, FIRST)
    assert contents(place.again(), FIRST) == members and payloads.quarantined() == [other]


@KINDS
def test_sizes_of_many_are_compared_at_once(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    nbytes = put(session, FIRST, members).nbytes
    asked = [(FIRST, nbytes), (FIRST, nbytes + 1), (SECOND, nbytes)]
    assert place.payloads.have_sizes(asked) == [True, False, False]


def test_reads_are_by_offset_and_never_past_the_end(place: Place, session: WriteSession) -> None:
    put(session, FIRST, {ONLY: BYTES})
    with place.payloads.open(FIRST) as stored:
        file = stored.file()
        assert file.nbytes == len(BYTES)
        assert file.read(5000, 3000) == BYTES[5000:8000] and file.read(0, 0) == b""
        assert bytes(file.view(17, 40)) == BYTES[17:57]
        part = file.section(100, 300)
        assert part.nbytes == 300 and part.read(10, 20) == BYTES[110:130]
        assert part.section(5, 9).read(0, 9) == BYTES[105:114]
        assert b"".join(map(bytes, file.parts())) == BYTES
        for offset, count in ((len(BYTES) - 1, 2), (-1, 1), (0, len(BYTES) + 1)):
            with pytest.raises(CorruptPayloadError, match="cut short"):
                file.read(offset, count)
        with pytest.raises(CorruptPayloadError, match="cut short"):
            part.read(299, 2)
        with pytest.raises(CorruptPayloadError, match="member"):
            stored.member("other")


def test_a_directory_is_not_taken_for_a_file(place: Place, session: WriteSession) -> None:
    put(session, FIRST, MEMBERS)
    with place.payloads.open(FIRST) as stored:
        assert not stored.is_single_file
        with pytest.raises(StorageError, match="directory"):
            stored.file()


@KINDS
def test_there_is_a_local_file_for_code_that_needs_a_path(
    place: Place, session: WriteSession, members: dict[str, bytes]
) -> None:
    put(session, FIRST, members)
    itself = place.payloads.local_path(FIRST)
    with place.payloads.as_local_file(FIRST) as path:
        assert path.name == FIRST and itself in (None, path)
        assert {name: (path / name if name else path).read_bytes() for name in members} == members
    assert path.exists() is (itself is not None)
    with (
        pytest.raises((CorruptPayloadError, FileNotFoundError)),
        place.payloads.as_local_file(SECOND) as path,
    ):
        path.read_bytes()


def test_a_payload_is_shown_at_a_path(place: Place, session: WriteSession, tmp_path: Path) -> None:
    target = tmp_path / "models" / "best.keras"
    put(session, FIRST, {ONLY: BYTES})
    put(session, SECOND, {ONLY: BYTES[:-1]})
    assert not place.payloads.is_shown_at(FIRST, target)
    for name, data in ((FIRST, BYTES), (SECOND, BYTES[:-1])):
        place.payloads.publish(name, target)
        assert target.read_bytes() == data
        assert place.again().is_shown_at(name, target)
    assert not place.payloads.is_shown_at(FIRST, target)
    place.payloads.remove([FIRST, SECOND])
    assert target.read_bytes() == BYTES[:-1] and [path.name for path in target.parent.iterdir()] == [
        target.name
    ]


def test_several_members_are_not_shown_at_a_path(place: Place, session: WriteSession, tmp_path: Path) -> None:
    put(session, FIRST, MEMBERS)
    target = tmp_path / "best.keras"
    target.write_bytes(b"the old one")
    with pytest.raises(InvalidArgumentError):
        place.payloads.publish(FIRST, target)
    assert target.read_bytes() == b"the old one"


def test_other_processes_write_members_of_one_upload(
    place: Place, session: WriteSession, tmp_path: Path
) -> None:
    upload = session.begin(FIRST)
    theirs = place.again().join(upload.share())
    for name, data in MEMBERS.items():
        here = upload if name == "process_0/data" else theirs
        path = tmp_path / "made by an engine"
        path.write_bytes(data)
        reported = here.add_file(name, path)
        if here is theirs:
            assert place.payloads.names() == []
            upload.add(name, reported)
    session.commit(upload)
    assert contents(place.payloads, FIRST) == MEMBERS
    assert place.payloads.nbytes(FIRST) == upload.written.nbytes


def test_members_of_an_upload_that_was_aborted_do_not_come_back(
    place: Place, session: WriteSession, tmp_path: Path
) -> None:
    """Another process that was slow may still write: nothing of it stays, and the upload is not made again."""
    upload = session.begin(FIRST)
    token = upload.share()
    theirs = place.again().join(token)
    slow = theirs.member("process_1/data", len(BYTES))
    slow.write(BYTES)
    upload.abort()
    with pytest.raises(StorageError):
        late = theirs.member("process_1/more", len(BYTES))
        late.write(BYTES)
        late.finish()
    with suppress(StorageError):
        slow.finish()
    with pytest.raises(StorageError):
        place.again().join(token)
    assert place.payloads.names() == []
    assert place.hidden() == []


def test_an_engine_writes_into_the_upload_itself(place: Place, session: WriteSession) -> None:
    upload = session.begin(FIRST)
    directory = upload.local_directory()
    if directory is None:
        pytest.skip("there is no local directory: `add_file` copies")
    (directory / "ocdbt.process_0").mkdir()
    (directory / "ocdbt.process_0" / "d").write_bytes(BYTES)
    (directory / "left over").write_bytes(b"")
    upload.add_file("ocdbt.process_0/d", directory / "ocdbt.process_0" / "d")
    with pytest.raises(StorageError, match="not the members"):
        session.commit(upload)
    (directory / "left over").unlink()
    session.commit(upload)
    assert contents(place.payloads, FIRST) == {"ocdbt.process_0/d": BYTES}


@pytest.mark.parametrize("token", ["", "a", "../a:00000001-run.keras", f"a:../{FIRST}", "a:notes.txt"])
def test_a_token_leads_nowhere_else(place: Place, token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        place.payloads.join(token)


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../b"])
def test_a_member_stays_inside_its_payload(place: Place, session: WriteSession, name: str) -> None:
    upload = session.begin(FIRST)
    with pytest.raises(InvalidArgumentError):
        upload.member(name, 1)
    upload.abort()


def test_a_payload_is_one_file_or_several(session: WriteSession) -> None:
    upload = session.begin(FIRST)
    upload.member(ONLY, 1).finish()
    for name in ("part", ONLY):
        with pytest.raises(InvalidArgumentError):
            upload.member(name, 1)
    upload.abort()


@KINDS
@pytest.mark.parametrize("fault", ["no room", "connection lost", "commit refused"])
def test_a_save_that_fails_leaves_everything_as_it_was(
    place: Place, session: WriteSession, members: dict[str, bytes], fault: str
) -> None:
    put(session, FIRST, members)
    with place.failing(fault):
        upload = None
        with pytest.raises(DiskFullError if fault == "no room" else StorageError):
            upload = written(session, SECOND, members)
            session.commit(upload)
        if upload is not None:
            assert not upload.is_committed
            upload.abort()
    assert place.payloads.names() == [FIRST] and not place.payloads.exists(SECOND)
    assert not place.hidden()
    session.renew()
    put(session, SECOND, members)
    assert contents(place.again(), FIRST) == contents(place.again(), SECOND) == members


@pytest.mark.parametrize("offset", [0, 4095, 4096, len(BYTES) - 1])
def test_a_flipped_bit_is_found_by_the_digest(place: Place, session: WriteSession, offset: int) -> None:
    saved = put(session, FIRST, {ONLY: BYTES})
    with (
        place.flip(FIRST, offset),
        place.payloads.open(FIRST) as stored,
        pytest.raises(CorruptPayloadError, match="digest"),
    ):
        stored.verify(saved.nbytes, saved.digest)


@KINDS
def test_local_bytes_and_names_are_synced_before_the_rename_and_the_rename_after(
    tmp_path: Path, members: dict[str, bytes]
) -> None:
    place = LocalPlace(tmp_path)
    session = place.payloads.session()
    session.renew()
    steps: list[tuple[str, str]] = []

    def note(operation: str, path: Path, phase: str) -> None:
        if phase == "after":
            steps.append((operation, path.relative_to(place.layout.root).as_posix()))

    with io_hook(note):
        put(session, FIRST, members)
    renamed = steps.index(("rename", f"checkpoints/{FIRST}"))
    assert steps[renamed + 1 :] == [("fsync", "checkpoints"), ("fsync", "tmp")]
    before = {path.partition("/")[2].partition("/")[2] for step, path in steps[:renamed] if step == "fsync"}
    folders = {member.rpartition("/")[0] for member in members}
    assert before == set(members) | folders
    written_at = {path for step, path in steps if step == "write"}
    for path in written_at:
        assert steps.index(("fsync", path)) > max(
            at for at, step in enumerate(steps) if step == ("write", path)
        )


def test_a_list_that_is_old_misleads_nobody_who_asks_again(tmp_path: Path) -> None:
    place = ObjectPlace(tmp_path)
    session = place.payloads.session()
    session.renew()
    put(session, FIRST, {ONLY: BYTES})
    place.bucket.stale = list(place.bucket.objects)
    put(session, SECOND, {ONLY: BYTES})
    place.payloads.remove([FIRST])
    assert place.payloads.names() == [FIRST]
    assert [name for name in (FIRST, SECOND) if place.payloads.exists(name)] == [SECOND]


def test_a_place_without_payloads_is_removed(place: Place, session: WriteSession) -> None:
    put(session, FIRST, MEMBERS)
    place.payloads.check()
    assert not place.payloads.dismantle()
    session.close()
    place.payloads.remove([FIRST])
    assert place.payloads.dismantle()


def test_a_store_has_the_payloads_that_are_mounted_for_it(
    place: Place, session: WriteSession, tmp_path: Path
) -> None:
    put(session, FIRST, MEMBERS)
    layout = Layout(tmp_path / "elsewhere")
    assert payloads_at(layout).names() == [] and not layout.holds_payloads()
    with mounted(layout.root, place.payloads):
        assert payloads_at(layout).names() == [FIRST] and layout.holds_payloads()
    assert payloads_at(layout).names() == []
