"""README and the guide's pages as the tests read them: their blocks of code, and what these print.

The blocks of a page run in their order: Python in one process for all pages, console commands in a shell. A page with
``<!-- builds on: PAGE -->`` begins with the names and the files that PAGE has left; any other begins with nothing.
A page with ``<!-- needs: PACKAGE ... -->`` is left out where one of the packages is not installed.
Behind a block of Python that prints, a block of text shows what it prints.

    python tests/support/page_examples.py

runs everything, and writes what was printed into the pages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GUIDE = ROOT / "ckptstore" / "guide"
# In place of the folder that the examples really run in.
SHOWN_FOLDER = "/home/ada/digits"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r"^<!-- needs: ([\w ]+) -->$", re.MULTILINE)
_BUILDS_ON = re.compile(r"^<!-- builds on: ([\w-]+) -->$", re.MULTILINE)

# What the shell of SQLite prints, where there is none.
_SQLITE = """
import sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
for row in database.execute(sys.argv[2]):
    print("|".join("" if value is None else str(value) for value in row))
"""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: What follows the opening fence.
        code: What is between the fences.
        start: Where `code` begins in the page's text.
    """

    language: str
    code: str
    start: int


@dataclass(frozen=True, slots=True)
class Printed:
    """The output of a block: of Python, or for a console block each command and its output."""

    page: str
    start: int
    text: str = ""
    commands: tuple[tuple[str, str], ...] = ()


def pages() -> dict[str, Path]:
    """Return README and the guide's pages by their names."""
    return {"README": README, **{path.stem: path for path in sorted(GUIDE.glob("*.md"))}}


def blocks(text: str, language: str | None = None) -> list[Block]:
    """Return a page's blocks of code, of one language or of all."""
    found = [Block(match[1], match[2], match.start(2)) for match in BLOCK.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def shown_by(text: str, block: Block) -> str:
    """Return what a page shows that a block of Python prints: the block of text right after it, or nothing."""
    end = block.start + len(block.code)
    match = re.match(r"```\n+```text\n(.*?)^```$", text[end:], re.MULTILINE | re.DOTALL)
    return "" if match is None else match[1]


def commands_in(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that is shown."""
    parts = re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def masked(output: str) -> list[str]:
    """Return the output without what changes from run to run: numbers, digests, widths of columns."""
    output = re.sub(r"xxh3_128:[0-9a-f]{32}", "DIGEST", output)
    output = re.sub(r"(?<![\w])-?\d[\d,]*(\.\d+)?(e[-+]\d+)?", "N", output)
    output = re.sub(r"N( [kMGT]?B\b)", "N B", output)
    output = re.sub(r"\bN (s|min|h|d) ago\b", "a while ago", output)
    return [re.sub(r"\s+", " ", line).strip() for line in output.strip().splitlines()]


def can_run(text: str) -> bool:
    """Return True if the packages that a page needs are installed."""
    found = _NEEDS.search(text)
    return found is None or all(importlib.util.find_spec(package) for package in found[1].split())


def in_order() -> list[tuple[str, str | None]]:
    """Return the pages that have examples, each after the page that it builds on."""
    base = {}
    for name, path in pages().items():
        text = path.read_text(encoding="utf-8")
        found = _BUILDS_ON.search(text)
        if (blocks(text, "python") or blocks(text, "console")) and can_run(text):
            base[name] = None if found is None else found[1]
    return sorted(base.items(), key=lambda item: item[1] is not None)


def shell(command: str, folder: Path) -> str:
    """Run a command of a page in a folder and return what it prints, as if the folder were another."""
    functions = (
        f'ckptstore() {{ "{sys.executable}" -m ckptstore "$@"; }}\n'
        f'sqlite3() {{ "{sys.executable}" -c \'{_SQLITE}\' "$@"; }}\n'
    )
    done = subprocess.run(
        ["bash", "-c", functions + command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.stdout.replace(str(folder), SHOWN_FOLDER)


def run(page: str, folder: Path, names: dict[str, Any]) -> Iterator[Printed]:
    """Run the blocks of a page in this process, in a folder, and yield what each prints."""
    os.chdir(folder)
    text = pages()[page].read_text(encoding="utf-8")
    for block in blocks(text):
        if block.language == "python":
            stream = io.StringIO()
            # Line numbers as in the page, for the traceback.
            code = "\n" * text[: block.start].count("\n") + block.code
            with contextlib.redirect_stdout(stream):
                exec(compile(code, str(pages()[page]), "exec"), names)
            yield Printed(page, block.start, text=stream.getvalue())
        elif block.language == "console":
            outputs = tuple((command, shell(command, folder)) for command, _ in commands_in(block))
            yield Printed(page, block.start, commands=outputs)


def run_all(folder: Path) -> list[Printed]:
    """Run all pages, each in a folder of its own."""
    left: dict[str, dict[str, Any]] = {}
    results: list[Printed] = []
    for page, base in in_order():
        here = folder / page
        if base is None:
            here.mkdir()
        else:
            shutil.copytree(folder / f"{base}.left", here, symlinks=True)
        names = {"__name__": "__main__"} if base is None else dict(left[base])
        results += run(page, here, names)
        if any(base == page for _, base in in_order()):
            shutil.copytree(here, folder / f"{page}.left", symlinks=True)
            left[page] = names
    return results


def in_a_process(folder: Path) -> list[Printed]:
    """Run all pages in a process of their own; returns what was printed."""
    result = folder / "result.json"
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, __file__, result, work],
        env={"KERAS_BACKEND": "jax", **os.environ},
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [
        Printed(output["page"], output["start"], output["text"], tuple(map(tuple, output["commands"])))
        for output in json.loads(result.read_text(encoding="utf-8"))
    ]


def update() -> None:
    """Write what the examples print into the pages; what differs in numbers alone stays."""
    with tempfile.TemporaryDirectory() as name:
        printed = in_a_process(Path(name).resolve())
    for page, path in pages().items():
        text = path.read_text(encoding="utf-8")
        # From the end, so that what lies before stays where it was.
        for ran in sorted(
            (output for output in printed if output.page == page),
            key=lambda ran: -ran.start,
        ):
            [block] = [block for block in blocks(text) if block.start == ran.start]
            if block.language == "console":
                new = "".join(
                    f"$ {command}\n{shown if masked(shown) == masked(output) else output}"
                    for (command, shown), (_, output) in zip(commands_in(block), ran.commands, strict=True)
                )
                text = text[: block.start] + new + text[block.start + len(block.code) :]
            elif masked(shown_by(text, block)) != masked(ran.text):
                shown = re.compile(r"```(\n+```text\n.*?^```)?", re.MULTILINE | re.DOTALL)
                old = shown.match(text, end := block.start + len(block.code))
                assert old is not None
                new = f"```\n\n```text\n{ran.text}```" if ran.text else "```"
                text = text[:end] + new + text[old.end() :]
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Update the pages; or, where files are named, run all pages in a folder and write a JSON file."""
    if len(sys.argv) == 1:
        update()
        return
    result, folder = map(Path, sys.argv[1:])
    result.write_text(json.dumps([asdict(output) for output in run_all(folder.resolve())]), encoding="utf-8")


if __name__ == "__main__":
    main()
