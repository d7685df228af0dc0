"""Errors of damaged payloads and manifests, and of unknown schema versions."""

from __future__ import annotations

from pathlib import Path

from ckptstore.errors.base import CheckpointStoreError


class CorruptError(CheckpointStoreError, ValueError):
    """Bytes on disk are not what was written."""


class CorruptPayloadError(CorruptError):
    """A payload file is damaged, or is not the one that its manifest row describes."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: damaged payload: {reason}",
            hint="other checkpoints are not affected; ckptstore verify shows which are intact",
            path=path,
            reason=reason,
        )


class CorruptManifestError(CorruptError):
    """`manifest.sqlite` cannot be read as a manifest."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: damaged manifest: {reason}",
            hint=f"nothing was changed; to rebuild it from the payloads: ckptstore repair {path.parent}",
            path=path,
            reason=reason,
        )


class SchemaError(CheckpointStoreError, ValueError):
    """The manifest has a schema that this ckptstore cannot use as it is."""


class SchemaTooOldError(SchemaError):
    """The manifest's schema is older, and a store that is open for reading does not upgrade it."""

    path: Path
    found: str
    known: str

    def __init__(self, *, path: Path, found: str, known: str) -> None:
        super().__init__(
            f"{path}: schema {found} is older than {known}, and opening for reading does not upgrade it",
            hint=f"run: ckptstore upgrade {path.parent}",
            path=path,
            found=found,
            known=known,
        )


class SchemaTooNewError(SchemaError):
    """The manifest has the schema of a newer ckptstore."""

    path: Path
    found: str
    known: str

    def __init__(self, *, path: Path, found: str, known: str) -> None:
        super().__init__(
            f"{path}: schema {found} is unknown to this ckptstore, which knows up to {known}",
            hint="run: pip install --upgrade ckptstore",
            path=path,
            found=found,
            known=known,
        )


class NoUsableCheckpointError(CorruptError):
    """A run has resume points, but none of them can be loaded."""

    run: str | None
    store: Path
    versions: tuple[int, ...]

    def __init__(self, *, run: str | None, store: Path, versions: tuple[int, ...]) -> None:
        which = "the store" if run is None else f"run {run!r}"
        shown = ", ".join(map(str, versions[:8])) + (" ..." if len(versions) > 8 else "")
        super().__init__(
            f"{store}: {which} has no intact resume point (damaged or missing: version {shown})",
            hint=f"inspect them, then run: ckptstore repair {store}; after that the run starts from the beginning",
            run=run,
            store=store,
            versions=versions,
        )
