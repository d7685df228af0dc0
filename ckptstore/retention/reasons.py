"""Reasons for which versions stay, compact for very many: equal reasons are stored once."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

# Names of the rules that keep a version.
Names = tuple[str, ...]


class SharedReasons(Mapping[int, Names]):
    """Versions that stay, each with its reasons, in twelve bytes each.

    Args:
        pairs: Versions, each once, with their reasons.
    """

    __slots__ = ("_names", "_versions", "_which")

    def __init__(self, pairs: Iterable[tuple[int, Names]]) -> None:
        numbers: dict[Names, int] = {}
        versions, which = array("q"), array("I")
        for version, names in pairs:
            versions.append(version)
            which.append(numbers.setdefault(names, len(numbers)))
        if any(versions[at] >= versions[at + 1] for at in range(len(versions) - 1)):
            order = sorted(range(len(versions)), key=versions.__getitem__)
            versions = array("q", map(versions.__getitem__, order))
            which = array("I", map(which.__getitem__, order))
        self._versions, self._which, self._names = versions, which, tuple(numbers)

    def get(self, version: int, default: Names = ()) -> Names:  # type: ignore[override]
        """Return the reasons for which a version stays; the default where it does not."""
        at = self._at(version)
        return default if at is None else self._names[self._which[at]]

    def __getitem__(self, version: int) -> Names:
        at = self._at(version)
        if at is None:
            raise KeyError(version)
        return self._names[self._which[at]]

    def __contains__(self, version: object) -> bool:
        return isinstance(version, int) and self._at(version) is not None

    def _at(self, version: int) -> int | None:
        at = bisect_left(self._versions, version)
        return at if at < len(self._versions) and self._versions[at] == version else None

    def __iter__(self) -> Iterator[int]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def __repr__(self) -> str:
        return repr(dict(self))
