"""Retention policies: pure, composable rules that decide which of a run's checkpoints stay, and which always do.

Main doors: the rules below, `policy.Policy` (rules joined by ``|`` and ``&``), `incremental.expired` (checkpoints that
expire after a save). `ckptstore.commit.retention` applies a policy to a store.

May import: errors, records, validation, metrics.
"""

from ckptstore.retention.always_kept import always_kept
from ckptstore.retention.best import best_of, keep_best
from ckptstore.retention.max_bytes import max_bytes
from ckptstore.retention.newest import keep_last, keep_within
from ckptstore.retention.policy import Policy, as_policy
from ckptstore.retention.spaced import keep_every
from ckptstore.retention.tagged import keep_tagged

__all__ = [
    "Policy",
    "always_kept",
    "as_policy",
    "best_of",
    "keep_best",
    "keep_every",
    "keep_last",
    "keep_tagged",
    "keep_within",
    "max_bytes",
]
