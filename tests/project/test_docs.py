"""The documents are true: examples print what is shown, promises name tests that exist, pages are found and printed.

`python tests/support/page_examples.py` runs the examples and writes what they print into README and the guide's pages.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest

import ckptstore
import page_examples
from ckptstore.cli.guide import TOPICS
from ckptstore.cli.main import commands, main
from page_examples import (
    BLOCK,
    GUIDE,
    blocks,
    commands_in,
    in_a_process,
    in_order,
    masked,
    pages,
    shown_by,
)

ROOT = page_examples.ROOT
DOCUMENTS = {**pages(), "CONTRIBUTING": ROOT / "CONTRIBUTING.md", "CHANGELOG": ROOT / "CHANGELOG.md"}
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
# Generated, and as long as there are commands.
REFERENCE = "commands"


def text_of(document: str) -> str:
    return DOCUMENTS[document].read_text(encoding="utf-8")


def prose_of(document: str) -> str:
    """Return a document without its blocks of code."""
    return BLOCK.sub("", text_of(document))


# --- examples ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_examples_print_what_is_shown(tmp_path: Path) -> None:
    """One test for all pages: workers that shared them would each run everything."""
    ran = {(output.page, output.start): output for output in in_a_process(tmp_path.resolve())}
    assert {page for page, _ in ran} == {page for page, _ in in_order()}
    unlike = []
    for page in (page for page, _ in in_order()):
        text = text_of(page)
        for block in blocks(text):
            if block.language == "python":
                found = [(block.code, shown_by(text, block), ran[page, block.start].text)]
            elif block.language == "console":
                outputs = ran[page, block.start].commands
                found = [
                    (command, shown, output)
                    for (command, shown), (_, output) in zip(commands_in(block), outputs, strict=True)
                ]
            else:
                found = []
            unlike += [(page, *printed) for printed in found if masked(printed[1]) != masked(printed[2])]
    assert not unlike, "\n".join(
        f"{page}: {code}\nis shown to print\n{shown}\nbut prints\n{output}"
        for page, code, shown, output in unlike
    )


@pytest.mark.parametrize("page", pages())
def test_only_what_an_example_prints_is_shown_as_text(page: str) -> None:
    text = text_of(page)
    shown = [shown_by(text, block) for block in blocks(text, "python")]
    for block in blocks(text, "text"):
        assert block.code in shown, block.code
        assert block.code.strip()


def test_the_first_questions_are_asked_in_the_examples() -> None:
    asked = {
        command.split()[1]
        for page, path in pages().items()
        for block in blocks(path.read_text(encoding="utf-8"), "console")
        for command, _ in commands_in(block)
        if command.startswith("ckptstore ")
    }
    assert {"ls", "show", "best", "latest", "resume-point", "verify", "history", "prune", "import"} <= asked


# --- promises and names ------------------------------------------------------------------------------------


@functools.cache
def names_of_tests(path: Path) -> frozenset[str]:
    """Return the names of the test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def section(text: str, heading: str) -> str:
    """Return what stands under a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def test_every_promise_names_a_test() -> None:
    rows = [
        line for line in section(text_of("README"), "What it promises").splitlines() if line.startswith("|")
    ]
    assert len(rows) > 10
    for row in rows[2:]:
        assert NODE.search(row), f"no test proves: {row}"
    promised = re.split(r"^- ", section(text_of("background"), "What is promised"), flags=re.MULTILINE)[1:]
    assert len(promised) > 5
    for promise in promised:
        assert NODE.search(promise), f"no test proves: {promise}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_is_named_exists(document: str) -> None:
    for file, name in NODE.findall(text_of(document)):
        assert name in names_of_tests(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_are_there(document: str) -> None:
    for name in re.findall(
        r"`(?:python )?((?:tools|tests|migrations|ckptstore)/[\w./-]+)", text_of(document)
    ):
        assert (ROOT / name.rstrip("/.")).exists(), name


def test_names_that_contributing_mentions_are_in_the_code() -> None:
    files = [path for folder in ("ckptstore", "tests", "tools") for path in (ROOT / folder).rglob("*.py")]
    known = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in files)))
    for name in re.findall(r"`@?([A-Za-z_]\w*(?:\.\w+)*)`", prose_of("CONTRIBUTING")):
        parts = set(name.removesuffix(".py").split("."))
        assert parts <= known or any(path.name == name for path in files), name


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^##* (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", prose_of(document)):
        file, _, anchor = target.partition("#")
        path = DOCUMENTS[document].parent / file if file else DOCUMENTS[document]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_pictures_are_small() -> None:
    pictures = [
        path.parent / picture
        for path in pages().values()
        for picture in re.findall(r"^!\[.+\]\((.+)\)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(pictures) > 1
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture


# --- pages -------------------------------------------------------------------------------------------------


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(text_of("README").splitlines()) <= 170
    for topic in set(TOPICS) - {REFERENCE}:
        assert len(text_of(topic).splitlines()) <= 160, topic


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_begins_with_the_question_that_it_answers(topic: str) -> None:
    title, blank, description, end, *_ = text_of(topic).splitlines()
    assert title.startswith("# ")
    assert (blank, end) == ("", "")
    assert re.fullmatch(r"[A-Z]([^.]|\.\w)*\.", description), description


def test_every_page_is_a_topic_and_in_readme() -> None:
    assert {path.stem for path in GUIDE.iterdir()} == set(TOPICS)
    rows = section(text_of("README"), "Read on")
    listed = re.findall(r"^\| \[([\w-]+)\]\(ckptstore/guide/([\w-]+)\.md\) \|", rows, re.MULTILINE)
    assert listed == [(topic, topic) for topic in TOPICS]


@pytest.mark.parametrize("topic", TOPICS)
def test_the_command_prints_each_page(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", topic]) == 0
    plain = capsys.readouterr().out
    without_notes = re.sub(r"<!--.*?-->\n+", "", text_of(topic), flags=re.DOTALL)
    assert plain.strip() == without_notes.strip()
    assert main(["guide", topic, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"topic": topic, "text": plain.removesuffix("\n")}


def test_the_command_lists_the_topics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["topic"] for entry in listed] == list(TOPICS)
    assert main(["guide"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for entry in listed:
        assert f"# {entry['title']}\n\n{entry['description']}\n" in text_of(entry["topic"])
        assert f"{entry['topic']} {entry['description']}" in words


def test_an_unknown_topic_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["guide", "nonsense"]) == 2
    printed = capsys.readouterr().err
    assert "nonsense" in printed
    assert all(topic in printed for topic in TOPICS)


def test_a_terminal_shows_the_page_formatted() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 100))
    command = [sys.executable, "-m", "ckptstore", "guide", "words"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, env={**os.environ, "TERM": "xterm-256color"}
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", buffering=0) as stream:  # EIO is its end
            while piece := stream.read(65536):
                shown += piece
    assert process.returncode == 0
    lines = shown.decode().splitlines()
    assert "\x1b[" in shown.decode()
    assert not any("| --- |" in line for line in lines)
    assert any("quarantine" in line for line in lines)
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= 100


def test_a_page_is_printed_without_what_renders_it(tmp_path: Path) -> None:
    program = (
        "import sys; from ckptstore.cli.main import main; main(['guide', 'start']); "
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not set(done.stderr.split()) & {"rich", "keras", "numpy", "sqlalchemy"}


def test_the_commands_page_is_what_the_commands_say() -> None:
    import write_commands_page

    assert text_of(REFERENCE) == write_commands_page.text(), "run: python tools/write_commands_page.py"
    for name in commands.list_commands(click.Context(commands)):
        assert f"\n## {name}\n" in text_of(REFERENCE), name


# --- versions ----------------------------------------------------------------------------------------------


def test_the_changelog_has_this_version() -> None:
    assert re.search(rf"^## {re.escape(ckptstore.__version__)}\b", text_of("CHANGELOG"), re.MULTILINE)


def test_the_oldest_versions_are_those_of_the_project() -> None:
    text = text_of("README")
    bounds = re.findall(
        r'^    "([\w.-]+)>=([\w.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    for name, release in bounds:
        if name in ("keras", "sqlalchemy", "h5py", "filelock", "alembic", "numpy"):
            assert re.search(rf"{name} {re.escape(release)}\b", text, re.IGNORECASE), f"{name} {release}"


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "digits", tmp_path],
        # Its epochs are long enough for optimized steps to pay.
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed with SIGKILL") == 2
    assert "killed with SIGKILL in the middle of an epoch" in done.stdout
    assert "killed with SIGKILL with all its processes, in the middle of a save" in done.stdout
    assert re.search(r"^identical$", done.stdout, re.MULTILINE)
    assert re.search(r"^\d+ checkpoints, all intact$", done.stdout, re.MULTILINE)
    right = re.search(r"^(\d+) of 297 held-out digits right", done.stdout, re.MULTILINE)
    assert right is not None
    assert int(right[1]) > 250
