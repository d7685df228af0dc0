"""Prints constraints that pin every dependency to its lower bound in pyproject.toml.

A package without a bound (such as test tools) keeps its release in constraints.txt, unless that is incompatible with
the old ones: `[tool.ckptstore.oldest]` in pyproject.toml then names another release.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"^([A-Za-z0-9_.-]+)>=([0-9][0-9a-z.]*)(?:;.*)?$")


def normal(name: str) -> str:
    """Return a package's normalized name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(project: dict[str, object]) -> dict[str, str]:
    """Return the lower bound of each dependency in a parsed pyproject.toml, including those of backends."""
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
    """Print one ``name==release`` on each line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    special = {normal(name): release for name, release in project["tool"]["ckptstore"]["oldest"].items()}
    for name, release in sorted((tested() | lower_bounds(project) | special).items()):
        print(f"{name}=={release}")


if __name__ == "__main__":
    main()
