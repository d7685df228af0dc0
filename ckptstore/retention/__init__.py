"""Which checkpoints stay: pure, composable rules over one run's checkpoints, and what no rule removes."""

from ckptstore.retention.always import always_kept
from ckptstore.retention.best import best_of, keep_best
from ckptstore.retention.budget import max_bytes
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
