"""Prints constraints that hold every dependency at the lower bound that pyproject.toml states for it.

What pyproject.toml does not bound (test tools, say) stays at the release in constraints.txt, unless that
could not be installed beside the old ones: `[tool.ckptstore.oldest]` in pyproject.toml says which then.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"^([A-Za-z0-9_.-]+)>=([0-9][0-9a-z.]*)(?:;.*)?$")


def normal(name: str) -> str:
    """Return a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(project: dict[str, object]) -> dict[str, str]:
    """Return the lower bound of each dependency of a parsed pyproject.toml, the backends' included."""
    table = project["project"]
    assert isinstance(table, dict)
    requirements = [*table["dependencies"], *table["optional-dependencies"]["jax"]]
    matches = [BOUND.match(requirement) for requirement in requirements]
    return {normal(match[1]): match[2] for match in matches if match}


def tested() -> dict[str, str]:
    """Return the releases in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {normal(name): release.strip() for name, release in pairs}


def main() -> None:
    """Print one ``name==release`` a line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    special = {normal(name): release for name, release in project["tool"]["ckptstore"]["oldest"].items()}
    for name, release in sorted((tested() | lower_bounds(project) | special).items()):
        print(f"{name}=={release}")


if __name__ == "__main__":
    main()
