"""The package as users install it: the wheel in a separate environment, and the bare checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ckptstore

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Creates a store, and prints where everything came from; independent of this machine.
PROGRAM = """
import json, sys
from pathlib import Path
import ckptstore
from ckptstore.manifest.schema import HEAD, schema_of
with ckptstore.CheckpointStore("made") as store:
    found = {"latest": store.latest(), "schema": store.schema_version, "head": HEAD}
found["in_file"] = schema_of(Path("made/manifest.sqlite"))
found["from"] = str(Path(ckptstore.__file__).resolve().parent)
print(json.dumps(found))
"""


def call(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without the caller's Python settings; return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    call(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder
    )  # fmt: skip
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel and the dependencies of this one; the folder of its programs."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder)}))
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    call(
        sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps",
        "--no-index", wheel, cwd=folder,
    )  # fmt: skip
    # After the wheel, so that the present installation does not come first; its .pth files are not processed.
    (site / "with.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return folder / "bin"


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [info] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = archive.read(info).decode()
    assert {"ckptstore/py.typed", "ckptstore/migrations/env.py"} <= names
    revisions = {
        f"ckptstore/migrations/versions/{path.name}" for path in (ROOT / "migrations/versions").glob("*.py")
    }
    assert revisions
    assert revisions <= names
    pages = {f"ckptstore/guide/{path.name}" for path in (ROOT / "ckptstore/guide").iterdir()}
    assert len(pages) > 10
    assert pages <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ckptstore"}
    assert not [name for name in names if "__pycache__" in name]
    assert f"Version: {ckptstore.__version__}\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == ckptstore.__version__


def test_the_installed_wheel_creates_a_store_elsewhere(installed: Path, tmp_path: Path) -> None:
    found = json.loads(call(installed / "python", "-c", PROGRAM, cwd=tmp_path))
    assert Path(found["from"]).is_relative_to(installed.parent.resolve())
    assert found["latest"] is None
    assert found["schema"] == found["in_file"] == found["head"]


def test_the_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    call(installed / "python", "-c", PROGRAM, cwd=tmp_path)
    assert json.loads(call(installed / "ckptstore", "ls", "made", "--json", cwd=tmp_path)) == []
    assert call(installed / "ckptstore", "--version", cwd=tmp_path) == f"ckptstore {ckptstore.__version__}\n"
    assert json.loads(call(installed / "ckptstore", "verify", "made", "--json", cwd=tmp_path))["ok"] is True
    page = (ROOT / "ckptstore" / "guide" / "words.md").read_text(encoding="utf-8")
    assert call(installed / "ckptstore", "guide", "words", cwd=tmp_path) == page


def test_a_bare_checkout_creates_a_store(tmp_path: Path) -> None:
    found = json.loads(call(sys.executable, "-c", PROGRAM, cwd=tmp_path, PYTHONPATH=str(ROOT)))
    assert found["from"] == str(ROOT / "ckptstore")
    assert found["schema"] == found["head"]


def test_constraints_name_releases_only() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines]
    for line in lines:
        name, equals, release = line.partition("==")
        assert name.replace("-", "_").replace(".", "_").isidentifier(), line
        assert equals, line
        assert release.replace(".", "").isalnum(), line
    assert names == sorted(names, key=str.lower)


def test_the_oldest_versions_follow_the_lower_bounds() -> None:
    lines = call(sys.executable, ROOT / "tools" / "oldest.py", cwd=ROOT).splitlines()
    for requirement in PROJECT["dependencies"]:
        name, _, release = requirement.partition(";")[0].partition(">=")
        assert f"{name.lower().replace('_', '-')}=={release}" in lines
