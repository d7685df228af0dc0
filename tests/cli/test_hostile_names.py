"""Names in a store that somebody else has made: nothing in them reaches a terminal, a page or a log as a command."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptstore.cli.main import main
from ckptstore.commit.request import SaveRequest
from ckptstore.errors import CorruptPayloadError
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import committer_of, snapshot_of

# Colours, a cleared screen in one byte, text that runs backwards, a line break of Unicode, a bell, and DEL.
NASTY = "n\x1b[31m\x9b2J\u202egpj.\u2028\x07\x7f\U000e0041 损失"
COMMANDS: dict[str, tuple[str, ...]] = {
    "ls": (),
    "show": ("1",),
    "best": ("--metric", "loss"),
    "latest": (),
    "resume-point": (),
    "history": ("--run", NASTY),
    "compare": (),
    "diff": ("1", "2"),
    "verify": (),
    "prune": ("--keep-last", "1", "--dry-run"),
    "tag": ("1", "fine"),
    "untag": (NASTY,),
    "pin": ("1",),
    "repair": (),
    "upgrade": (),
}
FAILING: dict[str, tuple[str, ...]] = {
    "show": (NASTY[1:],),
    "best": ("--metric", "none"),
    "history": ("--run", "none"),
    "ls": ("--where", f"{NASTY} < 1"),
    "export": ("9", f"{NASTY}.keras"),
    "prune": ("--keep-best", f"{NASTY}:max"),
    "plot": (f"{NASTY}.pdf",),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / f"store {NASTY}"
    with CheckpointStore(root) as store:
        for seed in (1, 2):
            plain = snapshot_of(seed)
            # The names of variables come from the payload.
            odd = replace(plain.variables[0], path=f"layers/{NASTY}/vars/0")
            snapshot = replace(
                plain,
                variables=(*plain.variables, odd),
                documents={**plain.documents, "x.json": b'"\xc2\x9b\xe2\x80\xae"'},
            )
            store.claim("default")
            request = SaveRequest(
                run="default", epoch=seed, metrics={"odd": 1.0, "loss": 2.0}, tags=(f"tag{seed}",)
            )
            committer_of(store).commit(snapshot, request)
    detail = json.dumps({"epoch": 0, "batch": None, NASTY: NASTY}, ensure_ascii=False)
    with closing(sqlite3.connect(root / "manifest.sqlite")) as manifest, manifest:
        manifest.execute("UPDATE runs SET name = ?", [NASTY])
        manifest.execute("UPDATE metric_names SET name = ? WHERE name = 'odd'", [NASTY])
        manifest.execute("UPDATE tags SET name = ? WHERE version = 1", [NASTY])
        manifest.execute("UPDATE checkpoints SET extra = ?", [detail])
        manifest.execute("UPDATE events SET kind = ?, detail = ? WHERE id = 1", [NASTY, detail])
        manifest.execute("INSERT INTO events (at, kind, run_id, version, detail) VALUES (?, 'resumed', 1, 1, ?)",
                         ["2026-01-01T00:00:00.000000+00:00", detail])  # fmt: skip
    return root


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_is_a_command_to_a_terminal(
    store: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--json"]):
        code = main([command, str(store), *COMMANDS[command], *options])
        printed = capsys.readouterr()
        assert is_harmless(printed.out) and is_harmless(printed.err), command
        if command != "untag":
            assert code == 0, printed.err
        if options and printed.out:
            assert names_in(json.loads(printed.out)) <= {NASTY}
        elif not options:
            assert printed.out


def names_in(document: Any) -> set[str]:
    """Return the texts of a document that are not harmless as they are, from whatever depth; not paths."""
    if isinstance(document, dict):
        return names_in([*document.keys(), *document.values()])
    if isinstance(document, list):
        return {name for part in document for name in names_in(part)}
    odd = isinstance(document, str) and not document.isprintable() and "/" not in document
    return {document} if odd else set()


@pytest.mark.parametrize("command", FAILING)
def test_no_name_in_an_error_is_a_command_to_a_terminal(
    store: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(store), *FAILING[command]]) != 0
    printed = capsys.readouterr()
    assert is_harmless(printed.out) and is_harmless(printed.err), command
    assert printed.err
    assert main([command, str(store / NASTY), *FAILING[command]]) != 0
    assert is_harmless(capsys.readouterr().err)


def test_files_made_from_a_store_hold_no_command_either(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, folder = tmp_path / "a.html", tmp_path / "card"
    assert main(["report", str(store), str(page)]) == 0
    assert is_harmless(page.read_text(encoding="utf-8"))
    assert main(["export", str(store), "1", str(folder)]) == 0
    for file in ("README.md", "checkpoint.json"):
        assert is_harmless((folder / file).read_text(encoding="utf-8")), file
    printed = capsys.readouterr()
    assert is_harmless(printed.out) and is_harmless(printed.err)


def test_an_exception_shows_names_and_keeps_them() -> None:
    error = CorruptPayloadError(path=Path(NASTY), reason=NASTY)
    assert is_harmless(str(error)) and r"\x1b[31m" in str(error)
    assert error.path == Path(NASTY) and error.reason == NASTY
