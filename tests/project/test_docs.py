"""The documents say what is so: README's examples print what it shows, its promises name tests that exist.

`python tests/project/test_docs.py` runs the examples and writes what they print into the README.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import ckptstore
from ckptstore.cli.main import commands

ROOT = Path(__file__).resolve().parent.parent.parent
README = ROOT / "README.md"
# In place of the folder that the examples really run in.
SHOWN_FOLDER = "/home/ada/digits"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

# What the shell of SQLite prints, where there is none.
SQLITE = """
import sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
for row in database.execute(sys.argv[2]):
    print("|".join("" if value is None else str(value) for value in row))
"""


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of one language."""
    return [code for name, code in BLOCK.findall(README.read_text(encoding="utf-8")) if name == language]


@dataclass(frozen=True)
class Example:
    """One command of the README and what it is shown to print."""

    command: str
    output: str


def examples() -> list[Example]:
    """Return the commands of all console blocks, in order."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command, output))
    return found


def shell(command: str, folder: Path) -> str:
    """Run a command of the README in a folder and return what it prints, as if the folder were another."""
    functions = (
        f'ckptstore() {{ "{sys.executable}" -m ckptstore.cli "$@"; }}\n'
        f'sqlite3() {{ "{sys.executable}" -c \'{SQLITE}\' "$@"; }}\n'
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


def run_python(folder: Path) -> None:
    """Run the Python examples, one after the other, in one process."""
    script = folder / "example.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    environment = {"KERAS_BACKEND": "jax", **os.environ}
    command = [sys.executable, script]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def masked(output: str) -> list[str]:
    """Return the output without what changes from run to run: numbers, digests, widths of columns."""
    output = re.sub(r"xxh3_128:[0-9a-f]{32}", "DIGEST", output)
    output = re.sub(r"(?<![\w])-?\d[\d,]*(\.\d+)?(e[-+]\d+)?", "N", output)
    output = re.sub(r"N( [kM]?B\b)", "N B", output)
    return [re.sub(r"\s+", " ", line).strip() for line in output.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the Python examples have run."""
    made = tmp_path_factory.mktemp("readme")
    run_python(made)
    return made


def test_the_console_examples_print_what_is_shown(folder: Path) -> None:
    shown = examples()
    assert {"ls", "show", "best", "latest", "resume-point", "verify"} <= {
        example.command.split()[1] for example in shown if example.command.startswith("ckptstore")
    }
    for example in shown:
        assert masked(shell(example.command, folder)) == masked(example.output), example.command


def test_every_command_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for name in commands.list_commands(click.Context(commands)):
        assert f"ckptstore {name}" in text, name


def names_of_tests(path: Path) -> set[str]:
    """Return the names of the test functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def promises() -> list[str]:
    """Return the list items under the heading of the promises."""
    section = re.search(r"^## What it promises\n(.*?)^## ", README.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    return re.split(r"^- ", section[1], flags=re.MULTILINE)[1:]


def test_every_promise_names_a_test_that_exists() -> None:
    assert promises()
    for promise in promises():
        nodes = NODE.findall(promise)
        assert nodes, f"no test proves: {promise}"
        for file, name in nodes:
            assert name in names_of_tests(ROOT / file), f"{file} has no {name}"


def test_every_test_named_anywhere_exists() -> None:
    for document in ROOT.glob("*.md"):
        for file, name in NODE.findall(document.read_text(encoding="utf-8")):
            assert name in names_of_tests(ROOT / file), f"{document.name}: {file} has no {name}"


def test_links_and_files_that_the_readme_names_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:tools|tests|migrations)/[\w./-]+)`", text):
        assert (ROOT / name.rstrip("/")).exists(), name


def test_links_within_the_readme_lead_to_headings() -> None:
    text = README.read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.*)$", re.sub(BLOCK, "", text), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_pictures_are_small() -> None:
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 150_000, picture


@pytest.mark.parametrize(("ends_with", "queued"), [(0, False), (1, False), (75, True)])
def test_the_job_script_asks_to_be_started_again(tmp_path: Path, ends_with: int, queued: bool) -> None:
    [script] = [block for block in blocks("bash") if "#SBATCH" in block]
    around = f"""
        srun() {{ [ "$*" = "python train.py" ] && return {ends_with}; }}
        scontrol() {{ echo "$*" > queued; }}
    """
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-u", "-c", around + script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == ends_with
    assert (tmp_path / "queued").exists() == queued
    assert not queued or (tmp_path / "queued").read_text() == "requeue 7\n"


def test_the_exit_code_in_the_manifest_of_the_job_is_ours() -> None:
    from ckptstore.system.stop_signals import TRY_AGAIN

    [job] = blocks("yaml")
    assert f"values: [{TRY_AGAIN}]" in job
    assert f'"$code" -eq {TRY_AGAIN} ]' in "".join(blocks("bash"))


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(ckptstore.__version__)}\b", text, re.MULTILINE)


def test_the_oldest_versions_are_those_of_the_project() -> None:
    text = README.read_text(encoding="utf-8")
    bounds = re.findall(
        r'^    "([\w.-]+)>=([\w.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M
    )
    for name, release in bounds:
        if name in ("keras", "sqlalchemy", "h5py", "filelock", "alembic"):
            assert re.search(rf"{name} {re.escape(release)}\b", text, re.IGNORECASE), f"{name} {release}"


@pytest.mark.slow
def test_the_demonstration_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "digits", tmp_path],
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
    assert re.search(r"^\d+ checkpoints, all whole$", done.stdout, re.MULTILINE)
    right = re.search(r"^(\d+) of 297 held-out digits right", done.stdout, re.MULTILINE)
    assert right is not None
    assert int(right[1]) > 250


def update() -> None:
    """Write what the examples print into the README."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        run_python(place)
        text = README.read_text(encoding="utf-8")
        for example in examples():
            old = f"$ {example.command}\n{example.output}"
            new = f"$ {example.command}\n{shell(example.command, place)}"
            assert text.count(old) == 1, example.command
            text = text.replace(old, new if example.output.endswith("\n\n") is False else new + "\n")
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    update()
