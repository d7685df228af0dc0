"""The command line: text, JSON and exit code of each command, and how each fails."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest

from ckptstore import errors
from ckptstore.cli.exit_codes import EXIT_CODES, exit_code
from ckptstore.cli.main import commands, main
from ckptstore.commit.request import SaveRequest
from ckptstore.storage.locks import store_lock
from ckptstore.storage.run_lock import RunLock
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of, save
from object_payloads import Bucket, ObjectPayloadStore
from process_shards import SHARDING, opened, save_by_processes
from terminals import AT_ONCE, all_of

ODD = '"; DROP TABLE metrics; --'
COMMANDS = sorted(commands.list_commands(click.Context(commands)))
READING = [["ls"], ["show"], ["best", "--metric", "loss"], ["latest"], ["resume-point"], ["verify"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs, odd metrics, a tag and a pin, which tests must not change."""
    root = tmp_path_factory.mktemp("cli") / "models"
    with CheckpointStore(root) as store:
        save(store, 0, run="day", step=45, metrics={"loss": 0.9, "val_loss": 1.0})
        save(
            store, 1, run="day", step=90, metrics={"loss": 0.5, "val_loss": math.nan}, tags=["good", "first"]
        )
        save(store, 2, run="day", batch=17, step=108, metrics={"loss": 0.25, ODD: math.inf, "损失": -1.5})
        save(store, 7, run="night", metrics={"loss": 0.125}, state=False, extra={"note": "by hand"})
        store.pin(2)
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of it that tests may change."""
    return Path(shutil.copytree(made, tmp_path / "models"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A store without checkpoints."""
    with CheckpointStore(tmp_path / "empty") as store:
        return store.path


