"""The revisions lead to the schema of the tables; creation and upgrade are atomic, and keep what an old store holds."""

from __future__ import annotations

import io
import itertools
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

import write_schema
from ckptstore.errors import (
    CorruptManifestError,
    DiskFullError,
    SchemaError,
    SchemaTooNewError,
    SchemaTooOldError,
    StorageError,
    StoreNotFoundError,
)
from ckptstore.manifest import schema
from ckptstore.manifest.engine import APPLICATION_ID
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.tables import metadata
from manifests import DIED, add, die_at_statement, files, in_fork, new_attempt

ROOT = Path(__file__).resolve().parent.parent.parent
Step = Callable[[], object]

# The hardest that an upgrade may do to SQLite: make a table again under its name, with rows that refer to it.
NOW = schema.HEAD
NEXT_HEAD = f"{int(NOW) + 1:04}"
NEXT = '''
"""Add a note to each run, and forbid empty names."""

import sqlalchemy as sa
from alembic import op

revision = "{next}"
down_revision = "{head}"


def upgrade() -> None:
    op.execute("DROP VIEW checkpoint_metrics")
    op.execute("DROP VIEW checkpoint_list")
    op.execute("DROP VIEW metric_ranges")
    op.execute("DROP VIEW run_history")
    op.execute("DROP VIEW attempt_list")
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("note", sa.Text))
        runs.create_check_constraint("ck_runs_name", "length(name) > 0")
    op.execute("UPDATE runs SET note = 'from {head}'")
    with op.batch_alter_table("checkpoints") as checkpoints:
        checkpoints.add_column(sa.Column("host", sa.Text))
    op.execute("CREATE VIEW checkpoint_list AS SELECT * FROM checkpoints")
'''


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder / "manifest.sqlite"


@pytest.fixture
def old(path: Path) -> Path:
    """A manifest of today's revision, with something in every table."""
    manifest = Manifest.open(path)
    for number in range(5):
        add(manifest, "a" if number % 2 else "b", metrics={"loss": 1.0 / (number + 1), "odd": float("nan")})
    manifest.tags.put(2, "production")
    manifest.attempts.begin(new_attempt("a"))
    manifest.close()
    return path


