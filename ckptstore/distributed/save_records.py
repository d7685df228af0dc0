"""Records of a save by several processes: its announcement, a part that is durable, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ckptstore.errors.save_failures import SaveFailureCause


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """An attempt at a save, as process 0 announces it.

    Attributes:
        number: The number of the save.
        attempt: The number of the attempt, from 0.
        version: The version that the checkpoint will have; None where it is not known, since process 0 gives up.
        upload: Names the payload under construction, see `ckptstore.storage.payloads.interface.PayloadStore.join`.
        fields: The fields of the description, so that each part has the same; JSON.
        plan: The digest of what is saved and which process writes which part: of another model there is none.
        step: The training step whose values are saved.
        limit_s: How much longer than process 0 another process may take to write and report its part, and the other way
            round, in seconds. Below the time after which the framework ends a job whose process is silent (100 s by
            default for JAX).
        commit_limit_s: How long process 0 may take after that to commit the checkpoint and to tell of it, in seconds.
    """

    number: int
    attempt: int = 0
    version: int | None
    upload: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    plan: str = ""
    step: int | None
    limit_s: float
    commit_limit_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """A part of a save that a process has made durable.

    Attributes:
        process: The number of the process.
        member: The name of the part within the payload.
        nbytes: Its size in bytes.
        digest: Its digest.
        description: What the payload's description says of it; JSON.
    """

    process: int
    member: str
    nbytes: int
    digest: str
    description: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOutcome:
    """The end of an attempt at a save.

    Attributes:
        version: The version that was announced, or None.
        committed: True if the checkpoint exists; False if the attempt was abandoned.
        is_final: True if no other attempt follows.
        silent: The processes that did not report within the limit.
        refused: The processes that could not take part, and why.
        cause: What kind of reason that was.
        limit_s: The limit for the reports, in seconds.
        checkpoint: The record of the checkpoint, as JSON, so that every process has it; or None.
    """

    version: int | None
    committed: bool
    is_final: bool = False
    silent: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    cause: SaveFailureCause = "other"
    limit_s: float = 0.0
    checkpoint: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SaveOutcome:
        """Return what `to_json` has returned."""
        refused = {int(process): reason for process, reason in value["refused"].items()}
        return cls(**{**value, "silent": tuple(value["silent"]), "refused": refused})
