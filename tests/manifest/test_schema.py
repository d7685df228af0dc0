"""The manifest file: files that are accepted or refused, pragmas, and recovery from writers that died."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from ckptstore.errors import (
    CorruptManifestError,
    DiskFullError,
    InvalidArgumentError,
    NotAStoreError,
    ReadOnlyError,
    StorageError,
    StoreLockedError,
    StoreNotFoundError,
    UnsafeFileSystemError,
)
from ckptstore.manifest import engine as sqlite_engine
from ckptstore.manifest import schema
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.sqlite_errors import translated
from manifests import add, as_nobody, files, in_fork, leave_hot_journal, new


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A manifest of a hundred checkpoints, closed."""
    manifest = Manifest.open(path)
    for _ in range(3):
        add(manifest, metrics={"loss": 1.0})
    manifest.close()
    with closing(sqlite3.connect(path)) as database, database:
        rows = [("2026-01-01T00:00:00.000000+00:00", "filler", "x" * 500)] * 200
        database.executemany("INSERT INTO events (at, kind, detail) VALUES (?, ?, json_quote(?))", rows)
        database.execute("UPDATE events SET detail = json_object('x', detail) WHERE kind = 'filler'")
    return path


@pytest.fixture
def public(filled: Path) -> Iterator[Path]:
    """A copy of `filled` in a directory that everybody may enter."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield Path(shutil.copy(filled, folder / "manifest.sqlite"))
    shutil.rmtree(folder)


# --- making and opening ------------------------------------------------------------------------------


def test_a_new_manifest(path: Path) -> None:
    assert schema.schema_of(path) is None
    assert not path.exists()
    Manifest.open(path).close()
    assert schema.schema_of(path) == schema.HEAD
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (0x636B7074,)
        assert database.execute("SELECT id, next_version, length(uuid) FROM store").fetchall() == [(1, 1, 36)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert files(path.parent).keys() <= {"manifest.sqlite", "manifest.sqlite-journal"}


def test_opening_again_imports_neither_alembic_nor_the_orm(filled: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ckptstore.manifest.manifest import Manifest\n"
        "assert len(Manifest.open(Path(sys.argv[1])).checkpoints.all()) == 3\n"
        "assert Manifest.open(Path(sys.argv[1]), read_only=True).checkpoints.latest().version == 3\n"
        "heavy = {'alembic', 'sqlalchemy.orm', 'sqlalchemy.dialects.postgresql', 'numpy', 'keras', 'h5py'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, filled], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "50%",
        "50%41",
        "what?mode=ro",
        "#1",
        "ünï☃🎯",
        "file:x",
        "a'b\"c",
        "-",
        b"\xff\xfe",
        "a\nb",
        "&;",
    ],
)
def test_unusual_paths(tmp_path: Path, name: str | bytes) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    manifest = Manifest.open(folder / "manifest.sqlite")
    add(manifest)
    assert sorted(os.listdir(folder)) == ["manifest.sqlite", "manifest.sqlite-journal"]
    with closing(Manifest.open(folder / "manifest.sqlite", read_only=True)) as reader:
        latest = reader.checkpoints.latest()
    assert latest is not None
    assert latest.path == folder / "checkpoints" / "00000001-a.keras"
    assert schema.back_up(folder / "manifest.sqlite", "0001").parent == folder
    manifest.close()


def test_a_relative_path_survives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    manifest = Manifest.open(Path("manifest.sqlite"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    add(manifest)
    manifest.close()
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("read_only", [False, True])
def test_pragmas_are_in_force_on_every_connection(filled: Path, read_only: bool) -> None:
    engine = schema.open_manifest(filled, read_only=read_only)
    connections = [engine.connect() for _ in range(12)]  # more than the pool keeps
    common = {"busy_timeout": 30000, "foreign_keys": 1, "trusted_schema": 0}
    writer = {"journal_mode": "truncate", "synchronous": 2, "fullfsync": 1, "query_only": 0}
    expected = common | ({"query_only": 1} if read_only else writer)
    for connection in connections:
        found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected}
        assert found == expected
        connection.close()
    engine.dispose()


def test_a_pragma_that_is_not_in_force_is_an_error(filled: Path) -> None:
    connection = sqlite_engine.connect(filled, "rw")
    with pytest.raises(StorageError, match="page_size is 4096 instead of 512"):
        sqlite_engine.apply_pragmas(connection, filled, (("page_size", "512", 512),))
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")  # closed


def test_a_manifest_that_somebody_switched_to_wal_is_switched_back(filled: Path) -> None:
    with closing(sqlite3.connect(filled)) as database:
        assert database.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    manifest = Manifest.open(filled)
    assert add(manifest) == 4
    manifest.close()
    assert filled.read_bytes()[18:20] == b"\x01\x01"  # the file format of rollback journals


def test_transactions_are_begun_explicitly(filled: Path) -> None:
    seen: list[str] = []
    manifest = Manifest.open(filled)
    with manifest._transactions.reading() as connection:
        connection.connection.driver_connection.set_trace_callback(seen.append)  # type: ignore[union-attr]
    manifest.checkpoints.latest()
    manifest.reserve_version()
    begun = [statement for statement in seen if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]
    assert begun == ["ROLLBACK", "BEGIN", "ROLLBACK", "BEGIN IMMEDIATE", "COMMIT"]
    manifest.close()


# --- what is refused ---------------------------------------------------------------------------------


def test_reading_without_a_manifest(path: Path) -> None:
    with pytest.raises(StoreNotFoundError) as caught:
        Manifest.open(path, read_only=True)
    assert caught.value.path == path.parent
    assert not path.exists()


def test_writing_without_a_directory(path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Manifest.open(path / "below" / "manifest.sqlite")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_instead_of_a_manifest(path: Path, read_only: bool) -> None:
    path.mkdir()
    with pytest.raises(NotAStoreError, match="it is a directory"):
        Manifest.open(path, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE runs (id)",
        "CREATE TABLE alembic_version (version_num); INSERT INTO alembic_version VALUES ('0001')",
        "PRAGMA application_id = 1; CREATE TABLE t (x)",
        "PRAGMA application_id = 1",
    ],
)
def test_another_programs_database_is_left_alone(path: Path, script: str, read_only: bool) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(script)
    before = files(path.parent)
    for attempt in (lambda: Manifest.open(path, read_only=read_only), lambda: Manifest.check(path)):
        with pytest.raises(NotAStoreError, match="another program's database"):
            attempt()
    assert files(path.parent) == before


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", ["text", "cut", "header", "zeros"])
def test_a_damaged_file_is_left_alone(filled: Path, damage: str, read_only: bool) -> None:
    whole = filled.read_bytes()
    damaged = {
        "text": b"no database at all " * 1000,
        "cut": whole[: len(whole) // 2],
        "header": b"\0" * 16 + whole[16:],
        "zeros": whole[:100] + b"\0" * (len(whole) - 100),
    }
    filled.write_bytes(damaged[damage])
    before = files(filled.parent)
    with pytest.raises(CorruptManifestError) as caught:
        Manifest.open(filled, read_only=read_only)
    assert "\n" not in str(caught.value)
    assert files(filled.parent) == before


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("DROP TABLE alembic_version", "does not say which schema"),
        ("DELETE FROM alembic_version", "says 0 times which schema"),
        ("INSERT INTO alembic_version VALUES ('0000')", "says 2 times which schema"),
    ],
)
def test_a_manifest_without_its_schema_revision(filled: Path, script: str, reason: str) -> None:
    with closing(sqlite3.connect(filled)) as database, database:
        database.execute(script)
    with pytest.raises(CorruptManifestError, match=reason):
        Manifest.open(filled)


def test_damage_found_after_opening(filled: Path) -> None:
    manifest = Manifest.open(filled)
    with closing(sqlite3.connect(filled)) as database, database:
        database.execute("UPDATE checkpoints SET created_at = 'yesterday' WHERE version = 2")
        database.execute("UPDATE checkpoints SET extra = '{' WHERE version = 3")
        database.execute("DROP TABLE monitors")
    for call in (
        lambda: manifest.checkpoints.get(2),
        lambda: manifest.checkpoints.get(3),
        lambda: manifest.runs.monitors("a"),
    ):
        with pytest.raises(CorruptManifestError):
            call()
    assert manifest.checkpoints.get(1) is not None
    manifest.close()


def make_empty(path: Path, how: str) -> None:
    """Leave a manifest without a table, as a crash during its creation may."""
    if how == "zero bytes":
        path.touch()
        return
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE t (x); DROP TABLE t; VACUUM")
        if how == "ours":
            database.execute("PRAGMA application_id = 0x636B7074")
    assert path.stat().st_size > 0


@pytest.mark.parametrize("how", ["zero bytes", "tableless", "ours"])
def test_an_empty_manifest_is_new_only_without_payloads(path: Path, how: str) -> None:
    make_empty(path, how)
    with pytest.raises(StoreNotFoundError):
        Manifest.open(path, read_only=True)
    payload = path.parent / "checkpoints" / "00000001-a.keras"
    payload.parent.mkdir()
    payload.touch()
    before = files(path.parent)
    for read_only in (False, True):
        with pytest.raises(CorruptManifestError, match="empty, though there are payloads"):
            Manifest.open(path, read_only=read_only)
    assert files(path.parent) == before
    payload.unlink()
    Manifest.check(path)
    manifest = Manifest.open(path)
    assert add(manifest) == 1
    manifest.close()


def test_the_location_of_the_migrations_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (path.parent / "nowhere",))
    with pytest.raises(StorageError, match="migrations are missing"):
        Manifest.open(path)
    assert not path.exists()


# --- reading only ------------------------------------------------------------------------------------


def test_reading_writes_nothing(filled: Path) -> None:
    before = files(filled.parent)
    manifest = Manifest.open(filled, read_only=True)
    assert len(manifest.checkpoints.all()) == 3
    with pytest.raises(ReadOnlyError, match="reserve_version"):
        manifest.reserve_version()
    with manifest._transactions.reading() as connection, pytest.raises(OperationalError):
        connection.exec_driver_sql("DELETE FROM tags")
    manifest.close()
    assert files(filled.parent) == before


def test_reading_needs_no_write_permission(public: Path) -> None:
    def read() -> None:
        manifest = Manifest.open(public, read_only=True)
        assert len(manifest.checkpoints.all()) == 3
        manifest.close()

    def write() -> None:
        with pytest.raises(StorageError) as caught:
            Manifest.open(public).reserve_version()
        assert caught.value.errno == errno.EROFS

    assert as_nobody(read) == 0
    assert as_nobody(write) == 0


def test_a_reader_without_read_permission(public: Path) -> None:
    public.chmod(0)

    def read() -> None:
        with pytest.raises(StorageError) as caught:
            Manifest.open(public, read_only=True)
        assert caught.value.errno == errno.EACCES

    assert as_nobody(read) == 0


# --- what a dead writer leaves -----------------------------------------------------------------------


def whole(manifest: Manifest) -> bool:
    checkpoints = manifest.checkpoints.all()
    digests = [f"xxh3_128:{version:032x}" for version in (1, 2, 3)]
    kinds = {event.kind for event in manifest.events.find()}
    return (
        [point.digest for point in checkpoints] == digests
        and kinds == {"saved", "filler"}
        and manifest.integrity_problems() == []
    )


def test_opening_for_reading_after_a_writer_died_in_mid_commit(filled: Path) -> None:
    leave_hot_journal(filled)
    with closing(sqlite_engine.connect(filled, "ro")) as connection:
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("SELECT * FROM store")
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK
    manifest = Manifest.open(filled, read_only=True)
    assert whole(manifest)
    manifest.close()


def test_a_reader_open_before_the_writer_died(filled: Path) -> None:
    manifest = Manifest.open(filled, read_only=True)
    assert whole(manifest)
    leave_hot_journal(filled)
    assert whole(manifest)
    manifest.close()


def test_opening_for_writing_after_a_writer_died_in_mid_commit(filled: Path) -> None:
    leave_hot_journal(filled)
    Manifest.check(filled)
    manifest = Manifest.open(filled)
    assert whole(manifest)
    assert add(manifest) == 4
    manifest.close()


def test_a_reader_without_write_permission_reports_the_dead_writer(public: Path) -> None:
    opened_before = Manifest.open(public, read_only=True)
    assert whole(opened_before)
    leave_hot_journal(public)
    journal = public.with_name("manifest.sqlite-journal")
    before = public.read_bytes(), journal.read_bytes()

    def read() -> None:
        for attempt in (lambda: Manifest.open(public, read_only=True), opened_before.checkpoints.latest):
            with pytest.raises(StorageError, match="a writer died in mid-commit") as caught:
                attempt()
            assert "open the store once" in caught.value.hint

    assert as_nobody(read) == 0
    assert (public.read_bytes(), journal.read_bytes()) == before
    assert whole(opened_before)
    opened_before.close()


def test_a_hot_journal_of_the_creation(path: Path) -> None:
    """The file has pages, but the journal says that there were none: a reader finds no store yet."""

    def die() -> None:
        connection = sqlite_engine.connect(path, "rwc")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE runs (x)")
        connection.executemany("INSERT INTO runs VALUES (?)", [("x" * 1000,)] * 500)
        os._exit(0)

    assert in_fork(die) == 0
    assert path.stat().st_size > 0
    with pytest.raises(StoreNotFoundError):
        Manifest.open(path, read_only=True)
    assert in_fork(lambda: path.unlink() or die()) == 0
    manifest = Manifest.open(path)
    assert add(manifest) == 1
    manifest.close()


# --- failures ----------------------------------------------------------------------------------------


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a tenth of a second for a lock instead of half a minute."""
    monkeypatch.setattr(sqlite_engine, "BUSY_TIMEOUT_S", 0.1)
    for name in ("READER_PRAGMAS", "WRITER_PRAGMAS"):
        kept = tuple(pragma for pragma in getattr(sqlite_engine, name) if pragma[0] != "busy_timeout")
        monkeypatch.setattr(sqlite_engine, name, kept)