@pytest.fixture
def next_release(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ckptstore with one revision more, released after `old` was made; its migrations' directory."""
    migrations = tmp_path / "migrations 100%"
    shutil.copytree(ROOT / "migrations", migrations, ignore=shutil.ignore_patterns("__pycache__"))
    (migrations / "versions" / "add_note.py").write_text(NEXT.lstrip().format(head=NOW, next=NEXT_HEAD))
    monkeypatch.setattr(schema, "MIGRATIONS", (tmp_path / "nowhere", migrations))
    monkeypatch.setattr(schema, "HEAD", NEXT_HEAD)
    return migrations


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of the tables that the code knows, in their columns."""
    with closing(sqlite3.connect(path)) as database:
        return {
            table.name: database.execute(
                f"SELECT {', '.join(table.columns.keys())} FROM {table.name} ORDER BY 1, 2"
            ).fetchall()
            for table in metadata.sorted_tables
        }


def definitions(path: Path) -> list[tuple[str, str]]:
    """Return name and SQL of all tables, indexes and views."""
    with closing(sqlite3.connect(path)) as database:
        query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY 1"
        return database.execute(query).fetchall()


def shapes(path: Path) -> list[tuple[str, list[str]]]:
    """Return the definitions, without the order of lines: alembic copies constraints in any order."""
    return [
        (name, sorted(filter(None, (line.strip(" ,\t") for line in sql.splitlines()))))
        for name, sql in definitions(path)
    ]


# --- models and revisions ----------------------------------------------------------------------------


def test_head_is_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    assert scripts.get_heads() == [schema.HEAD]


def test_revisions_stand_alone() -> None:
    for revision in (ROOT / "migrations" / "versions").glob("*.py"):
        assert not re.search(r"^\s*(import|from) ckptstore", revision.read_text(), re.MULTILINE)


def test_tables_and_head_agree(path: Path) -> None:
    Manifest.open(path).close()
    with schema.migration(path) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_tables_and_head_have_the_same_sql(path: Path) -> None:
    """Checks, partial indexes and WITHOUT ROWID too, which alembic does not compare."""
    Manifest.open(path).close()
    made = {name: " ".join(sql.split()) for name, sql in definitions(path)}
    dialect = sqlite.dialect()  # type: ignore[no-untyped-call]

    def meant(element: CreateTable | CreateIndex) -> str:
        return " ".join(str(element.compile(dialect=dialect)).split())

    for table in metadata.sorted_tables:
        assert made.pop(table.name) == meant(CreateTable(table))
        for index in table.indexes:
            assert made.pop(str(index.name)) == meant(CreateIndex(index))
    assert sorted(made) == [
        "alembic_version",
        "attempt_list",
        "checkpoint_list",
        "checkpoint_metrics",
        "metric_ranges",
        "run_history",
    ]


def test_a_new_manifest_equals_the_result_of_all_revisions(path: Path, tmp_path: Path) -> None:
    """If this fails after a new revision: `python tools/write_schema.py`."""
    by_revisions = tmp_path / "by revisions.sqlite"
    schema.upgrade(by_revisions)
    Manifest.open(path).close()
    assert shapes(path) == shapes(by_revisions)
    for place in (path, by_revisions):
        with closing(sqlite3.connect(place)) as database:
            assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.HEAD,)]
            assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
            ((number, store, moment, version),) = database.execute("SELECT * FROM store").fetchall()
            assert (number, version) == (1, 1) and uuid.UUID(store).version == 4
            assert datetime.fromisoformat(moment).utcoffset() == timedelta(0) and len(moment) == 32
    assert write_schema.TARGET.read_text(encoding="utf-8").count(";\n") == len(write_schema.statements()) + 1


def test_new_manifests_are_created_by_revisions_while_schema_sql_is_outdated(
    next_release: Path, tmp_path: Path
) -> None:
    assert (next_release / schema.SCHEMA).read_text(encoding="utf-8").startswith(f"-- {NOW}\n")
    path = tmp_path / "manifest.sqlite"
    Manifest.open(path).close()
    assert schema.schema_of(path) == NEXT_HEAD
    (next_release / schema.SCHEMA).unlink()
    Manifest.open(tmp_path / "another.sqlite").close()
    assert shapes(path) == shapes(tmp_path / "another.sqlite")


def test_the_command_line_for_developers(path: Path, tmp_path: Path) -> None:
    config = Config(str(tmp_path / "none.ini"), stdout=io.StringIO())
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.set_main_option("path_separator", "os")
    config.cmd_opts = type("Options", (), {"x": [f"manifest={path}"]})()
    command.upgrade(config, "head")
    command.check(config)
    assert schema.schema_of(path) == schema.HEAD
    with closing(Manifest.open(path)) as manifest:
        assert add(manifest) == 1
    with pytest.raises(NotImplementedError, match="backup"):
        command.downgrade(config, "base")
    assert schema.schema_of(path) == schema.HEAD
    config.cmd_opts = None
    with pytest.raises(SystemExit, match="name a manifest"):
        command.upgrade(config, "head")


# --- creation ----------------------------------------------------------------------------------------


def deaths(prepare: Step, work: Step, check: Step) -> int:
    """Let `work` die at its first statement, its second, ... until it passes; return how often it died."""
    for at in itertools.count(1):
        prepare()

        def dying(at: int = at) -> None:
            die_at_statement(at)
            work()

        code = in_fork(dying)
        assert code in (0, DIED)
        check()
        if code == 0:
            return at - 1
    raise AssertionError


def deaths_by_size(prepare: Step, work: Step, check: Step) -> int:
    """Let `work` die at the first byte that it writes beyond page 0 of a file, 1, ... until it passes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for pages in itertools.count():
        prepare()

        def dying(limit: int = pages * 4096 + 100) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            work()

        code = in_fork(dying)
        assert code in (0, -signal.SIGXFSZ)
        check()
        if code == 0:
            return pages
    raise AssertionError


@pytest.mark.parametrize("way", [deaths, deaths_by_size])
def test_creation_is_atomic(path: Path, way: Callable[..., int]) -> None:
    Manifest.open(path).close()  # imports what children would import, each for itself

    def prepare() -> None:
        shutil.rmtree(path.parent)
        path.parent.mkdir()

    def check() -> None:
        try:
            manifest = Manifest.open(path, read_only=True)
        except StoreNotFoundError:
            manifest = Manifest.open(path)
        assert manifest.integrity_problems() == []
        assert manifest.checkpoints.all() == []
        manifest.close()
        with closing(Manifest.open(path)) as writer:
            assert add(writer) == 1

    assert way(prepare, lambda: Manifest.open(path), check) > 20


def test_concurrent_creation(tmp_path: Path) -> None:
    """Threads on a store each, and processes on one: alembic keeps its state in globals."""
    failed: list[BaseException] = []

    def create(number: int) -> None:
        try:
            (tmp_path / str(number)).mkdir()
            with closing(Manifest.open(tmp_path / str(number) / "manifest.sqlite")) as manifest:
                assert add(manifest) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    code = (
        "import sys; from pathlib import Path; from ckptstore.manifest.manifest import Manifest\n"
        "print(Manifest.open(Path(sys.argv[1], 'manifest.sqlite')).reserve_version())"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert sorted(int(child.communicate()[0]) for child in children) == [1, 2, 3, 4]


def test_a_manifest_that_another_process_created_meanwhile_stays(tmp_path: Path) -> None:
    """Both found none before either created one."""
    path = tmp_path / "manifest.sqlite"
    with closing(Manifest.open(path)) as manifest:
        version, uuid = add(manifest), manifest.uuid
    schema.create(path)
    with closing(Manifest.open(path)) as manifest:
        assert manifest.uuid == uuid
        assert [checkpoint.version for checkpoint in manifest.checkpoints.all()] == [version]


# --- older and newer ---------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(old: Path) -> None:
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    before = files(old.parent)
    for attempt in (
        lambda: Manifest.open(old),
        lambda: Manifest.open(old, read_only=True),
        lambda: Manifest.check(old),
    ):
        with pytest.raises(SchemaTooNewError) as caught:
            attempt()
        assert (caught.value.found, caught.value.known) == ("9999", schema.HEAD)
    assert files(old.parent) == before


@pytest.mark.usefixtures("next_release")
def test_an_older_schema_is_not_changed_by_reading(old: Path) -> None:
    before = files(old.parent)
    with pytest.raises(SchemaTooOldError, match="ckptstore upgrade") as caught:
        Manifest.open(old, read_only=True)
    assert (caught.value.found, caught.value.known) == (NOW, NEXT_HEAD)
    Manifest.check(old)
    assert files(old.parent) == before


@pytest.mark.usefixtures("next_release")
def test_an_upgrade(old: Path) -> None:
    before = rows(old)
    manifest = Manifest.open(old)
    assert manifest.schema_version == schema.schema_of(old) == NEXT_HEAD
    assert rows(old) == before
    assert manifest.integrity_problems() == []
    assert add(manifest, "c") == 6
    manifest.close()
    with closing(sqlite3.connect(old)) as database:
        assert database.execute("SELECT name, note FROM runs ORDER BY 1").fetchall() == [
            ("a", f"from {NOW}"),
            ("b", f"from {NOW}"),
            ("c", None),
        ]
    (backup,) = old.parent.glob("*.backup.sqlite")
    assert re.fullmatch(rf"manifest-{NOW}-\d{{8}}T\d{{6}}\.\d{{6}}Z\.backup\.sqlite", backup.name)
    assert rows(backup) == before
    assert schema.schema_of(backup) == NOW
    assert {*os.listdir(old.parent)} <= {backup.name, old.name, f"{old.name}-journal"}


def test_an_upgrade_by_another_process_is_noticed(
    old: Path, next_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as past:
        past.setattr(schema, "HEAD", NOW)
        past.setattr(schema, "MIGRATIONS", (ROOT / "migrations",))
        manifest = Manifest.open(old)
        assert manifest.checkpoints.latest() is not None

        def upgrade() -> None:
            schema.HEAD, schema.MIGRATIONS = NEXT_HEAD, (next_release,)
            Manifest.open(old).close()

        assert in_fork(upgrade) == 0
        for call in (manifest.checkpoints.latest, manifest.reserve_version):
            with pytest.raises(SchemaTooNewError):
                call()
        manifest.close()


@pytest.mark.usefixtures("next_release")
@pytest.mark.parametrize("way", [deaths, deaths_by_size])
def test_an_upgrade_is_atomic(old: Path, way: Callable[..., int], tmp_path: Path) -> None:
    before, content, shape = rows(old), old.read_bytes(), definitions(old)
    trial = shutil.copytree(old.parent, tmp_path / "trial") / old.name
    Manifest.open(trial).close()
    after = shapes(trial)

    def prepare() -> None:
        shutil.rmtree(old.parent)
        old.parent.mkdir()
        old.write_bytes(content)

    def check() -> None:
        backups = list(old.parent.glob("*.backup.sqlite"))
        assert all(rows(backup) == before and definitions(backup) == shape for backup in backups)
        try:
            Manifest.open(old, read_only=True).close()
        except SchemaTooOldError:
            assert definitions(old) == shape
            assert rows(old) == before
        else:
            assert backups
        with closing(Manifest.open(old)) as manifest:
            assert manifest.integrity_problems() == []
            assert shapes(old) == after
            assert rows(old) == before
            assert add(manifest) == 6
        assert not list(old.parent.glob("*.partial"))

    assert way(prepare, lambda: Manifest.open(old), check) > 20


@pytest.mark.usefixtures("next_release")
def test_an_upgrade_that_would_break_references_is_not_committed(old: Path) -> None:
    with closing(sqlite3.connect(old)) as database, database:
        database.execute("UPDATE tags SET version = 99")
    before = rows(old)
    with pytest.raises(CorruptManifestError, match="1 rows refer to rows that are not there"):
        Manifest.open(old)
    assert rows(old) == before
    assert schema.schema_of(old) == NOW


def test_a_revision_that_fails_changes_nothing(old: Path, next_release: Path) -> None:
    revision = next_release / "versions" / "add_note.py"
    revision.write_text(revision.read_text() + '    op.execute("INSERT INTO nowhere VALUES (1)")\n')
    before = rows(old), definitions(old)
    with pytest.raises(CorruptManifestError, match="no such table: nowhere"):
        Manifest.open(old)
    assert (rows(old), definitions(old)) == before


def test_revisions_that_do_not_reach_head(old: Path, next_release: Path) -> None:
    shutil.copy(next_release / "versions" / "add_note.py", next_release / "versions" / "third.py")
    third = next_release / "versions" / "third.py"
    third.write_text(third.read_text().replace(f'revision = "{NEXT_HEAD}"', 'revision = "9999"'))
    with pytest.raises(SchemaError, match=f"cannot be brought to {NEXT_HEAD}"):
        Manifest.open(old)
    assert schema.schema_of(old) == NOW


@pytest.mark.usefixtures("next_release")
def test_no_space_for_the_backup(old: Path) -> None:
    before = rows(old)

    def upgrade() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        with pytest.raises((DiskFullError, StorageError)):
            Manifest.open(old)

    assert in_fork(upgrade) == 0
    assert schema.schema_of(old) == NOW
    assert rows(old) == before
    assert {*os.listdir(old.parent)} <= {old.name, f"{old.name}-journal"}


def test_an_upgraded_store_has_the_same_history_as_a_new_one(path: Path, tmp_path: Path) -> None:
    """The history that 0003 derives from the checkpoints equals what saving them one by one would have recorded."""
    positions = [
        ("a", 0, 3), ("a", 0, None), ("b", 0, None), ("a", 1, 5), ("a", 1, None), ("a", 1, 7), ("a", 2, 3),
        ("a", 2, 5), ("b", 1, None), ("b", 1, None),
    ]  # fmt: skip
    with closing(Manifest.open(path)) as manifest:
        for number, (run, epoch, batch) in enumerate(positions):
            add(manifest, run, epoch=epoch, batch=batch, metrics={"loss": float(number), "odd": float("nan")})
            if number == 5:
                manifest.beginnings.begin("b")
        recorded = rows(path)
    with closing(sqlite3.connect(path)) as database, database:
        for table in ("epoch_metrics", "epochs", "retention", "writers", "attempts"):
            database.execute(f"DROP TABLE {table}")
        for view in ("run_history", "attempt_list"):
            database.execute(f"DROP VIEW {view}")
        for index in (
            "checkpoints_by_epoch", "checkpoints_by_step", "checkpoints_by_time", "unpinned_checkpoints"
        ):  # fmt: skip
            database.execute(f"DROP INDEX {index}")
        database.execute("UPDATE alembic_version SET version_num = '0002'")
    with closing(Manifest.open(path)) as manifest:
        assert manifest.integrity_problems() == []
    assert len(recorded["epochs"]) == 5
    assert rows(path)["epochs"] == recorded["epochs"]
    assert rows(path)["epoch_metrics"] == recorded["epoch_metrics"]
