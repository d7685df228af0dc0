"""Files whose structures overlap, nest, loop or lie cost a small multiple of their size, in memory and in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptstore.formats.hdf5.metadata import Metadata
from ckptstore.formats.hdf5.text_reader import TextReader
from crash import structures

REFUSALS = {
    "overlapping heaps.weights.h5": "two heaps of texts share bytes",
    "one text for all.weights.h5": "a text is referred to twice",
    "nested groups.weights.h5": "the names of its arrays are longer than they can be",
    "suffixes of one name.weights.h5": "the names of its arrays are longer than they can be",
    "overlapping members.keras": "its archive has members that share bytes",
    "many members.keras": "its archive's directory is larger than it can be",
}


def test_files_that_are_built_to_cost_much_are_refused_early() -> None:
    assert structures.try_bombs() == {name: ([], refusal) for name, refusal in REFUSALS.items()}


def test_structures_that_lie_are_read_or_refused_and_cost_little() -> None:
    """A short run; `tools/crash structures` takes longer."""
    result = structures.fuzz_structures(files=150, seed=1)
    assert result.violations == ()
    assert 50 <= result.refused < 150


@pytest.mark.parametrize(
    ("name", "owner", "method", "found"),
    [
        ("nested groups.weights.h5", Metadata, "charge_name", "bytes of memory"),
        ("one text for all.weights.h5", TextReader, "texts", "bytes of memory"),
    ],
)
def test_a_reader_without_its_bounds_is_found(
    name: str, owner: type, method: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_bounds(self: Any, *arguments: Any) -> Any:
        if method == "charge_name":
            return None
        references, _ = arguments
        lengths = [int.from_bytes(references[at : at + 4], "little") for at in range(0, len(references), 16)]
        return [bytes(length) for length in lengths[:200]] + [b""] * len(lengths[200:])

    path = tmp_path / name
    structures.BOMBS[name](path)
    monkeypatch.setattr(owner, method, without_bounds)
    violations, _ = structures.violations_of(name, path)
    assert any(found in line for line in violations), violations


def test_the_whole_files_are_read(tmp_path: Path) -> None:
    """Else nothing behind the first structure would be tried."""
    for name, image in structures.whole_files(tmp_path).items():
        path = tmp_path / f"again-{name}"
        path.write_bytes(image)
        cost = structures.cost_of(path)
        assert cost.refusal == "", name
        assert len(structures.structures_of(image, path)) >= 10