@pytest.mark.usefixtures("short_timeout")
def test_another_writer_that_holds_the_lock_too_long(filled: Path) -> None:
    manifest = Manifest.open(filled)
    with closing(sqlite3.connect(filled, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert manifest.checkpoints.latest() is not None
        with pytest.raises(StoreLockedError):
            manifest.reserve_version()
        other.execute("ROLLBACK")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreLockedError):
            manifest.checkpoints.latest()
        with pytest.raises(StoreLockedError):
            Manifest.open(filled, read_only=True)
        other.execute("ROLLBACK")
    assert manifest.reserve_version() == 4
    manifest.close()


def test_a_writer_waits_for_another(filled: Path) -> None:
    manifest = Manifest.open(filled)
    with closing(sqlite3.connect(filled, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE store SET next_version = 10")
        timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        timer.start()
        assert manifest.reserve_version() == 10
        timer.join()
    manifest.close()


@pytest.mark.usefixtures("short_timeout")
def test_a_failed_commit_leaves_a_manifest_that_works(filled: Path) -> None:
    manifest = Manifest.open(filled)
    with closing(sqlite3.connect(filled, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM store").fetchall()
        with pytest.raises(StoreLockedError):  # only COMMIT waits for readers
            manifest.reserve_version()
        reader.execute("ROLLBACK")
    assert manifest.reserve_version() == 4
    manifest.close()


def test_a_full_disk_changes_nothing(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(sqlite3.connect(filled)) as database:
        (pages,) = database.execute("PRAGMA page_count").fetchone()
    full = ("max_page_count", str(pages), pages)
    monkeypatch.setattr(sqlite_engine, "WRITER_PRAGMAS", (*sqlite_engine.WRITER_PRAGMAS, full))
    manifest = Manifest.open(filled)
    with pytest.raises(DiskFullError) as caught:
        manifest.add_checkpoint(new(4, extra={"long": "x" * 100_000}))
    assert caught.value.errno == errno.ENOSPC
    assert whole(manifest)
    assert manifest.checkpoints.get(4) is None
    assert manifest.reserve_version() == 4
    manifest.close()


def test_a_failing_write_changes_nothing(filled: Path) -> None:
    """Files may no longer grow: an I/O error of the operating system's, in the middle of a commit."""
    import resource

    def fail() -> None:
        manifest = Manifest.open(filled)
        limit = filled.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(StorageError) as caught:
            manifest.add_checkpoint(new(4, extra={"long": "x" * 1_000_000}))
        assert caught.value.errno in (errno.EIO, errno.ENOSPC)
        assert whole(manifest)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert manifest.add_checkpoint(new(4)).version == 4
        manifest.close()

    assert in_fork(fail) == 0
    with closing(Manifest.open(filled)) as manifest:
        assert manifest.integrity_problems() == []


def test_a_closed_manifest_is_an_error(filled: Path) -> None:
    manifest = Manifest.open(filled)
    manifest.close()
    manifest.close()
    with pytest.raises(InvalidArgumentError, match="it is closed"):
        manifest.checkpoints.latest()


def test_the_file_was_removed_while_it_was_open(filled: Path) -> None:
    manifest = Manifest.open(filled)
    manifest.checkpoints.latest()
    filled.unlink()
    with pytest.raises(StorageError):
        manifest.reserve_version()
    manifest.close()


@pytest.mark.parametrize(
    ("code", "kind", "number"),
    [
        (sqlite3.SQLITE_CORRUPT_INDEX, CorruptManifestError, None),
        (sqlite3.SQLITE_NOTADB, CorruptManifestError, None),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreLockedError, None),
        (sqlite3.SQLITE_LOCKED, StoreLockedError, None),
        (sqlite3.SQLITE_FULL, DiskFullError, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError, errno.EIO),
        (sqlite3.SQLITE_IOERR_LOCK, UnsafeFileSystemError, None),
        (sqlite3.SQLITE_READONLY_DBMOVED, StorageError, errno.ESTALE),
        (sqlite3.SQLITE_READONLY_ROLLBACK, StorageError, errno.EROFS),
        (sqlite3.SQLITE_CANTOPEN, StorageError, errno.ENOENT),
        (sqlite3.SQLITE_PERM, StorageError, errno.EACCES),
        (sqlite3.SQLITE_PROTOCOL, StorageError, None),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, InvalidArgumentError, None),
    ],
)
def test_error_codes_are_translated(path: Path, code: int, kind: type[Exception], number: int | None) -> None:
    cause = sqlite3.OperationalError("said SQLite")
    cause.sqlite_errorcode = code
    for error in (cause, OperationalError("SELECT 1", {}, cause)):
        found = translated(error, path)
        assert type(found) is kind
        assert getattr(found, "errno", None) == number