def on_a_terminal(*arguments: object, columns: int) -> tuple[int, str, str]:
    """Run a command with a terminal as stdout; return exit code, output and stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ckptstore", *map(str, arguments)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"},
    ) as process:
        os.close(theirs)
        printed = all_of(ours)
        message = process.stderr.read().decode() if process.stderr else ""
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).replace("\r\n", "\n")
    return process.returncode, text, message


class Ran:
    """Output and exit code of one call of the command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> None:
        self.code = main([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: Ran(capsys, *arguments)


def in_a_shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which `ckptstore` is this program."""
    script = f'ckptstore() {{ "{sys.executable}" -m ckptstore "$@"; }}\nset -o pipefail\n{command}'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


# --- ls ------------------------------------------------------------------------------------------


def test_ls_lists_every_checkpoint_oldest_first(run: Any, made: Path) -> None:
    ran = run("ls", made)
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].split()[:5] == ["version", "run", "epoch", "batch", "step"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert re.search(r" 2 +day +1 +end +90 +0.5 +nan .* first, good, \(pinned\)$", lines[2])
    assert re.search(r" 3 +day +2 +17 +108 +0.25 ", lines[3])
    assert "inf" in lines[3] and "-1.5" in lines[3]
    assert all(line == line.rstrip() for line in lines)


def test_ls_as_json_is_a_list_of_checkpoints(run: Any, made: Path) -> None:
    ran = run("ls", made, "--json")
    assert (ran.code, ran.err) == (0, "")
    documents = ran.json
    assert [document["version"] for document in documents] == [1, 2, 3, 4]
    assert documents[1]["metrics"] == {"loss": 0.5, "val_loss": "NaN"}
    assert documents[2]["metrics"] == {"loss": 0.25, ODD: "Infinity", "损失": -1.5}
    keys = {
        "version", "run", "epoch", "batch", "step", "metrics", "path", "nbytes", "digest", "created_at",
        "tags", "pinned", "format", "state",
    }  # fmt: skip
    for document in documents:
        assert keys <= set(document)
        assert Path(document["path"]).is_absolute()
        assert Path(document["path"]).stat().st_size == document["nbytes"]
        assert datetime.fromisoformat(document["created_at"]).utcoffset().total_seconds() == 0  # type: ignore[union-attr]


def test_ls_of_one_run_and_with_a_limit(run: Any, made: Path) -> None:
    assert [document["version"] for document in run("ls", made, "--run", "day", "--json").json] == [1, 2, 3]
    assert [document["version"] for document in run("ls", made, "--limit", "2", "--json").json] == [3, 4]
    assert [document["version"] for document in run("ls", made, "--limit", "99", "--json").json] == [
        1,
        2,
        3,
        4,
    ]
    assert "run" not in run("ls", made, "--run", "day").out.splitlines()[0].split()


def test_ls_of_a_store_without_checkpoints(run: Any, empty: Path) -> None:
    ran = run("ls", empty)
    assert (ran.code, ran.out, ran.err) == (0, "", f"{empty}: no checkpoints yet\n")
    assert run("ls", empty, "--json").json == []


def test_ls_shows_missing_checkpoints(run: Any, store: Path) -> None:
    next((store / "checkpoints").glob("00000001-*")).unlink()
    with CheckpointStore(store):
        pass
    line = run("ls", store).out.splitlines()[1]
    assert line.endswith("missing")
    assert run("ls", store, "--json").json[0]["state"] == "missing"


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 80, 120])
def test_ls_leaves_out_columns_on_a_narrow_terminal(made: Path, columns: int) -> None:
    from rich.cells import cell_len

    code, out, message = on_a_terminal("ls", made, columns=columns)
    lines = out.splitlines()
    assert code == 0
    if columns < 20:
        return
    assert len(lines) == 5, "no row is wrapped"
    assert max(map(cell_len, lines)) <= columns
    assert lines[0].split()[0] == "version"
    left_out = re.fullmatch(r"no room for: (.*) \(--json has all\)\n", message)
    shown = lines[0]
    for name in ("step", "loss", "val_loss", "size", "saved", "tags", "损失"):
        is_left_out = left_out is not None and name in left_out[1].split(", ")
        assert is_left_out != (name in re.split(r"\s{2,}|\s", shown)), name


def test_ls_keeps_validation_metrics_longest(tmp_path: Path) -> None:
    names = [f"{prefix}metric_{n}" for prefix in ("", "val_") for n in range(30)]
    with CheckpointStore(tmp_path / "many") as store:
        save(store, 0, metrics=dict.fromkeys(names, 0.5))
    _, out, message = on_a_terminal("ls", tmp_path / "many", columns=60)
    heading = out.splitlines()[0].split()
    assert heading == ["version", "epoch", "batch", "val_metric_0", "val_metric_1"]
    assert "metric_29" in message


def test_names_cannot_control_the_terminal(run: Any, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "odd") as store:
        save(
            store,
            0,
            metrics={"[red]loss[/red]": 1.0, "🔥 :fire:": 2.0},
            tags=["[bold]"],
            extra={"x": "\x1b[2J"},
        )
    for arguments in (["ls"], ["show"], ["latest"]):
        out = run(arguments[0], tmp_path / "odd", *(["1"] if arguments == ["show"] else [])).out
        assert "[red]loss[/red]" in out
        assert "🔥 :fire:" in out
        assert "\x1b" not in out


# --- one checkpoint ------------------------------------------------------------------------------


def test_show_prints_everything_known(run: Any, made: Path) -> None:
    ran = run("show", made, 2)
    assert (ran.code, ran.err) == (0, "")
    details, _, layers = ran.out.partition("\n\n")
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in details.splitlines())
    rows = [re.split(r"  +", line) for line in layers.splitlines()]
    assert rows[1:] == [
        ["layers/dense", "7x5, 5", "float32", "40", "160 B"],
        ["optimizer", "1", "int64", "1", "8 B"],
        ["all", "3", "float32, int64", "41", "168 B"],
    ]
    payload = made / "checkpoints" / "00000002-day.keras"
    assert facts["version"] == "2"
    assert facts["position"] == "epoch 1, end, step 90"
    assert facts["tags"] == "first, good"
    assert facts["pinned"] == facts["resumable"] == "yes"
    assert facts["file"] == str(payload)
    assert f"({payload.stat().st_size:,} bytes)" in facts["size"]
    assert re.fullmatch(r"xxh3_128:[0-9a-f]{32}", facts["digest"])
    assert re.fullmatch(r"[0-9.]+ s of waiting, [0-9.]+ s in all", facts["cost"])
    assert facts["val_loss"] == "nan"
    assert "by hand" in run("show", made, 4).out


def test_show_prints_the_division_of_a_payload(run: Any, tmp_path: Path) -> None:
    root = tmp_path / "store"
    with CheckpointStore(root) as store, opened(save_by_processes(ObjectPayloadStore(Bucket()))) as found:
        store.claim("a")
        committer_of(store).commit(found.format.decode(found), SaveRequest(run="a", epoch=0))
        save(store, 2)
        assert store.verify() == []
    ran = run("show", root, 1)
    assert (ran.code, ran.err) == (0, "")
    details, layers, divided = ran.out.split("\n\n")
    assert re.search(r"^shards +3 processes: [0-9.]+ kB, [0-9.]+ kB, [0-9.]+ kB$", details, re.MULTILINE)
    assert "layers/größe" in layers
    assert [re.split(r"  +", line) for line in divided.splitlines()] == [
        ["layer", "sharding", "parts"],
        ["layers/dense", "batch/2, model/3", "6"],
        ["optimizer", "2"],
    ]
    document = run("show", root, 1, "--json").json
    assert len(document["process_nbytes"]) == 3 and sum(document["process_nbytes"]) < document["nbytes"]
    first = document["variables"][0]
    assert (first["parts"], first["sharding"]) == (6, SHARDING)
    plain = run("show", root, 2, "--json").json
    assert plain["process_nbytes"] is None and set(plain["variables"][0]) == {"path", "shape", "dtype"}
    assert "sharded" in run("ls", root).out


@pytest.mark.parametrize(
    ("ref", "version"), [("3", 3), ("good", 2), ("latest", 4), ("best:loss", 4), ("resume-point", 3)]
)
def test_show_takes_every_kind_of_ref(run: Any, made: Path, ref: str, version: int) -> None:
    assert run("show", made, ref, "--json").json["version"] == version


@pytest.mark.parametrize(
    ("arguments", "version"),
    [
        (["latest"], 4),
        (["latest", "--run", "day"], 3),
        (["resume-point"], 3),
        (["resume-point", "--run", "day"], 3),
        (["best", "--metric", "loss"], 4),
        (["best", "--metric", "loss", "--mode", "max"], 1),
        (["best", "--metric", "loss", "--run", "day"], 3),
        (["best", "--metric", "val_loss"], 1),
        (["best", "--metric", ODD, "--mode", "min"], 3),
    ],
)
def test_one_checkpoint_is_printed_file_first(
    run: Any, made: Path, arguments: list[str], version: int
) -> None:
    command, *options = arguments
    ran = run(command, made, *options)
    assert (ran.code, ran.err) == (0, "")
    file, line = ran.out.splitlines()
    assert Path(file) == next((made / "checkpoints").glob(f"{version:08d}-*"))
    assert line.startswith(f"version {version} | ")
    document = run(command, made, *options, "--json").json
    assert (document["version"], document["path"]) == (version, file)


def test_the_folder_of_a_drop_in_is_accepted_for_its_store(run: Any, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "folder" / ".ckptstore")
    assert run("latest", tmp_path / "folder", "--json").json["version"] == 4


# --- verify and upgrade --------------------------------------------------------------------------


def test_verify_of_an_intact_store(run: Any, made: Path) -> None:
    assert (run("verify", made).code, run("verify", made).out) == (0, "4 checkpoints, all intact\n")
    assert run("verify", made, "--json").json == {"ok": True, "checked": 4, "problems": []}


def test_verify_finds_one_flipped_bit(run: Any, store: Path) -> None:
    payload = store / "checkpoints" / "00000002-day.keras"
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.chmod(0o644)
    payload.write_bytes(data)
    ran = run("verify", store, "--json")
    assert ran.code == 5
    assert not ran.json["ok"] and ran.json["checked"] == 4
    [problem] = ran.json["problems"]
    assert (problem["version"], problem["path"]) == (2, str(payload))
    assert problem["kind"] == "digest"
    ran = run("verify", store)
    assert ran.code == 5
    assert ran.out.splitlines()[0].split() == ["version", "problem", "detail"]
    assert re.match(r" +2  digest  ", ran.out.splitlines()[1])
    assert (run("verify", store, "--shallow").code, run("verify", store, "--shallow").err) == (0, "")


def test_verify_shows_its_progress_on_a_terminal_only(made: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, "verify", str(made), "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        timeout=60,
        check=True,
    )
    os.close(theirs)
    assert b"kB" in all_of(ours)
    assert json.loads(done.stdout)["ok"] is True
    assert in_a_shell(f"ckptstore verify {made}", made).stderr == ""


def test_upgrade_of_a_store_that_is_up_to_date(run: Any, store: Path) -> None:
    ran = run("upgrade", store)
    assert ran.code == 0
    assert re.fullmatch(rf"{store}: already has schema \w+\n", ran.out)
    document = run("upgrade", store, "--json").json
    assert document["from"] == document["to"] and document["upgraded"] is False


# --- failures ------------------------------------------------------------------------------------


def fails(ran: Ran, code: int, *messages: str) -> None:
    """Check that a call failed with one line on stderr and nothing on stdout."""
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("ckptstore: ") and ran.err.count("\n") == 1
    for text in messages:
        assert text in ran.err


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_no_store_is_exit_code_3(run: Any, tmp_path: Path, arguments: list[str], as_json: list[str]) -> None:
    command, *options = arguments
    ref = ["1"] if command == "show" else []
    fails(run(command, tmp_path / "none", *ref, *options, *as_json), 3, "none", "no store here")
    assert list(tmp_path.iterdir()) == [], "nothing was created"


def test_upgrade_creates_no_store(run: Any, tmp_path: Path) -> None:
    fails(run("upgrade", tmp_path / "none"), 3, "no store here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "99"], "no checkpoint '99'"),
        (["show", "nonsense"], "no checkpoint 'nonsense'"),
        (["show", "9" * 40], "no checkpoint"),
        (["show", "best:nonsense"], "no checkpoint has a metric 'nonsense' (metrics here: "),
        (["best", "--metric", "nonsense"], "no checkpoint has a metric 'nonsense' (metrics here: "),
        (["ls", "--run", "dusk"], "no run 'dusk' (runs here: day, night)"),
        (["latest", "--run", "dusk"], "no run 'dusk'"),
        (["best", "--metric", "loss", "--run", "dusk"], "no run 'dusk'"),
        (["resume-point", "--run", "dusk"], "no run 'dusk'"),
        (["resume-point", "--run", "night"], "no checkpoint 'resume-point'"),
    ],
)
def test_what_does_not_exist_is_exit_code_3(run: Any, made: Path, arguments: list[str], message: str) -> None:
    command, *options = arguments
    fails(run(command, made, *options), 3, message)


@pytest.mark.parametrize("arguments", READING[2:5], ids=lambda arguments: arguments[0])
def test_an_empty_store_has_no_checkpoint_to_print(run: Any, empty: Path, arguments: list[str]) -> None:
    command, *options = arguments
    fails(run(command, empty, *options, "--json"), 3, "no checkpoint")


def test_an_unknown_direction_is_a_usage_error(run: Any, made: Path) -> None:
    fails(run("best", made, "--metric", ODD), 2, "--mode")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["show", "x"],
        ["best", "x"],
        ["best", "x", "--metric", "m", "--mode", "up"],
        ["nonsense"],
        ["ls", "x", "-q"],
        ["run", "x", "--grace", "nan", "--", "true"],
        ["run", "x", "--log-limit", "inf", "--", "true"],
        ["watch", "x", "--interval", "nan"],
    ],
)
def test_wrong_usage_is_exit_code_2(run: Any, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: ckptstore" in ran.err


def test_a_held_lock_is_exit_code_4(run: Any, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    wait = inspect.signature(store_lock).parameters["timeout_s"]
    monkeypatch.setitem(store_lock.__wrapped__.__kwdefaults__, wait.name, 0.05)  # type: ignore[attr-defined]
    with store_lock(store / "locks"):
        fails(run("upgrade", store), 4, "lock")
        assert run("ls", store).code == 0, "reading does not wait"


def test_reading_does_not_need_the_lock_of_a_run(run: Any, store: Path) -> None:
    lock = RunLock(store / "locks", "day")
    try:
        assert run("ls", store).code == run("verify", store).code == 0
    finally:
        lock.release()


def test_a_damaged_manifest_is_exit_code_5(run: Any, store: Path) -> None:
    manifest = store / "manifest.sqlite"
    manifest.write_bytes(b"no database at all " * 1000)
    for command in ("ls", "upgrade"):
        fails(run(command, store), 5 if "damaged" in run(command, store).err else 1, "manifest.sqlite")
    assert manifest.read_bytes() == b"no database at all " * 1000


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
def test_a_newer_schema_is_exit_code_6(run: Any, store: Path, arguments: list[str]) -> None:
    with sqlite3.connect(store / "manifest.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    command, *options = arguments
    ref = ["1"] if command == "show" else []
    fails(run(command, store, *ref, *options), 6, "9999", "pip install --upgrade ckptstore")
    fails(run("upgrade", store), 6, "9999")


def test_a_foreign_database_is_refused(run: Any, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "manifest.sqlite") as database:
        database.execute("CREATE TABLE songs (title TEXT)")
    database.close()
    before = (tmp_path / "manifest.sqlite").read_bytes()
    fails(run("ls", tmp_path), 1, "not a ckptstore store")
    fails(run("upgrade", tmp_path), 1, "not a ckptstore store")
    assert (tmp_path / "manifest.sqlite").read_bytes() == before


def test_every_error_has_one_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    codes = {kind.__name__: exit_code(kind.__new__(kind)) for kind in kinds}
    assert {name: code for name, code in codes.items() if code != 1} == {
        "NotFoundError": 3, "StoreNotFoundError": 3, "CheckpointNotFoundError": 3, "RunNotFoundError": 3,
        "MetricNotFoundError": 3, "NoResumePointError": 3, "LogNotFoundError": 3,
        "LockedError": 4, "StoreLockedError": 4, "RunLockedError": 4,
        "RunTakenOverError": 4, "SaveInProgressError": 4, "SupervisorRunningError": 4,
        "CorruptError": 5, "CorruptPayloadError": 5, "CorruptManifestError": 5,
        "NoUsableCheckpointError": 5, "SchemaError": 6,
        "SchemaTooOldError": 6, "SchemaTooNewError": 6, "InvalidArgumentError": 2,
    }  # fmt: skip
    assert exit_code(click.UsageError("")) == 2
    assert len({kind for kind, _ in EXIT_CODES}) == len(EXIT_CODES)


def test_repair_repairs_what_verify_finds(run: Any, store: Path) -> None:
    one, two, three, _ = sorted((store / "checkpoints").iterdir())
    one.unlink()
    two.chmod(0o644)
    two.write_bytes(b"x" + two.read_bytes()[1:])
    three.rename(three.with_name(three.name.replace("00000003", "00000009")))
    found = run("verify", store, "--json")
    assert (found.code, [problem["kind"] for problem in found.json["problems"]]) == (
        5, ["missing", "digest", "missing", "orphan"],
    )  # fmt: skip
    repaired = run("repair", store, "--json")
    assert (repaired.code, repaired.json["ok"], repaired.json["checked"]) == (0, True, 4)
    done = {(problem["version"], problem["kind"]): problem["action"] for problem in repaired.json["problems"]}
    assert done == {
        (None, "orphan"): "put aside in quarantine",
        (1, "missing"): "marked as missing",
        (2, "digest"): "put aside in quarantine, and marked as damaged",
        # The orphan was version 3 under a wrong name, and gets its place back.
        (3, "missing"): "put back from quarantine",
    }
    assert run("verify", store, "--json").json == {"ok": True, "checked": 4, "problems": [], "lost": 2}
    whole = "2 checkpoints, all intact; 2 known to be lost (ckptstore ls tells which)"
    assert run("verify", store).out == f"{whole}\n"
    assert run("repair", store).out == f"{whole}; nothing to repair\n"
    states = {entry["version"]: entry["state"] for entry in run("ls", store, "--json").json}
    assert states == {1: "missing", 2: "damaged", 3: "complete", 4: "complete"}


@pytest.mark.parametrize("damage", ["lost", "not a database", "cut in half"])
def test_repair_rebuilds_a_manifest(run: Any, store: Path, damage: str) -> None:
    before = run("ls", store, "--json").json
    manifest = store / "manifest.sqlite"
    content = manifest.read_bytes()
    if damage == "lost":
        manifest.unlink()
    else:
        manifest.write_bytes(b"x" * 5000 if damage == "not a database" else content[: len(content) // 2])
    assert run("ls", store).code == 5
    assert "ckptstore repair" in run("latest", store).err
    repaired = run("repair", store, "--json")
    assert (repaired.code, repaired.json["checked"]) == (0, 4)
    assert "made again from 4 payloads" in repaired.json["problems"][0]["action"]
    after = run("ls", store, "--json").json
    # A payload does not hold later pins, or the cost of its save.
    for entry in (*before, *after):
        del entry["pinned"], entry["blocked_s"], entry["total_s"]
    assert after == before
    assert run("verify", store).code == 0
    assert len(list((store / "quarantine").glob("manifest-*.sqlite"))) == (damage != "lost")


def test_repair_upgrades_an_older_store_by_itself(run: Any, tmp_path: Path) -> None:
    root = Path(
        shutil.copytree(Path(__file__).parent.parent / "manifest" / "stores" / "0001", tmp_path / "store")
    )
    assert run("verify", root).code == 6
    assert run("repair", root).out == "4 checkpoints, all intact; nothing to repair\n"
    assert run("verify", root).code == 0


# --- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_states_the_exit_codes(run: Any, command: str) -> None:
    ran = run(*([command] if command else []), "--help")
    assert (ran.code, ran.err) == (0, "")
    text = " ".join(ran.out.split())
    assert "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 locked" in text
    assert "5 problems found, 6 schema version" in text
    assert "..." not in ran.out.partition("Commands:")[2], "a summary that does not fit"
    if command:
        assert "--json" in ran.out
        assert ("STORE" in ran.out) == (command != "guide")


def test_the_version_is_printed(run: Any) -> None:
    from ckptstore import __version__

    assert run("--version").out == f"ckptstore {__version__}\n"


# --- processes -----------------------------------------------------------------------------------


def test_an_output_that_is_closed_early_is_not_an_error(made: Path, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "long") as store:
        for seed in range(3):
            save(store, seed, metrics={f"metric_{n}": 0.5 for n in range(4000)})
    done = in_a_shell("ckptstore ls long --json | head -n 1; echo ${PIPESTATUS[@]}", tmp_path)
    assert (done.stdout, done.stderr) == ("[\n0 0\n", "")


def test_a_closed_or_full_output_gives_no_traceback(made: Path) -> None:
    assert in_a_shell(f"ckptstore ls {made} >&-", made).returncode == 0
    assert in_a_shell(f"ckptstore ls {made} 2>&-", made).returncode == 0
    full = in_a_shell(f"ckptstore ls {made} > /dev/full", made)
    assert full.returncode == 1
    assert full.stderr.startswith("ckptstore: ") and full.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_output_with_few_characters_is_not_an_error(made: Path, encoding: str) -> None:
    for command in (f"ls {made}", f"show {made} 3", f"latest {made} --run day", f"ls {made} --json"):
        done = in_a_shell(f"ckptstore {command}", made, PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
        assert (done.returncode, done.stderr) == (0, "")
        assert ("损失" if encoding == "utf-8" else r"\u635f\u5931") in done.stdout


def test_only_a_terminal_gets_colours(made: Path) -> None:
    assert "\x1b" not in in_a_shell(f"ckptstore ls {made}; ckptstore show {made} 1", made).stdout


def test_listing_loads_neither_keras_nor_what_it_does_not_need(made: Path) -> None:
    program = (
        "import sys\nfrom ckptstore.cli.main import main\n"
        f"main(['ls', {str(made)!r}])\nmain(['best', {str(made)!r}, '--metric', 'loss', '--json'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "sqlalchemy" in loaded
    assert not loaded & {
        "keras",
        "jax",
        "torch",
        "tensorflow",
        "alembic",
        "h5py",
        "numpy",
        "ml_dtypes",
        "typer",
    }


# --- retention -----------------------------------------------------------------------------------


def test_prune_shows_what_would_be_removed_and_why_the_rest_stays(run: Any, store: Path) -> None:
    with CheckpointStore(store) as opened:
        for seed in range(8, 12):
            save(opened, seed, run="day", metrics={"loss": float(seed), "val_loss": 1.0 + seed})
    before = {path.name for path in (store / "checkpoints").iterdir()}
    arguments = ["prune", store, "--run", "day", "--keep-last", 1, "--keep-best", "val_loss", 1]
    ran = run(*arguments, "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    stays = {line.split()[0]: line for line in ran.out.splitlines() if " stays " in line}
    assert set(stays) == {"1", "2", "7", "8"}
    assert "keep_best('val_loss', 1, mode='min')" in stays["1"]
    assert "pinned" in stays["2"] and "newest two, to resume from" in stays["7"]
    assert "keep_last(1)" in stays["8"]
    assert re.search(r"^would remove 3 checkpoints, .*; 4 stay$", ran.out, re.MULTILINE)
    document = run(*arguments, "--dry-run", "--json").json
    assert document["dry_run"] is True
    assert [entry["version"] for entry in document["removed"]] == [3, 5, 6]
    assert {entry["version"] for entry in document["kept"]} == {1, 2, 7, 8}
    assert {path.name for path in (store / "checkpoints").iterdir()} == before
    assert run(*arguments).out.startswith("removed 3 checkpoints")
    assert run("verify", store).code == 0
    assert [entry["version"] for entry in run("ls", store, "--json").json] == [1, 2, 4, 7, 8]
    with CheckpointStore(store, read_only=True) as opened:
        (event,) = opened.events(kind="pruned")
        assert event.detail == {"versions": [3, 5, 6]}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name what to keep"),
        (["--keep-last", "0"], 2, "--keep-last"),
        (["--keep-best", "lss", "2", "--mode", "lss", "min"], 3, "no checkpoint has a metric 'lss'"),
        (["--keep-best", "lr", "2"], 2, "cannot be told from its name"),
        (["--keep-best", "loss", "2", "--keep-best", "loss", "1", "--mode", "loss", "up"], 2, "up"),
        (["--keep-tagged"], 2, "keeps none of the checkpoints of run 'night'"),
        (["--max-bytes", "10 apples"], 2, "20 GB"),
        (["--max-bytes", "1 kB"], 2, "is less than the best and the resume point take"),
        (["--keep-within", "soon"], 2, "90m, 12h, 7d or 2w"),
        (["--keep-every-hours", "nan"], 2, "hours=nan"),
        (["--keep-last", "1", "--run", "noon"], 3, "no run 'noon'"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_unreasonable_prune_removes_nothing(
    run: Any, store: Path, arguments: list[str], code: int, message: str, dry: list[str]
) -> None:
    before = {path.name for path in (store / "checkpoints").iterdir()}
    ran = run("prune", store, *arguments, *dry)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert {path.name for path in (store / "checkpoints").iterdir()} == before


def test_tags_and_pins(run: Any, store: Path) -> None:
    assert run("tag", store, "latest", "production").out == "version 4 is production\n"
    ran = run("tag", store, "1", "production")
    assert (ran.out, ran.err) == ("version 1 is production\n", "production was version 4 before\n")
    assert run("show", store, "production", "--json").json["version"] == 1
    assert run("tag", store, "1", "latest").code == 2
    assert run("tag", store, "99", "x").code == 3
    assert run("untag", store, "production").out == "version 1 is no longer production\n"
    assert run("untag", store, "production").code == 3
    assert run("pin", store, "1", "--json").json["pinned"] is True
    assert run("unpin", store, "1").out == "version 1 is not pinned\n"
    assert run("show", store, "1", "--json").json["pinned"] is False


# --- queries ------------------------------------------------------------------------


def test_ls_takes_conditions_and_orders(run: Any, made: Path) -> None:
    def versions(*arguments: object) -> list[int]:
        return [entry["version"] for entry in run("ls", made, "--json", *arguments).json]

    assert versions("--where", "loss < 0.5") == [3, 4]
    assert versions("--order-by", "loss", "--limit", 2) == [4, 3]
    assert versions("--where", "epoch >= 1", "--limit", 2) == [3, 4]
    assert versions("--where", f"metric[{json.dumps(ODD)}] > 0") == [3]
    assert versions("--where", "version > 99") == []
    ran = run("ls", made, "--where", "version > 99")
    assert (ran.code, ran.out) == (0, "") and "no checkpoints meet the condition" in ran.err
    assert run("ls", made, "--where", "los < 1").code == 3
    ran = run("ls", made, "--where", "loss <")
    assert ran.code == 2 and ran.err.count("\n") == 1


def test_the_k_best(run: Any, made: Path) -> None:
    ran = run("best", made, "--metric", "loss", "-k", 2)
    assert [line.split()[0] for line in ran.out.splitlines()] == ["version", "4", "3"]
    found = run("best", made, "--metric", "loss", "--mode", "max", "-k", 3, "--json").json
    assert [entry["version"] for entry in found] == [1, 2, 3]
    assert run("best", made, "--metric", "loss", "-k", 0).code == 2


def test_history_and_compare(run: Any, made: Path, empty: Path) -> None:
    ran = run("history", made)
    assert ran.code == 2 and "day, night" in ran.err
    ran = run("history", made, "--run", "day", "--metric", "val_loss", "--metric", "loss")
    assert [line.split() for line in ran.out.splitlines()] == [
        ["epoch", "batch", "val_loss", "loss", "version"],
        ["0", "end", "1", "0.9", "1"],
        ["1", "end", "nan", "0.5", "2"],
        ["2", "17", "0.25", "3"],
    ]
    document = run("history", made, "--run", "day", "--json").json
    assert [epoch["metrics"].get("loss") for epoch in document["epochs"]] == [0.9, 0.5, 0.25]
    states = {entry["run"]: entry["state"] for entry in run("runs", made, "--json").json}
    ran = run("compare", made, "--metric", "loss")
    assert [line.split() for line in ran.out.splitlines()][1:] == [
        ["day", states["day"], "3", "3", "0", "0.25", "(v3)"],
        ["night", states["night"], "1", "1", "0", "0.125", "(v4)"],
    ]
    (entry,) = run("compare", made, "night", "--json").json
    assert (entry["run"], entry["state"]) == ("night", states["night"])
    assert run("compare", made, "noon").code == 3
    assert run("compare", empty, "--json").json == []


def test_runs_lists_each_run_with_its_state(run: Any, made: Path, empty: Path) -> None:
    document = run("runs", made, "--json").json
    assert [entry["run"] for entry in document] == ["day", "night"]
    assert [entry["checkpoints"] for entry in document] == [3, 1]
    assert [entry["resume_point"] and entry["resume_point"]["version"] for entry in document] == [3, None]
    assert {entry["state"] for entry in document} <= {"interrupted", "finished"}
    ran = run("runs", made)
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0][:3] == ["run", "state", "epochs"]
    assert [line[:2] for line in lines[1:]] == [[entry["run"], entry["state"]] for entry in document]
    assert run("runs", empty).out == ""
    assert "no runs yet" in run("runs", empty).err
    assert run("runs", empty, "--json").json == []
    assert run("runs", made / "nowhere").code == 3


def test_a_living_run_is_shown_by_the_commands_that_list_and_compare(run: Any, store: Path) -> None:
    with CheckpointStore(store) as writing:
        name = "night"  # the run of the newest checkpoint
        writing.beat(epoch=3, batch=1, step=31, metrics={"loss": 0.5}, run=name)
        entry = next(entry for entry in run("runs", store, "--json").json if entry["run"] == name)
        assert (entry["state"], entry["epoch"], entry["batch"], entry["step"]) == ("running", 3, 1, 31)
        assert f"run {name}: running, epoch 3, batch 1" in run("ls", store).err
        assert run("ls", store, "--json").err == ""
        assert f"{name} (running)" in run("show", store, "latest").out
        assert run("show", store, "latest", "--json").json["run_state"] == "running"
        assert run("compare", store, name, "--json").json[0]["state"] == "running"
        assert run("report", store, store.parent / "page.html").code == 0
    page = (store.parent / "page.html").read_text(encoding="utf-8")
    assert f"run {name}: running, epoch 3, batch 1" in page


def test_of_many_runs_ls_counts_the_states(run: Any, tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "many") as store:
        for number in range(6):
            save(store, number, run=f"run-{number}")
            store.beat(epoch=number, run=f"run-{number}")
        ran = run("ls", tmp_path / "many")
    assert ran.err.strip() == "runs: 6 running (ckptstore runs)"


def test_a_long_list_is_printed_one_item_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptstore.cli.output import print_json

    odd = [{"name": "a\u2028b\n\x85", "of": []}, {"of": [1, {"x": None}]}, {}, 3]
    documents: list[object] = [odd, {"ok": True, "many": odd, "none": [], "損失": {"of": odd}}, {}, [], "x"]
    for document in documents:
        print_json(document)
        expected = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        # The same but for what a terminal would take as the end of a line.
        assert capsys.readouterr().out == expected.replace("\u2028", r"\u2028").replace("\x85", r"\u0085")
    monkeypatch.setattr("ckptstore.cli.output._LONG_LIST", 3)
    for document in documents:
        print_json(document)
        assert json.loads(capsys.readouterr().out) == document
    print_json(odd)
    assert len(capsys.readouterr().out.split("\n")) == len(odd) + 3
